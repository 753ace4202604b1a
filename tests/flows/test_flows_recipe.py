"""Several pre-trainings and seeds in one recipe: their expansion, and errors with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.graph import graph
from flows.recipe import Recipe, resolve
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.errors import UserError

TINY = Path(__file__).parents[1] / "tiny.yaml"
ONE = "{data: [shapes, easy_vqa], steps: 8, batch_size: 8, learning_rate: 1.0e-3, validation_examples: 20}"
INNER = ONE.strip("{}").replace(", easy_vqa", "")
SEVERAL = f"{{words: {{{INNER}, itm: 0}}, both: {{{INNER}, seeds: [0, 1]}}, bert: {{{INNER}, start: minilm_l6}}}}"
ENTRY = "{objective: vqa, data: easy_vqa, steps: 8, learning_rate: 7.0e-4"


def recipe(folder: Path, pretrain: str, entries: dict[str, str], changes: dict[str, Any] | None = None) -> Recipe:
    text = TINY.read_text()
    assert ONE in text
    start, end = text.index("downstream:"), text.index("machine:")
    downstream = "".join(f"  {name}: {ENTRY}, {fields}}}\n" for name, fields in entries.items())
    path = folder / "own.yaml"
    path.write_text(f"{text[:start]}downstream:\n{downstream}{text[end:]}".replace(ONE, pretrain))
    return resolve(str(path), changes)


def by_title(recipe: Recipe) -> dict[str, Artifact]:
    return {a.title: a for a in walk(graph(recipe))}


def test_pre_trainings_by_name_and_seeds_become_one_step_each(tmp_path: Path) -> None:
    entries = {
        "a": "start: words, seeds: [0, 1], share: 0.02",
        "b": "start: both, seeds: [0, 1]",
        "c": "start: none, seed: 7",
        "d": "start: minilm_l6",
        "e": "start: pretrained",
    }
    found = by_title(recipe(tmp_path, SEVERAL, entries))
    titles = {title for title in found if title.startswith(("pretrain", "finetune"))}
    assert titles == {
        *("pretrain[words]", "pretrain[both@0]", "pretrain[both@1]", "pretrain[bert]"),
        *(
            "finetune[a@0]",
            "finetune[a@1]",
            "finetune[b@0]",
            "finetune[b@1]",
            "finetune[c]",
            "finetune[d]",
            "finetune[e]",
        ),
    }

    def argument(title: str, name: str) -> Any:
        step = found[title].step
        assert step is not None
        return step.arguments[name]

    assert [argument(f"finetune[a@{s}]", "start") for s in (0, 1)] == [found["pretrain[words]"]] * 2
    assert [argument(f"finetune[b@{s}]", "start") for s in (0, 1)] == [found[f"pretrain[both@{s}]"] for s in (0, 1)]
    assert [argument(f"pretrain[both@{s}]", "seed") for s in (0, 1)] == [0, 1]
    assert [argument(f"finetune[{name}]", "seed") for name in ("a@1", "c", "d")] == [1, 7, 0]
    assert argument("finetune[c]", "start").bert is None
    assert argument("finetune[d]", "start").bert == argument("pretrain[bert]", "start") == found["bert[minilm_l6]"]
    assert argument("finetune[d]", "start").model.layers == 12  # the checkpoint's: the recipe's are the others'
    assert argument("finetune[e]", "start") == found["pretrain[bert]"]
    assert list(argument("report", "downstream"))[:2] == ["a@0/easy_vqa/test", "a@1/easy_vqa/test"]
    assert argument("report", "pretrained") == found["pretrain[bert]"]


def test_a_pre_training_starts_from_an_earlier_one(tmp_path: Path) -> None:
    pretrain = f"{{a: {{{INNER}, seeds: [0, 1]}}, b: {{{INNER}, start: a, seeds: [0, 1]}}}}"
    found = by_title(recipe(tmp_path, pretrain, {"x": "seeds: [0, 1]"}))
    for seed in (0, 1):
        second, tuned = found[f"pretrain[b@{seed}]"].step, found[f"finetune[x@{seed}]"].step
        assert second is not None
        assert tuned is not None
        assert second.arguments["start"] == found[f"pretrain[a@{seed}]"]
        assert tuned.arguments["start"] == found[f"pretrain[b@{seed}]"]
    with pytest.raises(UserError, match=r"pretrain\.a\.start: b stands later: move it before this entry"):
        recipe(tmp_path, pretrain.replace("a: {", "a: {start: b, "), {"x": "start: b"})


def test_one_pre_training_is_what_it_was(tmp_path: Path) -> None:
    """By a name or without, of one seed given here or there, it is the same work."""
    plain = by_title(recipe(tmp_path, ONE, {"a": "start: pretrained"}))["finetune[a]"]
    named = by_title(recipe(tmp_path, f"{{x: {ONE}}}", {"a": "start: x, seeds: [0]"}))["finetune[a@0]"]
    assert plain == named


def test_changes_reach_into_a_named_pre_training(tmp_path: Path) -> None:
    entries = {"a": "start: words", "b": "start: both", "c": "start: bert"}
    changed = recipe(tmp_path, SEVERAL, entries, {"pretrain.words.steps": 9}).pretrainings()
    assert [entry.steps for entry in changed.values()] == [9, 8, 8]
    with pytest.raises(UserError, match=r"pretrain\.words\.stepz: there is no 'stepz'; did you mean 'steps'"):
        recipe(tmp_path, SEVERAL, entries, {"pretrain.words.stepz": 9})


@pytest.mark.parametrize(
    ("pretrain", "fields", "said"),
    [
        (SEVERAL, "start: bith", r"downstream\.a\.start: nothing to start from is called 'bith'; did you mean 'both'"),
        (SEVERAL, "start: both, seeds: [0, 2]", r"a\.start: both is not trained with seed 2, but with 0, 1"),
        (SEVERAL, "start: none, seeds: [1, 1]", r"a\.seeds: seeds are different whole numbers from 0 on"),
        (SEVERAL, "start: none, seeds: [1], seed: 1", r"a\.seeds: give either seed or seeds"),
        (SEVERAL, "start: none", r"pretrain\.words: nothing starts from it"),
        (
            SEVERAL.replace("minilm_l6", "minilm"),
            "start: none",
            r"pretrain\.bert\.start: nothing to start from is called 'minilm'.*'minilm_l6'",
        ),
        (SEVERAL.replace("words", "none"), "start: none", r"pretrain\.none: names a start of its own"),
        (SEVERAL.replace("itm: 0", "itn: 0"), "start: none", r"pretrain\.words\.itn: there is no such key; .*'itm'"),
        (SEVERAL.replace("[shapes]", "[shape]"), "start: none", r"pretrain\.words\.data\.0: no data set 'shape'"),
        (ONE.replace("[shapes, easy_vqa]", "[]"), "start: none", r"pretrain\.data: tuple should have at least 1 item"),
        (f"{ONE[:-1]}, start: pretrained}}", "start: none", r"called 'pretrained'; valid: [^']*$"),
        (ONE, "start: none, share: 0", r"downstream\.a\.share: input should be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(tmp_path: Path, pretrain: str, fields: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        recipe(tmp_path, pretrain, {"a": fields})
    assert "own.yaml:" in str(caught.value)


@pytest.mark.parametrize("how", ["file", "change"])
def test_a_field_that_was_removed_is_refused_with_the_remedy(tmp_path: Path, how: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(TINY.read_text() + ("\nnumerics: {regions: {processes: 2}}\n" if how == "file" else ""))
    changes = {"numerics.regions.processes": 1} if how == "change" else {}
    with pytest.raises(UserError, match=r"numerics\.regions\.processes: was removed: .*leave it out") as caught:
        resolve(own, changes)
    assert ("own.yaml:" if how == "file" else "--set") in str(caught.value)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("questions", r"downstream\.a\.start: questions stands later: move it before this entry$"),
        ("a", r"downstream\.a\.start: a is this entry itself$"),
        ("qestions", r"'qestions'; did you mean 'questions'\? It stands later: move it before this entry$"),
        ("pretrainad", r"called 'pretrainad'; did you mean 'pretrained'\?$"),
    ],
)
def test_a_start_that_stands_later_is_told_so(tmp_path: Path, start: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        recipe(tmp_path, ONE, {"a": f"start: {start}", "questions": "start: none"})
    assert "own.yaml:" in str(caught.value)


def test_the_valid_starts_are_listed_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="valid: ") as caught:
        recipe(tmp_path, ONE, {"a": "start: xyzzy"})
    assert caught.value.message.count("pretrained") == 1
    assert len(caught.value.message) < 300, "models are too many to list"


def test_an_unknown_objective_is_refused_with_its_field_and_the_nearest(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(TINY.read_text().replace("  vqa: {", "  vqa: {objective: vqaa, "))
    with pytest.raises(UserError, match=r"own.yaml:\d+:\d+: downstream\.vqa\.objective: no objective 'vqaa'; did you "):
        resolve(own)
    own.write_text(TINY.read_text().replace("  vqa: {", "  vga: {"))
    with pytest.raises(UserError, match=r"own.yaml:\d+:\d+: downstream\.vga: no objective is called 'vga'; add `obj"):
        resolve(own)
    with pytest.raises(UserError, match=r"^--set downstream\.vqa\.objective: no objective 'vqaa'"):
        resolve("demo", {"downstream.vqa.objective": "vqaa"})


def test_an_unknown_source_is_refused_with_each_valid_one_once() -> None:
    with pytest.raises(UserError, match=r"data\.easy_vqa\.files: the spec has no source 'x'; valid: (\w+)$"):
        graph(resolve(TINY, {"data.easy_vqa.files": {"x": "here"}}))
