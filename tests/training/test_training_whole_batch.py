"""The loss is that of the whole batch: parts and processes change rounding, never the minimised loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.objectives_world import MODEL, World, make_world
from regions.regions_tiny import scenes, small_spec
from safetensors.torch import load_file, save_file
from torch import nn
from training.training_toy import in_processes, job

from vbert.artifacts.steps.settings import Numerics
from vbert.model.start import Initialization
from vbert.objectives import load
from vbert.objectives.batches import ExampleRows
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.downstream import Finetuning
from vbert.objectives.pretraining.mlm_itm import PretrainData, Pretraining
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.vqa import VqaSettings
from vbert.regions.detector import DetectorTraining
from vbert.regions.training import DetectionTraining
from vbert.training.loop import Schedule, Trainable, run_training
from vbert.training.sampler import items

# As the demo pre-trains.
DEMO = PretrainSettings(
    steps=1, batch_size=32, learning_rate=1e-3, itm_rows="unmasked", altered=0.5, itm_share=0.25, content=0.3,
    answers=1.0, validation_examples=0,
)  # fmt: skip


def doubled(trainable: Any) -> Any:
    """The trainable in float64, batches included."""
    trainable.model.double()
    collate = trainable.collate

    def collated(items: list[tuple[int, int]]) -> Any:
        batch = collate(items)
        if hasattr(batch, "pixels"):
            batch.pixels = batch.pixels.double()
            batch.targets = [{**t, "boxes": t["boxes"].double()} for t in batch.targets]
        else:
            batch.packed.visual = batch.packed.visual.double()
            if "scores" in batch.tensors:
                batch.tensors["scores"] = batch.tensors["scores"].double()
        return batch

    trainable.collate = collated
    return trainable


def pretraining(world: World, _: Path) -> tuple[Trainable, Schedule]:
    model = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0)
    data = {"world": PretrainData(world.examples, world.shards)}
    return doubled(Pretraining(data, world.vocabulary.encoder(), model, DEMO, 0)), DEMO


def answering(world: World, _: Path) -> tuple[Trainable, Schedule]:
    settings = VqaSettings(data="world", steps=1, batch_size=32, learning_rate=1e-3, validation_examples=0)
    objective = load("vqa")
    rows = ExampleRows(world.examples, world.shards, ["train"], objective.KINDS)
    head = {**objective.head(rows[list(range(len(rows)))], settings), "max_text": 40, "images": "own"}
    config = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0).encoder.config
    side = ObjectiveDataset(objective, head, world.vocabulary.encoder(), rows, world.shards, config.box_input)
    return doubled(Finetuning(objective.model(config, head, 0), side, side, settings)), settings


def detection(_: World, folder: Path) -> tuple[Trainable, Schedule]:
    """All is sampled, as what is drawn differs by part; images of one size, as parts pad to their largest; and norms
    with the statistics of before."""
    training = DetectorTraining(data="tiny", steps=1, batch_size=16)
    images = scenes(folder / "scenes", 32, side=32)
    trainable: Any = doubled(DetectionTraining(images, small_spec(), training, 0))
    trainable.model.rpn.fg_bg_sampler.batch_size_per_image = 2000
    trainable.model.roi_heads.fg_bg_sampler.batch_size_per_image = 200
    for module in trainable.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().train = lambda mode=True, module=module: module
    collate = trainable.collate

    def some_without_attributes(items: list[tuple[int, int]]) -> Any:
        batch = collate(items)
        for (i, _), target in zip(items, batch.targets, strict=True):
            if i % 3:
                target["attributes"].zero_()
        return batch

    trainable.collate = some_without_attributes
    trainable.validate = lambda *_: None
    return trainable, training


def step(job: Any, trainable: Trainable, schedule: Schedule, kept: Path) -> dict[str, float]:
    """What the curves say of one step; its gradients, as they stand after the backward passes, are in the file `kept`
    of the last rank."""

    def keep(model: nn.Module, _: Schedule) -> None:
        if job.rank == job.world - 1:
            save_file({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbert.training.loop.clip_gradients", keep)
        (row,) = run_training(job, trainable, schedule, Numerics(), 3)
    return row


@pytest.mark.parametrize("make", [pretraining, answering, detection])
def test_parts_and_processes_leave_the_gradients(
    make: Callable[[World, Path], tuple[Trainable, Schedule]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 to 1e-12 of the largest: a batch at once, in parts, and in two processes of two parts each."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of boxes and pooled maps
    small = make_world(tmp_path / "world")
    trainable, schedule = make(small, tmp_path / "whole")
    logged = step(job(tmp_path / "whole"), trainable, schedule, tmp_path / "whole.safetensors")
    whole = load_file(tmp_path / "whole.safetensors")
    assert {tensor.dtype for tensor in whole.values()} == {torch.float64}
    cuts = {"4": (1, 4), "each": (1, schedule.batch_size), "2 × 2": (2, 2)}
    for name, (world, parts) in cuts.items():
        trainable, _ = make(small, tmp_path / name)
        cut, kept = schedule.model_copy(update={"accumulate": parts}), tmp_path / f"{name}.safetensors"
        if world == 1:
            row = step(job(tmp_path / name), trainable, cut, kept)
        else:
            row = in_processes(tmp_path / name, world, [trainable] * world, cut, kept, run=step)[0]
        gradients = load_file(kept)
        assert gradients.keys() == whole.keys()
        for key, true in whole.items():
            difference = (gradients[key] - true).abs().max() / true.abs().max().clamp(min=1e-30)
            assert difference <= 1e-12, (name, key, float(difference))
        assert row == pytest.approx(logged, rel=1e-12), name


def test_some_parts_have_nothing_to_match_or_to_find(tmp_path: Path) -> None:
    """What the test above is to include."""
    trainable, _ = pretraining(make_world(tmp_path), tmp_path)
    counts = [trainable.counts(trainable.collate([item])) for item in items(trainable.size(), 3, 0, 32)]
    assert {bool(each["mlm"]) for each in counts} == {bool(each["itm"]) for each in counts} == {True, False}
