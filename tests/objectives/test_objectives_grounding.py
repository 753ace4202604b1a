"""Phrases and expressions: what is asked, the bound before training, a head that learns, controls, submissions."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from objectives.grounding_world import COLOURS, IMAGES, MISSING, make_grounding_world
from objectives.objectives_world import MODEL, World
from objectives.tasks_world import evaluate, finetune

from vbert.errors import BuildError, UserError
from vbert.metrics.evaluation import Evaluation
from vbert.model.start import Initialization
from vbert.objectives import bound, grounding, grounding_protocols, load
from vbert.objectives.batches import ExampleRows
from vbert.objectives.dataset import ObjectiveDataset

BRIEF: dict[str, Any] = {"steps": 120, "batch_size": 32, "learning_rate": 5e-3, "validation_examples": 12}
HEAD = {"kind": "phrases", "protocol": "any", "loss": "kl", "iou": "inclusive", "as_original": False, "images": "own"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_grounding_world(tmp_path_factory.mktemp("grounding") / "world")


def dataset(world: World, split: str = "train", **head: Any) -> ObjectiveDataset[Any]:
    rows = ExampleRows(world.examples, world.shards, [split], ["phrases"], text=head.get("text", "own"))
    described = {**HEAD, "max_text": 40, **head}
    return ObjectiveDataset(load("grounding"), described, world.vocabulary.encoder(), rows, world.shards, "append6")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """The folder of an evaluation on the split test, and the evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    model = finetune(folder / "tuned", world, "grounding", **BRIEF)
    return folder, evaluate(folder / "evaluated", world, model, "grounding")


def test_it_learns_phrases_within_their_bound(trained: tuple[Path, Evaluation]) -> None:
    figures, counts = trained[1].metrics(), trained[1].counts()
    asked = 2 * (IMAGES // 5)
    assert counts["r1"] == asked, "phrases without a box don't count, those of an image without regions do"
    assert figures["upper_bound"] == pytest.approx((asked - 2) / asked)
    assert figures["r1"] >= 0.9 * figures["upper_bound"] > figures["random_region"] + 0.3
    assert figures["r1"] <= figures["r5"] == figures["r10"] == figures["upper_bound"]
    assert counts["r1/thing"] == counts["r1/one"] == asked / 2
    assert figures["r1/contested"] > figures["random_region/contested"] + 0.3
    assert figures["upper_bound_merged"] < figures["upper_bound"]


@pytest.mark.slow
@pytest.mark.parametrize("control", [{"images": "shuffled"}, {"text": "shuffled"}, {"text": "none"}])
def test_language_or_the_image_alone_is_no_better_than_chance(
    control: dict[str, Any], world: World, trained: tuple[Path, Evaluation], tmp_path: Path
) -> None:
    """Other images' regions in place of the own ones; other examples' texts, which ask for the same things by other
    words; none."""
    model = finetune(tmp_path / "tuned", world, "grounding", **BRIEF | control)
    figures = evaluate(tmp_path / "evaluated", world, model, "grounding").metrics()
    assert figures["r1"] < trained[1].metrics()["r1"] - 0.2
    assert figures["r1"] < figures["random_region"] + 0.2
    assert figures["upper_bound"] == trained[1].metrics()["upper_bound"]


def test_predictions_are_boxes_best_first_and_a_submission(world: World, trained: tuple[Path, Evaluation]) -> None:
    folder, evaluation = trained
    submitted = {one["image_id"]: one for one in json.loads((folder / "evaluated/out/results.json").read_bytes())}
    assert len(submitted) == IMAGES // 5
    for p in evaluation.predictions():
        image = p["example_id"][:3]
        sent = submitted[image]
        if image == MISSING:
            assert p["quarantined"]
            assert sent["boxes"] == [[], []]
            continue
        regions = world.shards.read(image)
        assert regions.boxes is not None
        np.testing.assert_allclose(p["regions"], regions.boxes, atol=6e-4)
        assert [sorted(order) for order in p["ranked"]] == [[0, 1, 2]] * 3
        assert p["classes"] == [0, 0, 0]
        assert len(p["sure"]) == 3
        assert sent["sentence_id"] == 0
        assert sent["boxes"] == [[p["regions"][k] for k in order] for order in p["ranked"][:2]]


def test_scores_and_targets_are_those_of_a_loop(world: World) -> None:
    """Also where an example has no phrase with a place, and another only one region."""
    side = dataset(world)
    model: Any = grounding.model(
        Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0).encoder.config, HEAD, 0
    )
    batch, rows = side.batch([(i, 0) for i in range(8)])
    outputs = model.eval().requires_grad_(False)(batch.packed)
    hidden = model.encoder(batch.packed)
    starts, place = batch.packed.starts().tolist(), 0
    total = 0.0
    for i, (start, length) in enumerate(zip(starts, batch.packed.lengths.tolist(), strict=True)):
        (one,) = side.objective.inputs(side.rows, i, side.encoder, side.head, np.random.default_rng(0))
        own = hidden[start : start + length]
        for k, at in enumerate(one.at):
            query, keys = model.phrase.query(own[at]), model.phrase.key(own[len(one.text.ids) :])
            scores = keys @ query / 32**0.5
            torch.testing.assert_close(outputs[place, :3], scores, atol=1e-5, rtol=1e-5)
            right = [box in rows[i]["phrases"][k]["boxes"] for box in rows[i]["phrases"][k]["boxes"]]
            target = torch.from_numpy(one.ragged["target"][k])
            assert int((target > 0).sum()) == len(right)
            total += float(torch.nn.functional.kl_div(scores.log_softmax(0), target, reduction="sum"))
            place += 1
    assert place == len(outputs)
    assert float(grounding.loss(outputs, batch.tensors, side.head)["loss"]) == pytest.approx(total, rel=1e-5)
    assert grounding.counts(batch.tensors) == {"loss": 8}


