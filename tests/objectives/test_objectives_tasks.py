"""Tasks that choose an answer: what their modules read, learn, score and submit, and what their controls see."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.objectives_world import MODEL, World
from objectives.tasks_world import IMAGES, TASKS, evaluate, finetune, make_tasks_world
from sklearn.metrics import f1_score, roc_auc_score

from vbert.errors import BuildError, UserError
from vbert.model.start import Initialization
from vbert.objectives import OBJECTIVES, load
from vbert.objectives.batches import ExampleRows
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.trained import Model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tasks_world(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: finetune(tmp_path_factory.mktemp(name), world, name) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_they_learn_what_text_and_images_tell_together(
    name: str, world: World, trained: dict[str, Model], tmp_path: Path
) -> None:
    found = evaluate(tmp_path, world, trained[name], name)
    metrics, intervals = found.metrics(), found.intervals()
    assert metrics["accuracy"] >= 0.95, metrics
    for metric, value in metrics.items():
        assert intervals[metric].low <= value <= intervals[metric].high
    grouped = {"nlvr2": "consistency", "choice": "joint"}.get(name)
    if grouped:
        assert (intervals[grouped].of, intervals[grouped].groups) == ("groups", IMAGES // 5)


@pytest.mark.parametrize(
    ("name", "control", "most"),
    [
        ("classification", {"images": "none"}, 0.6),
        ("classification", {"images": "shuffled"}, 0.7),
        ("nlvr2", {"images": "none"}, 0.8),
        ("choice", {"text": "none"}, 1.0),
    ],
)
def test_controls_of_one_side(name: str, control: dict[str, str], most: float, world: World, tmp_path: Path) -> None:
    """Without what tells, no better than the commonest label; the choices of a choice stay."""
    model = finetune(tmp_path / "model", world, name, **control)
    assert {key: model.head()[key] for key in control} == control
    assert evaluate(tmp_path / "test", world, model, name).metrics()["accuracy"] <= most


def test_a_control_sees_nothing_of_the_other_side(world: World) -> None:
    """No regions; `[CLS] [SEP]`; texts of other examples of the same kind, each once."""
    module, encoder = load("classification"), world.vocabulary.encoder()
    head = {"max_text": 40, "labels": ["angry", "glad", "sad"]}

    def batch(images: str, text: str) -> Any:
        rows = ExampleRows(world.examples, world.shards, ["train"], module.KINDS, text=text)
        side = ObjectiveDataset(module, head | {"images": images}, encoder, rows, world.shards, "append6")
        return rows, side.batch([(i, None) for i in range(len(rows))])[0].packed

    assert len(batch("none", "own")[1].visual) == 0
    rows, packed = batch("own", "none")
    assert packed.text_ids.tolist() == [encoder.cls, encoder.sep] * len(rows)
    pairs = [ExampleRows(world.examples, world.shards, ["train"], ["pair"], text=text) for text in ("own", "shuffled")]
    assert sorted(pairs[1].column("text")) == sorted(pairs[0].column("text"))
    assert pairs[1].column("text") != pairs[0].column("text")
    assert pairs[1].column("label") == pairs[0].column("label")
    assert pairs[1].every.equals(pairs[0].table)


def test_types_choose_the_examples(world: World, tmp_path: Path) -> None:
    model = finetune(tmp_path / "model", world, "choice", types=("answer",), steps=2)
    assert model.head()["types"] == ["answer"]
    found = evaluate(tmp_path / "test", world, model, "choice")
    assert {row["example_id"][-1] for row in found.predictions()} == {"0"}
    with pytest.raises(UserError, match=r"with a question type among answr; types: did you mean 'answer'\?"):
        finetune(tmp_path / "none", world, "choice", types=("answr",))


def test_metrics_of_labels_are_scikit_learn_s(world: World, tmp_path: Path) -> None:
    model = finetune(tmp_path / "model", world, "classification", steps=8, positive="glad")
    found = evaluate(tmp_path / "test", world, model, "classification")
    rows = {row["example_id"]: row for row in world.examples.table().to_pylist()}
    predictions = found.predictions()
    true = [rows[p["example_id"]]["label"] for p in predictions]
    guess = [p["answer"] for p in predictions]
    glad = [p["probabilities"][1] for p in predictions]
    metrics = found.metrics()
    assert metrics["macro_f1"] == pytest.approx(f1_score(true, guess, average="macro", zero_division=0), abs=1e-12)
    assert metrics["weighted_f1"] == pytest.approx(
        f1_score(true, guess, average="weighted", zero_division=0), abs=1e-12
    )
    assert metrics["auroc"] == pytest.approx(roc_auc_score([t == "glad" for t in true], glad), abs=1e-12)
    lines = list(csv.DictReader(io.StringIO(found.file("predictions.csv").read_text())))
    assert [(r["id"], float(r["proba"]), r["label"]) for r in lines] == [
        (p["example_id"], p["probabilities"][1], p["answer"]) for p in predictions
    ]
    with pytest.raises(BuildError, match=r"positive: no training example has the label 'gld'; did you mean 'glad'"):
        finetune(tmp_path / "x", world, "classification", positive="gld")


def test_statements_are_submitted_as_the_official_score_takes_them(
    world: World, trained: dict[str, Model], tmp_path: Path
) -> None:
    found = evaluate(tmp_path, world, trained["nlvr2"], "nlvr2")
    lines = found.file("predictions.csv").read_text().splitlines()
    assert lines == [f"{p['example_id']},{p['answer'].capitalize()}" for p in found.predictions()]


def test_labels_other_than_true_and_false_are_refused() -> None:
    """They would be learnt as none."""
    settings = OBJECTIVES["nlvr2"].settings(objective="nlvr2", data="own", steps=1, learning_rate=1)
    with pytest.raises(BuildError, match=r"nlvr2: a training example has the label '0', and statements are true or"):
        load("nlvr2").head([{"label": "0"}, {"label": "1"}], settings)


def test_choices_are_scored_against_each_other() -> None:
    """By hand: two examples, of three choices and of two."""
    module = load("choice")
    outputs = torch.tensor([[0.0], [1.0], [0.5], [2.0], [-1.0]])
    tensors = {"example": torch.tensor([0, 0, 0, 1, 1]), "label": torch.tensor([1, 1])}
    rows = [{"example_id": "a", "choices": [None] * 3}, {"example_id": "b", "choices": [None] * 2}]
    first = math.log(1 + math.e + math.exp(0.5)) - 1
    second = math.log(math.exp(2) + math.exp(-1)) + 1
    assert float(module.loss(outputs, tensors, {})["loss"]) == pytest.approx(first + second)
    assert module.counts(tensors) == {"loss": 2}
    predictions = module.decode(outputs, tensors, rows, {})
    assert [p["answer"] for p in predictions] == ["1", "0"]
    assert [len(p["probabilities"]) for p in predictions] == [3, 2]
    assert [sum(p["probabilities"]) for p in predictions] == pytest.approx([1, 1])


def test_a_named_region_is_the_one_whose_box_it_is(world: World) -> None:
    module, encoder = load("choice"), world.vocabulary.encoder()
    rows = ExampleRows(world.examples, world.shards, ["train"], module.KINDS)
    head = {"align": True, "cut": "both", "max_text": 40}
    for one in module.inputs(rows, 0, encoder, head, None):
        ((region, place),) = one.aligned
        assert region == 0
        assert encoder.tokens[one.text.ids[place]][0] in "rgb"
        assert one.text.types.count(1) == len(one.text.ids) - one.text.ids.index(encoder.sep) - 1
    assert all(not one.aligned for one in module.inputs(rows, 0, encoder, head | {"align": False}, None))


@pytest.mark.parametrize(("cut", "kept"), [("both", (4, 2)), ("choice", (6, 0))])
def test_too_long_a_choice_is_cut_at_the_front(cut: str, kept: tuple[int, int]) -> None:
    """Ten pieces in nine places: four go; half of them off the context, or, as the original's code, all off the
    choice."""
    from vbert.objectives.named_regions import TaggedText, joined

    class Encoder:
        cls, sep = 101, 102

    spans = [(k, k + 1) for k in range(6)]
    context = TaggedText([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5], spans, [(0, 1), (1, 5)])
    choice = TaggedText([7, 8, 9, 10], [0, 1, 2, 3], spans[:4], [(2, 0), (3, 3)])
    text, aligned = joined(Encoder(), context, choice, 9, cut)  # type: ignore[arg-type]
    assert len(text.ids) == 9
    first = text.ids[1 : text.ids.index(102)]
    assert first == [1, 2, 3, 4, 5, 6][6 - kept[0] :]
    second = text.ids[text.ids.index(102) + 1 : -1]
    assert second == [7, 8, 9, 10][4 - len(second) :]
    for region, place in aligned:
        assert text.ids[place] == {0: 2, 1: 6, 2: 7, 3: 10}[region]


def test_a_start_s_head_is_kept_where_it_fits(world: World, trained: dict[str, Model], tmp_path: Path) -> None:
    """Matching becomes the label true; of choices the whole head, of labels their rows; of others the encoder alone."""
    still = {"steps": 1, "learning_rate": 0.0}
    matching = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0).matching.dense
    fresh = finetune(tmp_path / "a", world, "nlvr2", **still).load().answer.dense  # type: ignore[union-attr]
    assert torch.equal(fresh.weight, matching.weight)  # type: ignore[arg-type]
    chosen = finetune(tmp_path / "b", world, "choice", **still).load().answer.dense  # type: ignore[union-attr]
    assert torch.allclose(chosen.weight, matching.weight[1:] - matching.weight[:1])  # type: ignore[arg-type]
    for name in TASKS:
        kept = finetune(tmp_path / name, world, name, trained[name], **still).load().state_dict()
        assert all(torch.equal(kept[key], tensor) for key, tensor in trained[name].load().state_dict().items())
    other = finetune(tmp_path / "c", world, "classification", trained["choice"], **still).load().state_dict()
    assert torch.equal(other["encoder.pooler.weight"], trained["choice"].load().state_dict()["encoder.pooler.weight"])


def test_the_segment_of_second_images_is_drawn_where_asked_for(
    world: World, trained: dict[str, Model], tmp_path: Path
) -> None:
    name = "encoder.embeddings.visual_token_type.weight"
    start = trained["nlvr2"].load().state_dict()
    still = {"steps": 1, "learning_rate": 0.0, "segment": 2.5}
    found = finetune(tmp_path, world, "nlvr2", trained["nlvr2"], **still).load().state_dict()
    assert {key for key, tensor in found.items() if not torch.equal(tensor, start[key])} == {name}
    first, second = found[name]
    assert torch.equal(first, start[name][0])
    assert 1.5 < float((second - first).std()) < 3.5
    for steps in (0, 1):  # one that learnt with it keeps it
        again = finetune(tmp_path / str(steps), world, "nlvr2", Model.at(tmp_path / "out"), **still | {"steps": steps})
        assert torch.equal(again.load().state_dict()[name], found[name])
