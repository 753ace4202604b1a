"""VQA: how questions are read, losses against their formulas, labels, and the way through fine-tuning to metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from objectives.objectives_world import MODEL, World, job, make_world
from pydantic import TypeAdapter

from vbert.artifacts.steps.settings import Numerics
from vbert.errors import UserError
from vbert.metrics.evaluation import Evaluation
from vbert.model.start import Initialization
from vbert.model.vocabulary import SPECIAL, TextRules, WordPieceEncoder
from vbert.objectives import OBJECTIVES, DownstreamEntry, EvaluateSettings, Objective, load, objective, vqa
from vbert.objectives.downstream import run_finetune, run_predict, run_score
from vbert.objectives.trained import Model
from vbert.objectives.vqa import VqaSettings
from vbert.regions.shards import Shards

BRIEF = {"data": "x", "steps": 1, "learning_rate": 1}
SETTINGS = VqaSettings(data="world", steps=200, batch_size=64, learning_rate=5e-3)
ENCODER = WordPieceEncoder([*SPECIAL, "what", "is", "it", "?", "？"], TextRules())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), images=120)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    finetune(folder, world, SETTINGS)
    return folder / "out"


def finetune(
    folder: Path, world: World, settings: VqaSettings, start: Model | Initialization | None = None
) -> dict[str, float]:
    start = start or Initialization(world.vocabulary, MODEL)
    return run_finetune(
        job(folder), world.examples, world.shards, start, objective("vqa"), settings, Numerics(), 0
    )  # fmt: skip


def evaluate(folder: Path, world: World, model: Path, split: str = "test", batch_size: int = 64) -> Evaluation:
    settings, plugin = EvaluateSettings(batch_size=batch_size, resamples=200), objective("vqa")
    run_predict(job(folder), Model.at(model), world.examples, world.shards, plugin, settings, split, Numerics())
    run_score(job(folder), Model.at(model), world.examples, world.shards, plugin, settings, split)
    return Evaluation.at(folder / "out")


@pytest.mark.parametrize("question", ["what is it?", "what is it", "what is it ??", "what is it？"])
def test_questions_are_read_as_the_original(question: str) -> None:
    rows, head = Mock(), {"answer_at": "mask", "max_text": 20}
    rows.row.return_value = {"text": question, "image_ids": ["a"]}
    (read,) = vqa.inputs(rows, 0, ENCODER, head, None)
    assert [ENCODER.tokens[i] for i in read.text.ids] == ["[CLS]", "what", "is", "it", "?", "[MASK]", "[SEP]"]
    assert [read.text.ids[at] for at in read.at] == [ENCODER.mask]
    assert set(read.text.types) == {0}
    assert read.images == ["a"]
    (read,) = vqa.inputs(rows, 0, ENCODER, {**head, "max_text": 6}, None)
    assert [ENCODER.tokens[i] for i in read.text.ids] == ["[CLS]", "what", "is", "?", "[MASK]", "[SEP]"]
    (read,) = vqa.inputs(rows, 0, ENCODER, {**head, "answer_at": "pooled"}, None)
    assert ENCODER.mask not in read.text.ids
    assert read.at == ()


def test_labels_are_frequent_first_and_scored_ones() -> None:
    rows = [{"answers": [{"answer": a, "score": s}]} for a, s in (("b", 1), ("a", 1), ("c", 0.3), ("c", 1), ("d", 0))]
    assert vqa.head(rows, SETTINGS)["labels"] == ["c", "a", "b"]
    assert vqa.head(rows, SETTINGS.model_copy(update={"minimum_count": 2}))["labels"] == ["c"]


def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(4, 3, dtype=torch.float64)
    rows = [{"answers": [{"answer": "x", "score": 0.9}, {"answer": "z", "score": 0.3}, {"answer": "?", "score": 1.0}]}]
    head = {"labels": ["x", "y", "z"], "loss": "kl"}
    scores = vqa.targets(rows * 4, head)["scores"]
    assert scores[0].tolist() == pytest.approx([0.9, 0.0, 0.3])
    by_hand = sum(
        s * (math.log(s) - float(outputs[b].log_softmax(0)[k])) for b in range(4) for k, s in ((0, 0.9), (2, 0.3))
    )
    assert float(vqa.loss(outputs, {"scores": scores.double()}, head)["loss"]) == pytest.approx(by_hand)
    p = outputs.sigmoid()
    by_hand = float(-(scores * p.log() + (1 - scores) * (1 - p).log()).sum())
    found = vqa.loss(outputs, {"scores": scores.double()}, {**head, "loss": "bce"})["loss"]
    assert float(found) == pytest.approx(by_hand)
    assert vqa.counts({"scores": scores}) == {"loss": 4}


def test_what_is_no_answer_is_never_predicted() -> None:
    outputs = torch.tensor([[9.0, 1.0, 2.0]])
    (found,) = vqa.decode(outputs, {}, [{"example_id": "7"}], {"labels": ["<unk>", "yes", "no"], "loss": "kl"})
    assert found["answer"] == "no"


def test_it_learns_and_scores_by_type(world: World, trained: Path, tmp_path: Path) -> None:
    found = evaluate(tmp_path, world, trained)
    metrics, intervals = found.metrics(), found.intervals()
    assert (metrics["accuracy/shape"], metrics["accuracy/color"]) == (1, 1)
    assert metrics["accuracy"] >= 0.7
    assert set(metrics) == {"accuracy", "accuracy/shape", "accuracy/color", "accuracy/yes/no"}
    assert intervals["accuracy"].low <= metrics["accuracy"] <= intervals["accuracy"].high
    predictions = found.predictions()
    assert found.counts() == {
        "accuracy": 96, "accuracy/shape": 24, "accuracy/color": 24, "accuracy/yes/no": 48,
        "examples": 96, "answered": 96, "quarantined": 0,
    }  # fmt: skip
    rows = world.examples.table().to_pylist()
    true = {row["example_id"]: row["answers"][0]["answer"] for row in rows if row["answers"]}
    right = sum(true[p["example_id"]] == p["answer"] for p in predictions) / len(predictions)
    assert metrics["accuracy"] == pytest.approx(right)
    submitted = json.loads(found.file("results.json").read_text())
    assert submitted[0] == {"question_id": int(predictions[0]["example_id"]), "answer": predictions[0]["answer"]}
    assert len(submitted) == len(predictions)


def test_the_model_carries_what_its_use_needs(trained: Path) -> None:
    head = Model.at(trained).head()
    assert sorted(head["labels"]) == sorted(["yes", "no", "circle", "square", "cross", "red", "green", "blue", "black"])
    assert len(head["digest"]) == 64
    assert (head["objective"], head["answer_at"], head["images"]) == ("vqa", "mask", "own")


def test_without_its_images_only_language_is_left(world: World, tmp_path: Path) -> None:
    """Yes or no and the most frequent shape and colour: far below what the images tell."""
    finetune(tmp_path / "train", world, SETTINGS.model_copy(update={"images": "shuffled"}))
    floor = evaluate(tmp_path / "test", world, tmp_path / "train" / "out").metrics()["accuracy"]
    assert 0.2 < floor < 0.6


def test_other_images_are_seen_in_evaluation_too(world: World, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in trained.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data.replace(b'"images": "own"', b'"images": "shuffled"'))
    assert evaluate(tmp_path, world, folder).metrics()["accuracy"] < 0.7


def test_no_steps_evaluates_the_start_as_it_is(world: World, trained: Path, tmp_path: Path) -> None:
    finetune(tmp_path / "same", world, SETTINGS.model_copy(update={"steps": 0}), Model.at(trained))
    before, after = Model.at(trained).load().state_dict(), Model.at(tmp_path / "same" / "out").load().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert Model.at(tmp_path / "same" / "out").curves() == []


def test_answers_known_to_the_start_keep_their_rows(world: World, trained: Path, tmp_path: Path) -> None:
    none = SETTINGS.model_copy(update={"steps": 1, "learning_rate": 0.0, "minimum_count": 30})
    finetune(tmp_path, world, none, Model.at(trained))
    before, after = Model.at(trained), Model.at(tmp_path / "out")
    assert 0 < len(after.labels()) < len(before.labels())
    for k, label in enumerate(after.labels()):
        there = before.labels().index(label)
        rows = [m.load().state_dict()["answer.dense.weight"][i] for m, i in ((after, k), (before, there))]
        assert torch.equal(*rows)


def test_examples_without_answers_give_predictions_alone(trained: Path, tmp_path: Path) -> None:
    unlabelled = make_world(tmp_path / "world", images=120, labelled_test=False)
    found = evaluate(tmp_path, unlabelled, trained)
    assert found.metrics() == {}
    assert len(found.predictions()) == 96


def test_what_is_in_quarantine_counts_as_wrong_and_is_submitted_empty(trained: Path, tmp_path: Path) -> None:
    lacking = make_world(tmp_path / "world", images=120, missing=50)
    found = evaluate(tmp_path, lacking, trained)
    every = [
        row for row in lacking.examples.table().to_pylist() if row["split"] == "test" and row["kind"] == "question"
    ]
    gone = [row["example_id"] for row in every if row["image_ids"][0] in ("048", "049")]
    counts = found.counts()
    assert (counts["examples"], counts["answered"], counts["quarantined"]) == (96, 88, 8)
    assert (len(gone), counts["accuracy"], counts["accuracy/shape"]) == (8, 96, 24)
    predictions = {p["example_id"]: p for p in found.predictions()}
    assert list(predictions) == [row["example_id"] for row in every]
    assert {predictions[e]["answer"] for e in gone} == {""}
    true = {row["example_id"]: row["answers"][0]["answer"] for row in every}
    right = sum(true[e] == p["answer"] for e, p in predictions.items())
    assert found.metrics()["accuracy"] == pytest.approx(right / 96)
    assert found.metrics()["accuracy/shape"] == pytest.approx(22 / 24)  # all that it saw
    submitted = {row["question_id"]: row["answer"] for row in json.loads(found.file("results.json").read_text())}
    assert len(submitted) == 96
    assert {submitted[int(e)] for e in gone} == {""}


def test_select_best_keeps_the_best_step(world: World, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 60, "validate_every": 10, "select": "best", "learning_rate": 5e-3})
    finetune(tmp_path / "a", world, settings)
    curves = Model.at(tmp_path / "a" / "out").curves()
    best = max(row["validation/accuracy"] for row in curves if "validation/accuracy" in row)
    assert evaluate(tmp_path / "e", world, tmp_path / "a" / "out", "val").metrics()["accuracy"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select": "best", "validation_examples": 0}, r"select: best, but there are no labelled held-out examples"),
        ({"select": "best"}, r"no labelled held-out examples to select by in .* \(split val\); write select: last"),
        ({"steps": 0}, r"steps: 0 evaluates the start as it is, and it has no answer head"),
        ({"max_text": 41}, r"max_text 41 is beyond the model's 40 positions \(max_positions\); set it to 40"),
    ],
)
def test_what_can_not_end_well_is_refused_before_the_first_step(
    changes: dict[str, Any], said: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqa, "labelled", lambda row: row["split"] != "val")
    monkeypatch.setattr("vbert.objectives.downstream.run_training", lambda *_: pytest.fail("it began to train"))
    with pytest.raises(UserError, match=said):
        finetune(tmp_path, world, SETTINGS.model_copy(update=changes))


def test_other_features_are_refused(world: World, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in world.shards.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes().replace(b'"detector": "none"', b'"detector": "other"'))
    other = world._replace(shards=Shards.at(folder))
    with pytest.raises(UserError, match="detector is 'none' for the model, 'other' for the shards"):
        evaluate(tmp_path, other, trained)
    with pytest.raises(UserError, match="detector"):
        finetune(tmp_path, other, SETTINGS, Model.at(trained))


def test_predictions_go_on_where_they_stopped(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbert.objectives.downstream.CHUNK", 40)
    whole = evaluate(tmp_path / "a", world, trained).file("predictions.jsonl").read_bytes()
    broken = job(tmp_path / "b")
    settings, plugin = EvaluateSettings(batch_size=64), objective("vqa")
    run_predict(broken, Model.at(trained), world.examples, world.shards, plugin, settings, "test", Numerics())
    chunks = sorted((tmp_path / "b" / "scratch" / "predictions").iterdir())
    assert len(chunks) == 3
    chunks[1].unlink()
    kept = chunks[0].stat().st_mtime_ns
    assert evaluate(tmp_path / "b", world, trained).file("predictions.jsonl").read_bytes() == whole
    assert chunks[0].stat().st_mtime_ns == kept
    # Ranks share the chunks.
    for rank in (0, 1):
        run_predict(
            job(tmp_path / "c", rank, 2), Model.at(trained), world.examples, world.shards, plugin, settings, "test",
            Numerics(),
        )  # fmt: skip
    assert evaluate(tmp_path / "c", world, trained).file("predictions.jsonl").read_bytes() == whole


def test_every_objective_is_reached_by_its_name() -> None:
    """The registry, the settings' `objective` and the module are one thing."""
    for name, (settings, _) in OBJECTIVES.items():
        chosen = TypeAdapter(DownstreamEntry).validate_python({"objective": name, **BRIEF})
        assert (type(chosen), chosen.objective) == (settings, name)
        module = load(name)
        assert all(hasattr(module, part) for part in vars(Objective) if not part.startswith("_"))
        assert module.KINDS


def test_names_are_checked() -> None:
    assert load("vqa").KINDS == ("question",)
    with pytest.raises(UserError, match="did you mean 'vqa'"):
        objective("vqaa")