def test_cross_entropy_asks_for_the_best_region_alone() -> None:
    regions = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]], np.float32)
    true = [[1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 32, 32]]
    assert grounding_protocols.target(true, regions, HEAD).tolist() == [0.5, 0.5, 0]
    assert grounding_protocols.target(true[:1], regions, {**HEAD, "loss": "cross_entropy"}).tolist() == [0, 1, 0]
    assert grounding_protocols.target(true, regions, {**HEAD, "protocol": "merged"}).tolist() == [0, 0, 0]
    assert (
        grounding_protocols.target([[90, 90, 99, 99]], regions, {**HEAD, "loss": "cross_entropy"}).tolist() == [0] * 3
    )


def test_of_equal_scores_the_first_region_is_best(world: World) -> None:
    side = dataset(world, "val")
    batch, rows = side.batch([(i, None) for i in range(3)])
    predictions = grounding.decode(torch.zeros(9, 3), batch.tensors, rows, side.head)
    assert all(p["ranked"] == [[0, 1, 2]] * 3 and p["sure"] == [round(1 / 3, 6)] * 3 for p in predictions)


def test_a_phrase_that_is_cut_off_stays_and_is_never_right(world: World) -> None:
    side = dataset(world, "val", max_text=5)  # [CLS] a red thing [SEP]
    batch, rows = side.batch([(0, None), (1, None)])
    assert batch.tensors["phrases"].tolist() == [0, 0]
    predictions = grounding.decode(torch.zeros(2, 3), batch.tensors, rows, side.head)
    assert [order for p in predictions for order in p["ranked"][1:]] == [[]] * 4
    metrics = grounding.metrics(rows, predictions, side.head)
    assert metrics["r1/one"].value() == metrics["upper_bound/one"].value() == 0
    assert len(metrics["r1"].counted()) == 4
    assert metrics["upper_bound"].value() == 0.5
    nothing, rows = dataset(world, "val", max_text=2).batch([(0, None)])
    assert grounding.decode(torch.zeros(0, 3), nothing.tensors, rows, side.head)[0]["ranked"] == [[], [], []]


def test_equal_words_are_their_own_or_as_in_the_original_the_first() -> None:
    text = "a man beside a manly man"
    assert grounding.first_occurrence(text, 21, 24) == (2, 5)
    assert grounding.first_occurrence(text, 15, 20) == (15, 20)
    assert grounding.first_occurrence(text, 15, 18) == (2, 5)
    assert grounding.first_occurrence(text, 16, 18) == (16, 18), "part of a word is no word"


