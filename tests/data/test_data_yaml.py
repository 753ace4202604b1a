from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import pytest
from pydantic import Field

from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.stage import Machine
from vbert.data.spec import dataset
from vbert.data.yaml import MAX_BYTES, load_yaml, parse_value, read_yaml
from vbert.errors import FIRST_GUESSES, UserError, near, nearest
from vbert.model.bert import MODELS, model_spec
from vbert.regions.detector import detector_file


class Train(Settings):
    steps: Annotated[int, Field(ge=0)]
    learning_rate: float = 1e-3
    schedule: Literal["linear", "cosine"] = "linear"


class Data(Settings):
    spec: str
    limit: int | None = None


class Recipe(Settings):
    seed: int = 0
    data: dict[str, Data] = Field({})
    train: Train
    names: tuple[str, ...] = ()
    choice: Train | Data | None = None


GOOD = """\
# a comment
seed: 3
data:
  shapes: {spec: shapes, limit: 10}
train:
  steps: 5
  learning_rate: 1e-4
names: [a, b]
"""


def load(text: str, **changes: object) -> Recipe:
    return load_yaml(text, "r.yaml", Recipe, {key.replace("__", "."): value for key, value in changes.items()})


def test_a_file_becomes_its_model(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD)
    recipe = read_yaml(tmp_path / "r.yaml", Recipe)
    assert recipe.train.learning_rate == 1e-4
    assert recipe.names == ("a", "b")
    assert recipe.data["shapes"].limit == 10


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("no", "no"),
        ("on", "on"),
        ("012", 12),
        ("0o17", 15),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("steps", "step", "r.yaml:6:3: train.step: there is no such key; did you mean 'steps'?"),
        ("seed", "sede", "r.yaml:2:1: sede: there is no such key; did you mean 'seed'?"),
        ("limit", "limits", "r.yaml:4:26: data.shapes.limits: there is no such key; did you mean 'limit'?"),
        ("steps: 5", "steps: -5", "r.yaml:6:10: train.steps: input should be greater than or equal to 0 (got -5)"),
        ("steps: 5", "steps: '5'", 'r.yaml:6:10: train.steps: input should be a valid integer (got "5")'),
        ("steps: 5", "steps: 5.5", "r.yaml:6:10: train.steps:"),
        ("seed: 3", "seed: true", "r.yaml:2:7: seed: input should be a valid integer"),
        ("  steps: 5\n", "", "r.yaml:5:1: train.steps: is missing"),
        ("[a, b]", "[a, 2]", "r.yaml:8:12: names.1: input should be a valid string (got 2)"),
        ("1e-4", ".nan", "r.yaml:7:18: .nan is not a finite number"),
        ("seed: 3", "seed: 3\nseed: 4", "r.yaml:3:1: seed: given twice, first at r.yaml:2:1; keep one"),
        ("[a, b]", "[a, b", "r.yaml:9:1: not YAML"),
        ("[a, b]", "a", "r.yaml:8:8: names: input should be a valid array"),
        ("  steps: 5", "\tsteps: 5", "r.yaml:6:1: not YAML: found character '\\t'"),
        ("seed", "3", "r.yaml:2:1: a key must be a string, not 3"),
        ("seed: 3", "choice: {spec: a, limits: 1}", "r.yaml:2:19: choice.limits: there is no such key; did you mean"),
    ],
)
def test_faults_say_where_and_the_nearest_name(old: str, new: str, error: str) -> None:
    with pytest.raises(UserError) as found:
        load(GOOD.replace(old, new, 1))
    assert found.value.message.startswith(error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: &x 1\nb: *x", "r.yaml:1:4: anchors and aliases"),
        ("<<: {a: 1}", "r.yaml:1:1: merge keys"),
        ("a: !!python/object/apply:os.system [ls]", "r.yaml:1:4: the tag"),
        ("[" * 20000, "nested deeper than 32 levels"),
        ("a: " + "{a: " * 40 + "1" + "}" * 40, "nested deeper than 32 levels"),
        ("a: 1\n---\nb: 1", "r.yaml:2:1: a second document"),
        ("%YAML 1.1\n---\na: no", "only YAML 1.2"),
        ('a: "\\ud800"', "r.yaml:1:4: half of a surrogate pair"),
        ("a: \x00", "r.yaml"),
        ("a" * (MAX_BYTES + 1), "larger than"),
        ("- 1", "r.yaml:1:1: the file must hold `key: value` lines, not a list"),
        ("", "r.yaml:1:1: the file must hold `key: value` lines, not nothing"),
    ],
)
def test_hostile_and_ambiguous_yaml_is_refused(text: str, error: str) -> None:
    with pytest.raises(UserError) as found:
        load(text)
    assert error in found.value.message


