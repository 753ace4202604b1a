"""Golden digests of the stages that train, extract and predict, each on inputs of its own tests' worlds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from artifacts.golden import check_here
from objectives.grounding_world import make_grounding_world
from objectives.objectives_world import MODEL, World, make_world
from objectives.retrieval_world import make_retrieval_world
from objectives.tasks_world import make_tasks_world
from regions.regions_tiny import collection, encoded, picture, scenes, small_spec, untrained

from tasks.detector import detector
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.heads import heads
from tasks.pretrain import pretrain
from tasks.regions import regions
from vbert.artifacts.steps.settings import Numerics
from vbert.model.start import Initialization
from vbert.objectives import OBJECTIVES, EvaluateSettings, objective
from vbert.objectives.captioning import CaptioningEvaluateSettings, CaptioningSettings
from vbert.objectives.grounding import GroundingSettings
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.retrieval import RetrievalEvaluateSettings, RetrievalSettings
from vbert.objectives.trained import Model
from vbert.objectives.vqa import VqaSettings
from vbert.regions.boxes import Adaptive, Nms
from vbert.regions.detector import DetectorTraining, ExtractionNumerics, RegionSettings

SMALL = MODEL.model_copy(update={"hidden_dropout": 0.1, "attention_dropout": 0.1})
BRIEF = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "validation_examples": 6}
VQA = objective("vqa")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_detector(tmp_path: Path) -> None:
    training = DetectorTraining(data="tiny", steps=3, batch_size=4, validate_every=2)
    given = scenes(tmp_path / "scenes", 16)
    check_here(detector, "tiny", tmp_path, given, small_spec(), training, Numerics(), 0)


def test_regions(tmp_path: Path) -> None:
    """Of images of two sizes, and one that is none."""
    files = {f"{i}": encoded(picture(i, 40 + 16 * (i % 2), 40)) for i in range(4)} | {"bad": b"none"}
    settings = RegionSettings(boxes=Adaptive(minimum=2, maximum=6, score=0.3), nms=Nms(), images_per_shard=3)
    weights = untrained(tmp_path / "detector", small_spec())
    numerics = ExtractionNumerics()
    check_here(regions, "tiny", tmp_path, collection(tmp_path / "images", files), weights, settings, numerics)


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("tiny", {"altered": 0.5}),
        ("bert_adam", {"optimizer": "bert_adam", "clip_rule": "per_tensor", "captions": 2, "accumulate": 2}),
        ("unmasked", {"itm_rows": "unmasked", "itm_draw": "paired", "whole_word": True, "images": "shuffled"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pretrain(label: str, changes: dict[str, object], world: World, tmp_path: Path) -> None:
    data, settings = {"world": PretrainData(world.examples, world.shards)}, PretrainSettings(**BRIEF | changes)
    check_here(pretrain, label, tmp_path, data, world.vocabulary, None, SMALL, settings, Numerics(), 0)


def test_finetune_and_evaluate(world: World, tmp_path: Path) -> None:
    """From weights drawn at random, then from a model, the best of two validations kept; its predictions."""
    first = VqaSettings(data="world", loss="bce", images="shuffled", share=0.5, answer_at="pooled", **BRIEF)
    start: Initialization | Model = Initialization(world.vocabulary, SMALL)
    inputs = (world.examples, world.shards)
    start = Model.at(check_here(finetune, "fresh", tmp_path / "fresh", *inputs, start, VQA, first, Numerics(), 1))
    second = VqaSettings(data="world", select="best", validate_every=2, **BRIEF)
    model = Model.at(check_here(finetune, "tiny", tmp_path / "tiny", *inputs, start, VQA, second, Numerics(), 0))
    scored = EvaluateSettings(batch_size=7, resamples=20)
    check_here(evaluate, "tiny", tmp_path / "evaluated", model, *inputs, VQA, scored, "test", Numerics())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tasks_world(tmp_path_factory.mktemp("tasks"))


def test_pretrain_on_task_labels(tasks: World, tmp_path: Path) -> None:
    kinds = {"itm_target": "task_label", "kinds": ("pair", "choice"), "matched": ("pair", "choice")}
    data = {"tasks": PretrainData(tasks.examples, tasks.shards)}
    settings = PretrainSettings.model_validate(BRIEF | kinds)
    check_here(pretrain, "task_labels", tmp_path, data, tasks.vocabulary, None, SMALL, settings, Numerics(), 0)


@pytest.mark.parametrize(
    ("name", "changes"), [("nlvr2", {}), ("classification", {"positive": "glad"}), ("choice", {"protocol": "vcr"})]
)
def test_finetune_and_evaluate_labels(name: str, changes: dict[str, object], tasks: World, tmp_path: Path) -> None:
    """Statements over two images, labels, and choices whose words name regions."""
    settings = OBJECTIVES[name].settings.model_validate({"objective": name, "data": "tasks", **BRIEF, **changes})
    inputs, plugin = (tasks.examples, tasks.shards), objective(name)
    start = Initialization(tasks.vocabulary, SMALL)
    model = Model.at(check_here(finetune, name, tmp_path / "tuned", *inputs, start, plugin, settings, Numerics(), 0))
    scored = EvaluateSettings(batch_size=7, resamples=20)
    check_here(evaluate, name, tmp_path / "evaluated", model, *inputs, plugin, scored, "test", Numerics())


@pytest.mark.parametrize(
    ("label", "changes"),
    [("phrases", {}), ("phrases_other", {"protocol": "merged", "loss": "cross_entropy", "as_original": True})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_finetune_and_evaluate_phrases(label: str, changes: dict[str, object], tmp_path: Path) -> None:
    world = make_grounding_world(tmp_path / "world", 20)
    settings = GroundingSettings.model_validate(
        {"objective": "grounding", "data": "phrases", "floor": 0, **BRIEF, **changes}
    )
    inputs, plugin = (world.examples, world.shards), objective("grounding")
    start = Initialization(world.vocabulary, SMALL)
    model = Model.at(check_here(finetune, label, tmp_path / "tuned", *inputs, start, plugin, settings, Numerics(), 0))
    scored = EvaluateSettings(batch_size=7, resamples=20)
    check_here(evaluate, label, tmp_path / "evaluated", model, *inputs, plugin, scored, "test", Numerics())
    alike = settings.analysed()
    assert alike is not None
    check_here(heads, label, tmp_path / "heads", model, *inputs, alike, "test", Numerics())


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("captions", {}),
        ("captions_next", {"predict": "next", "tags": True, "max_text": 22, "tag_pieces": 8, "label_smoothing": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_finetune_and_evaluate_captioning(label: str, changes: dict[str, object], world: World, tmp_path: Path) -> None:
    settings = CaptioningSettings.model_validate({"data": "world", **BRIEF, **changes})
    inputs, plugin = (world.examples, world.shards), objective("captioning")
    start = Initialization(world.vocabulary, SMALL)
    model = Model.at(check_here(finetune, label, tmp_path / "tuned", *inputs, start, plugin, settings, Numerics(), 0))
    scored = CaptioningEvaluateSettings(batch_size=7, resamples=20, beams=2, length=6)
    check_here(evaluate, label, tmp_path / "evaluated", model, *inputs, plugin, scored, "test", Numerics())


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("retrieval", {}),
        ("retrieval_batch", {"negatives": "batch", "loss": "margin"}),
        ("retrieval_mined", {"negatives": "mined", "mine_every": 2, "candidates": 5, "hard": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_finetune_and_evaluate_captions(label: str, changes: dict[str, object], tmp_path: Path) -> None:
    world = make_retrieval_world(tmp_path / "world")
    settings = RetrievalSettings.model_validate({"objective": "retrieval", "data": "captions", **BRIEF, **changes})
    inputs, plugin = (world.examples, world.shards), objective("retrieval")
    start = Initialization(world.vocabulary, SMALL)
    model = Model.at(check_here(finetune, label, tmp_path / "tuned", *inputs, start, plugin, settings, Numerics(), 0))
    scored = RetrievalEvaluateSettings(rerank=5, folds=2, resamples=20)
    check_here(evaluate, label, tmp_path / "evaluated", model, *inputs, plugin, scored, "test", Numerics())