def test_the_bound_stops_before_the_first_step_and_names_the_box_rule(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "vbert.grounding"):
        finetune(tmp_path / "fine", world, "grounding", **{**BRIEF, "steps": 1})
    assert [line.partition(":")[0] for line in caplog.messages] == ["train", "val"]
    assert "upper_bound 1.0000" in caplog.messages[0]
    real = grounding_protocols.bound
    monkeypatch.setattr(
        grounding_protocols, "bound", lambda rows, head: {n: v * 0.4 for n, v in real(rows, head).items()}
    )
    monkeypatch.setattr("vbert.objectives.downstream.run_training", lambda *_: pytest.fail("it trained"))
    with pytest.raises(UserError, match=r"only 40 % of the phrases \(split train\).*`regions.boxes`.*`floor`"):
        finetune(tmp_path / "low", world, "grounding", **BRIEF)


def test_expressions(world: World, tmp_path: Path) -> None:
    """One phrase with one box; accuracy by part, strictly more than half; a file of RefCOCO's form."""
    head = {**HEAD, "protocol": "refcoco"}
    common = {"image_ids": ["train2014/COCO_train2014_000000000139.jpg"], "text": "red one"}
    boxes = ([0, 0, 10, 10], [0, 0, 10, 5])
    rows = [
        {
            **common,
            "example_id": f"ref/{k}",
            "part": part,
            "phrases": [{"start": 0, "end": 7, "boxes": [boxes[0]], "types": None}],
        }
        for k, part in ((1, "testA"), (2, "testB"))
    ]
    ranked = ([0, 1], [1, 0])
    predictions = [
        {"example_id": row["example_id"], "regions": list(boxes), "classes": [0, 1], "ranked": [order], "sure": [0.9]}
        for row, order in zip(rows, ranked, strict=True)
    ]
    values = {name: metric.value() for name, metric in grounding.metrics(rows, predictions, head).items()}
    assert values == {
        "accuracy": 0.5, "accuracy/testA": 1, "accuracy/testB": 0, "upper_bound": 1, "upper_bound/testA": 1,
        "upper_bound/testB": 1, "random_region": 0.5,
    }  # fmt: skip
    sent = json.loads(grounding.submission(rows, predictions, head)["results.json"])
    assert sent == [{"sent_id": 1, "pred_box": [0, 0, 10, 10]}, {"sent_id": 2, "pred_box": [0, 0, 10, 5]}]
    gone = [{"example_id": "ref/1", "answer": "", "score": 0.0, "quarantined": True}]
    assert grounding.metrics(rows[:1], gone, head)["accuracy"].value() == 0
    assert json.loads(grounding.submission(rows[:1], gone, head)["results.json"])[0]["pred_box"] == [0, 0, 0, 0]
    with pytest.raises(BuildError, match="is no expression"):
        finetune(tmp_path, world, "grounding", **BRIEF, protocol="refcoco")


def test_without_regions_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match=re.escape("`images: shuffled`")):
        grounding.GroundingSettings(objective="grounding", data="x", images="none", steps=1, learning_rate=1)


def test_other_texts_bring_the_places_of_their_phrases(world: World) -> None:
    own, other = (
        ExampleRows(world.examples, world.shards, ["train"], ["phrases"], text=text) for text in ("own", "shuffled")
    )
    for mine, theirs in zip(own, other, strict=True):
        assert [p["boxes"] for p in mine["phrases"]] == [p["boxes"] for p in theirs["phrases"]]
        words = [theirs["text"][p["start"] : p["end"]] for p in theirs["phrases"]]
        assert [words[0].split()[::2], words[1].split()[::2], words[2]] == [
            ["a", "thing"],
            ["the", "one"],
            "the evening",
        ]
        assert words[0].split()[1] in COLOURS


def test_a_floor_that_is_raised_later_refuses_the_finished_model(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"upper_bound/train": 0.9, "upper_bound/val": 0.8, "upper_bound_merged/val": 0.4}
    monkeypatch.setattr(bound, "whole", lambda artifact, store: SimpleNamespace(figures=figures))

    def objection(**changes: Any) -> str | None:
        settings = grounding.GroundingSettings(objective="grounding", data="x", steps=1, learning_rate=1, **changes)
        step = SimpleNamespace(arguments={"settings": settings})
        return bound.objection(cast(Any, SimpleNamespace(step=step, store="store", title="finetune[x]")))

    assert objection() is None
    assert re.match(r"finetune\[x\]: only 80 % of the phrases \(split val\)", objection(floor=0.85) or "")
    assert "upper_bound_merged" in (objection(protocol="merged") or "")
    assert bound.objection(cast(Any, SimpleNamespace(step=None, store=None))) is None