def test_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    with pytest.raises(UserError, match="anchors"):
        load(bomb)


def test_all_faults_are_told_the_first_one_first() -> None:
    with pytest.raises(UserError) as found:
        load(GOOD.replace("steps: 5", "step: 5").replace("seed: 3", "seed: x"))
    assert "train.step: there is no such key" in found.value.message
    assert "seed: input should be a valid integer" in found.value.details
    assert "train.steps: is missing" in found.value.details


def test_not_utf8_and_absent_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        read_yaml(tmp_path / "r.yaml", Recipe)
    with pytest.raises(UserError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml", Recipe)


def test_changes_replace_and_add_values() -> None:
    recipe = load(GOOD, train__steps=7, data__mine__spec="mine", names__1="z", data__shapes={"spec": "other"})
    assert recipe.train.steps == 7
    assert recipe.data["mine"] == Data(spec="mine")
    assert recipe.data["shapes"] == Data(spec="other")
    assert recipe.names == ("a", "z")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("train.stepps", 1, "--set train.stepps: there is no 'stepps'; did you mean 'steps'?"),
        ("trian.steps", 1, "--set trian.steps: there is no 'trian'; did you mean 'train'?"),
        ("data.shapes.limitt", 1, "--set data.shapes.limitt: there is no 'limitt'; did you mean 'limit'?"),
        ("choice.spek", "x", "--set choice.spek: there is no 'spek'; did you mean 'spec'?"),
        ("train.steps", -1, "--set train.steps: input should be greater than or equal to 0 (got -1)"),
        ("seed.x", 1, "--set seed.x: seed is 3, nothing can be set inside it"),
        ("names.5", "x", "--set names.5: '5' must be 0 to 1, an item of the list"),
    ],
)
def test_wrong_changes_say_the_nearest_name(key: str, value: object, error: str) -> None:
    with pytest.raises(UserError) as found:
        load_yaml(GOOD, "r.yaml", Recipe, {key: value})
    assert found.value.message == error


@pytest.mark.parametrize(
    ("guess", "valid", "meant"),
    [
        ("question", ["text", "text_b", "answers"], "text"),
        ("image", ["image_ids", "text"], "image_ids"),
        ("image_id", ["image", "box", "class"], "image"),
        ("label", ["answer", "answers", "text"], "answer"),
        ("bbox", ["image", "box", "class"], "box"),
        ("lr", ["steps", "learning_rate"], "learning_rate"),
        ("epochs", ["steps", "learning_rate"], "steps"),
        ("num_workers", ["units_at_once", "loader_workers"], "loader_workers"),
        ("license", ["name", "licence"], "licence"),
    ],
)
def test_everybodys_first_guess_gets_the_right_name(guess: str, valid: list[str], meant: str) -> None:
    assert nearest(guess, valid) == f"did you mean {meant!r}?"


def test_every_guess_means_a_name_that_exists() -> None:
    from flows.recipe import Recipe
    from vbert.data.readers.jsonl import BoxLine, ExampleLine
    from vbert.data.spec import DatasetSpec

    known = {*get_type_hints(ExampleLine), *get_type_hints(BoxLine)}
    todo = [Recipe.model_json_schema(), DatasetSpec.model_json_schema()]
    for schema in todo:
        known |= set(schema.get("properties", {}))
        todo += schema.get("$defs", {}).values()
    assert {meant for every in FIRST_GUESSES.values() for meant in every} <= known


def test_near_ids_are_those_of_another_spelling() -> None:
    ids = [f"train2014/COCO_train2014_{i:012d}.jpg" for i in range(2000)]
    assert near("COCO_train2014_17.png", ids).startswith("near: 'train2014/COCO_train2014_000000000017.jpg'")
    assert near("cats/1.JPG", ["cats/2.jpg", "dogs/1.jpg", "cats/1.jpg"]).startswith("near: 'cats/1.jpg'")
    assert near("x", []) == "there is none"


