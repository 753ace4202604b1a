"""What can't be learnt or scored is refused before the first step, with the reason and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from objectives.objectives_world import MODEL, World, job
from objectives.tasks_world import BRIEF, finetune, make_tasks_world

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.data.raw import RawFiles
from vbert.errors import UserError
from vbert.model.start import Initialization
from vbert.objectives import OBJECTIVES, choice_protocols, load, objective
from vbert.objectives.downstream import run_finetune
from vbert.objectives.trained import Model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tasks_world(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbert.objectives.downstream.run_training", lambda *_: pytest.fail("it began to train"))


class Answers(RawFiles):
    """A file of labels."""

    def members(self) -> list[str]:  # type: ignore[override]
        return ["words.txt"]

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()  # type: ignore[operator]


def with_answers(folder: Path, world: World, name: str, words: str, **changes: Any) -> Model:
    """Fine-tuning on the labels of a file."""
    settings = OBJECTIVES[name].settings(**{"objective": name, **BRIEF, "answers": "words.txt", **changes})
    folder.mkdir(exist_ok=True)
    (folder / "words.txt").write_text(words)
    start = Initialization(world.vocabulary, MODEL)
    plugin, answers = objective(name), Answers.at(folder)
    run_finetune(job(folder), world.examples, world.shards, start, plugin, settings, Numerics(), 0, answers)
    return Model.at(folder / "out")


def changed(folder: Path, world: World, change: Any) -> World:
    """The world with `change` made to each of its rows."""
    folder.mkdir(exist_ok=True)
    write_examples(folder, [{**row, **change(row)} for row in world.examples.table().to_pylist()])
    return world._replace(examples=Examples.at(folder))


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("nlvr2", "yes\nno\n", r"words.txt: lacks 2 of the 2 training labels: 'false', 'true'; statements are true or"),
        ("nlvr2", "true \nfalse \n", r"'false', 'true' \(its 'true ' has stray blanks: take them out\)"),
        ("nlvr2", "true\nfalse\nmaybe\n", r"3 answers, more than false and true; statements are true or false"),
        ("classification", "sad\nangry\n", r"lacks 1 of the 3 training labels: 'glad'; add what is missing, or write"),
        ("classification", "sad \nangry\nglad\n", r"1 of the 3 .* 'sad' \(its 'sad ' has stray blanks"),
        ("vqa", "yes\nno\n", r"lacks 3 of the 3 training labels: .*; nothing could be learnt: give the file of these"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_a_file_of_answers_without_the_training_labels(
    name: str, words: str, said: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        with_answers(tmp_path, world, name, words)


@pytest.mark.usefixtures("untrained")
def test_a_positive_label_is_one_of_the_file(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"answers: words.txt: lacks 1 of the 3 training labels: 'glad'"):
        with_answers(tmp_path, world, "classification", "sad\nangry\n", positive="glad")


def test_the_order_of_the_file_is_that_of_the_head(world: World, tmp_path: Path) -> None:
    """Some answers of a published file need not be there; the rows of a matching head go where their labels are."""
    vqa = with_answers(tmp_path / "vqa", world, "vqa", "<unk>\nblue\nred\n", steps=1)
    assert vqa.labels() == ["<unk>", "blue", "red"]
    turned = with_answers(tmp_path / "nlvr2", world, "nlvr2", "true\nfalse\n", steps=1, learning_rate=0.0)
    assert turned.labels() == ["true", "false"]
    matching: Any = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0)
    turned_head: Any = turned.load()
    assert turned_head.answer.dense.weight.equal(matching.matching.dense.weight.flip(0))
    assert load("nlvr2").targets([{"label": "true"}, {"label": "false"}], turned.head())["label"].tolist() == [0, 1]


@pytest.mark.usefixtures("untrained")
def test_no_steps_need_a_head_of_the_same_objective(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("vbert.objectives.downstream.run_training", lambda *_: [])
    choice = finetune(tmp_path / "a", world, "choice")
    with pytest.raises(UserError, match=r"steps: 0 .* its head is of objective choice, not nlvr2: train 1 step"):
        finetune(tmp_path / "b", world, "nlvr2", choice, steps=0)
    moods = finetune(tmp_path / "c", world, "classification")
    assert finetune(tmp_path / "d", world, "visual_entailment", moods, steps=0).labels() == moods.labels()


def test_what_is_no_choice_is_wrong() -> None:
    row = {"choices": [{"text": "a"}, {"text": "b"}], "label": "1", "question_type": None, "group": None}
    for answer, score in (("", 0.0), ("7", 0.0), ("²", 0.0), ("1", 1.0)):
        (metric,) = choice_protocols.metrics("aokvqa", [row], [{"answer": answer}]).values()
        assert metric.value() == score


@pytest.mark.parametrize(
    ("name", "protocol", "splits", "change", "said"),
    [
        (
            "vqa",
            "aokvqa",
            ("train", "val"),
            {},
            r"protocol: aokvqa counts people's answers \(`given`\), and example 'q000' has none",
        ),
        (
            "vqa",
            "gqa",
            ("train", "val"),
            {"given": ["a", "b"]},
            r"gqa compares with one answer a question, and example 'q000' has 2 dif",
        ),
        (
            "vqa",
            "exact",
            ("val",),
            {"given": ["a", "b"]},
            r"exact compares with one answer a question, and example 'q000' has 2",
        ),
        (
            "choice",
            "vcr",
            ("train",),
            {"group": None},
            r"vcr writes a line for each `group` \(annot_id\), and example 'c0000' has",
        ),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_a_protocol_on_data_that_it_can_not_score(
    name: str,
    protocol: str,
    splits: tuple[str, ...],
    change: dict[str, Any],
    said: str,
    world: World,
    tmp_path: Path,
) -> None:
    for split in splits:

        def of(row: dict[str, Any], split: str = split) -> dict[str, Any]:
            if row["split"] == split:
                return change
            return {"given": ["red"] * 10} if protocol == "aokvqa" else {}

        its = changed(tmp_path / split, world, of)
        with pytest.raises(UserError, match=said.replace("000", r"\d\d\d")):
            finetune(tmp_path / f"out {split}", its, name, protocol=protocol)


def test_one_answer_given_several_times_is_one(world: World, tmp_path: Path) -> None:
    same = changed(tmp_path / "rows", world, lambda row: {"given": [row["answers"][0]["answer"]] * 3}
                   if row["answers"] else {})  # fmt: skip
    finetune(tmp_path / "out", same, "vqa", protocol="exact", steps=1)


@pytest.mark.parametrize("name", ["vqa", "classification", "choice"])
def test_unlabelled_examples_are_not_trained_on(name: str, world: World, tmp_path: Path) -> None:
    """They are counted, and what is trained is that of the labelled ones alone."""
    keys = {"vqa": "answers", "classification": "label", "choice": "label"}

    def unlabelled(row: dict[str, Any]) -> bool:
        return row["split"] == "train" and row["image_ids"][0] < "060"

    some = changed(tmp_path / "some", world, lambda row: {keys[name]: None} if unlabelled(row) else {})
    fewer = changed(tmp_path / "fewer", world, lambda row: {"split": "test"} if unlabelled(row) else {})
    settings = OBJECTIVES[name].settings(**{"objective": name, **BRIEF, "steps": 2})
    start = Initialization(world.vocabulary, MODEL.model_copy(update={"standardise": True}))
    figures, weights = [], []
    for its in (some, fewer):
        out = tmp_path / f"out{len(figures)}"
        figures.append(
            run_finetune(job(out), its.examples, its.shards, start, objective(name), settings, Numerics(), 0)
        )
        weights.append(Model.at(out / "out").file("model.safetensors").read_bytes())
    each = 2 if name == "choice" else 1
    assert (figures[0].pop("unlabelled"), figures[0]["examples"]) == (36 * each, 36 * each)
    assert figures[0] == figures[1]
    assert weights[0] == weights[1]


def test_no_label_at_all_is_refused(world: World, tmp_path: Path) -> None:
    none = changed(tmp_path / "rows", world, lambda row: {"label": None})
    with pytest.raises(UserError, match=r"none of the 144 training examples of kind choice has a label: look at the"):
        finetune(tmp_path / "out", none, "choice")


@pytest.mark.usefixtures("untrained")
def test_the_figure_that_selects_is_known_before_the_first_step(world: World, tmp_path: Path) -> None:
    by = {"select": "best", "positive": "glad"}
    with pytest.raises(UserError, match=r"have no figure 'aurok', but accuracy, .*; did you mean 'auroc'\?") as caught:
        finetune(tmp_path, world, "classification", select_by="aurok", **by)
    assert "macro_f1, weighted_f1, auroc;" in caught.value.message
    same = changed(
        tmp_path / "rows",
        world,
        lambda row: {"label": "sad"} if row["split"] == "val" and row["kind"] == "sentiment" else {},
    )
    with pytest.raises(UserError, match=r"have no figure 'auroc', but accuracy, macro_f1, weighted_f1; name one of"):
        finetune(tmp_path / "same", same, "classification", select_by="auroc", **by)
