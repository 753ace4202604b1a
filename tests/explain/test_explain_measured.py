"""Perturbation curves, and the stage that measures explanations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts.golden import check_here
from objectives.objectives_world import MODEL, World, job, make_world

from tasks.explain import explain
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Machine, Stopped
from vbert.data.examples import Examples
from vbert.errors import UserError
from vbert.explain import METHODS, measuring, methods, methods_of
from vbert.explain.explanations import RELEVANCES, Explanations
from vbert.explain.measuring import run_explain
from vbert.explain.methods import Asked, Relevance
from vbert.explain.perturbation import area, at_shares, order
from vbert.explain.removal import Gone, left, masked
from vbert.model.start import Initialization
from vbert.objectives import objective
from vbert.objectives.batches import Input, TokenizedText
from vbert.objectives.downstream import run_finetune
from vbert.objectives.entry import ExplainSettings
from vbert.objectives.trained import Model
from vbert.objectives.vqa import VqaSettings

VQA = objective("vqa")
BRIEF = ExplainSettings(examples=64, resamples=50)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("measured"), images=120)


@pytest.fixture(scope="module")
def model(world: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    settings = VqaSettings(
        data="world", steps=90, batch_size=32, learning_rate=5e-3, validation_examples=8, answer_at="mask"
    )
    start = Initialization(world.vocabulary, MODEL)
    run_finetune(job(folder), world.examples, world.shards, start, VQA, settings, Numerics(), 0)
    return Model.at(folder / "out")


def run(folder: Path, model: Model, world: World, names: list[str] | None, **changes: Any) -> Explanations:
    settings = BRIEF.model_copy(update=changes)
    run_explain(job(folder), model, world.examples, world.shards, VQA, settings, methods_of(names), "test", Numerics())
    return Explanations.at(folder / "out")


def test_area_and_curve() -> None:
    assert area([1, 1, 0]) == 0.75
    assert area([1, 0]) == area([0, 1]) == 0.5
    np.testing.assert_allclose(at_shares([1, 0, 0], np.array([0, 0.25, 0.5, 1])), [1, 0.5, 0, 0])


def test_of_equally_relevant_ones_the_first_goes_first_either_way() -> None:
    assert order([1.0, 3.0, 3.0, 0.0], descending=True) == [1, 2, 0, 3]
    assert order([1.0, 3.0, 3.0, 0.0], descending=False) == [3, 0, 1, 2]


def test_what_is_gone_of_an_input() -> None:
    text = TokenizedText([2, 7, 8, 9, 3], [0] * 5, [-1, 0, 0, 1, -1], [False] * 5, [None] * 5)
    given = Input(text, ["i"], regions=[4, 6, 9], aligned=[(0, 1), (2, 3)])
    assert masked(given, [1, 2], 99).text.ids == [2, 99, 99, 9, 3]
    assert given.text.ids == [2, 7, 8, 9, 3]
    kept = left(given, [0, 2], 3)
    assert (list(kept.regions or ()), list(kept.aligned)) == ([4, 9], [(0, 1), (1, 3)])
    assert Gone.of([0, 3, 2], words=2) == Gone(frozenset([0]), frozenset([0, 1]))


def test_a_method_that_knows_what_matters_beats_one_that_is_wrong(
    model: Model, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default against random order, and against itself upside down."""

    def opposite(asked: Asked) -> list[Relevance]:
        return [-one for one in methods.removal(asked)]

    monkeypatch.setattr(methods, "rollout", opposite)
    found = run(tmp_path, model, world, ["removal", "rollout"]).kinds()["both"]
    right, random, wrong = (found.methods[name] for name in ("removal", "random", "rollout"))
    assert right.gap.value > 0.3 + random.gap.value
    assert right.positive.value == pytest.approx(wrong.negative.value, abs=0.03)  # but for ties
    assert right.over["random"].low > 0
    assert right.gap.value == pytest.approx(right.negative.value - right.positive.value)
    for one in found.methods.values():
        assert one.positive.low <= one.positive.value <= one.positive.high
        assert one.curves[0][0] == one.curves[1][0]  # nothing is gone yet
        assert one.curves[0][-1] == one.curves[1][-1]  # all is gone


def test_numbers_of_each_example_and_a_seeded_sample(model: Model, world: World, tmp_path: Path) -> None:
    first = run(tmp_path / "a", model, world, ["removal"], examples=20)
    other = run(tmp_path / "b", model, world, ["removal"], examples=20, seed=1)
    rows, others = (
        [json.loads(line) for line in one.file(RELEVANCES).read_text("utf-8").splitlines()] for one in (first, other)
    )
    assert len(rows) == len(others) == 20
    assert {row["example_id"] for row in rows} != {row["example_id"] for row in others}
    for row in rows:
        words, regions = row["relevance"]["removal"]
        assert len(words) == len(row["words"])
        assert len(regions) == len(world.shards.read(row["image_id"]).features)
    assert set(first.read()["methods"]) == {"removal", "random"}


def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    model: Model, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", model, world, ["attention"])
    monkeypatch.setattr(measuring, "CHUNK", 16)
    arguments = model, world.examples, world.shards, VQA, BRIEF, methods_of(["attention"]), "test", Numerics()
    folder = job(tmp_path / "stopped")
    with pytest.raises(Stopped, match="stopped behind 16 of 64"):
        run_explain(Job(folder.directory, folder.scratch, Machine(device="cpu"), stop=lambda: True), *arguments)
    kept = {path: path.stat().st_mtime_ns for path in (folder.scratch / "explained").iterdir()}
    assert len(kept) == 1
    run_explain(folder, *arguments)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for name in ("explanations.json", RELEVANCES):
        assert (folder.directory / name).read_bytes() == whole.file(name).read_bytes()


def test_golden(model: Model, world: World, tmp_path: Path) -> None:
    check_here(
        explain, "tiny", tmp_path, model, world.examples, world.shards, VQA, BRIEF, methods_of(None), "test", Numerics()
    )


def test_refusals(model: Model, world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no method 'atention' of explaining; did you mean 'attention'"):
        methods_of(["atention"])
    assert [one.name for one in methods_of(["rollout"])] == ["rollout", "random"]
    assert [one.name for one in methods_of(None)] == list(METHODS)
    plugin = objective("captioning")
    arguments = world.shards, plugin, BRIEF, methods_of(None), "test", Numerics()
    with pytest.raises(UserError, match="curves are of tasks that choose one answer"):
        run_explain(job(tmp_path), model, world.examples, *arguments)
    unlabelled = make_world(tmp_path / "unlabelled", images=15, labelled_test=False)
    texts = Examples.at(unlabelled.examples.path)
    with pytest.raises(UserError, match="no example to measure explanations by"):
        run_explain(job(tmp_path), model, texts, unlabelled.shards, VQA, *arguments[2:])