def test_relative_paths_are_relative_to_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.recipe import resolve

    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "deep" / "r.yaml").write_text(
        "data:\n"
        "  a:\n"
        "    spec: specs/mine.yaml\n"
        "    features: {path: f.tsv, detector: own.yaml, sizes: ../sizes.csv, classes: ~/c.txt}\n"
        "  b: {folder: photos}\n"
        "  c: {spec: easy_vqa}\n"
        "detector: {spec: shapes_cnn, weights: https://example.org/w.pt}\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = resolve("../deep/r.yaml", {"data.b.folder": "here"})
    deep, features = tmp_path / "deep", found.data["a"].features
    assert found.data["a"].spec == str(deep / "specs" / "mine.yaml")
    assert features is not None
    assert (features.path, features.detector) == (str(deep / "f.tsv"), str(deep / "own.yaml"))
    assert (features.sizes, features.classes) == (str(tmp_path / "sizes.csv"), str(Path.home() / "c.txt"))
    assert found.data["b"].folder == str(tmp_path / "elsewhere" / "here"), "a change is relative to where it is typed"
    assert found.data["c"].spec == "easy_vqa"
    assert found.detector is not None
    assert found.detector.weights == "https://example.org/w.pt"


def test_the_home_of_nobody_is_no_traceback(tmp_path: Path) -> None:
    spec = tmp_path / "a.yaml"
    spec.write_text("name: a\ntitle: a\nlicence: a\nsources: {p: {path: ~nobody-here/x}}\nimages: {reader: folder}\n")
    assert dataset(str(spec)).sources["p"].path == str(tmp_path / "~nobody-here" / "x")
    for read in (dataset, detector_file, model_spec):
        with pytest.raises(UserError, match=r"^~nobody-here/x\.yaml: can't be read: No such file"):
            read("~nobody-here/x.yaml")


def test_a_wrong_change_names_its_option() -> None:
    with pytest.raises(UserError, match=r"^--machine wrokers: there is no 'wrokers'"):
        load_yaml("{}", "--machine", Machine, {"wrokers": 1}, option="--machine")


def test_a_bert_of_ones_own_lies_beside_the_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder without a slash, and as a `start`: both were looked for in the working directory."""
    from flows.recipe import resolve

    deep = tmp_path / "deep"
    for folder in (deep / "my_bert", deep / "minilm_l6", tmp_path / "here"):
        folder.mkdir(parents=True)
    shutil.copy(MODELS.folder / "minilm_l6.yaml", deep / "own.yaml")
    training = "data: [a], steps: 8, learning_rate: 1.0e-3"
    (deep / "r.yaml").write_text(
        "data: {a: {spec: easy_vqa}}\n"
        "detector: {spec: shapes_cnn, weights: w.pt}\n"
        "model: {init: my_bert}\n"
        f"pretrain: {{one: {{{training}, start: ./my_bert}}, two: {{{training}, start: one}}}}\n"
        "downstream:\n"
        f"  x: {{objective: vqa, {training.replace('[a]', 'a')}, start: own.yaml}}\n"
        f"  y: {{objective: vqa, {training.replace('[a]', 'a')}, start: minilm_l6}}\n"
        f"  z: {{objective: vqa, {training.replace('[a]', 'a')}, start: two}}\n"
    )
    monkeypatch.chdir(tmp_path)
    found = resolve("deep/r.yaml")
    assert found.model.init == str(deep / "my_bert")
    assert [entry.start for entry in found.pretrainings().values()] == [str(deep / "my_bert"), "one"]
    assert [entry.start for entry in found.downstream.values()] == [str(deep / "own.yaml"), "minilm_l6", "two"]
    assert resolve("deep/r.yaml", {"model.init": "minilm_l6"}).model.init == "minilm_l6", "a name is a name"
    assert resolve("deep/r.yaml", {"model.init": "here"}).model.init == str(tmp_path / "here")
    with pytest.raises(UserError, match=r"pretrain\.a/b: names a start of its own"):
        resolve("deep/r.yaml", {"pretrain": {"a/b": {"data": ["a"], "steps": 8, "learning_rate": 0.1}}})
