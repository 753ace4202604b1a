"""A pre-training that goes on from an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objectives.objectives_world import MODEL, World, job, make_world

from vbert.artifacts.steps.settings import Numerics
from vbert.errors import UserError
from vbert.model.start import Initialization
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.run import run_pretrain
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model
from vbert.regions.shards import Shards

SETTINGS = PretrainSettings(steps=2, batch_size=8, learning_rate=1e-3, validation_examples=4)


def pretrain(folder: Path, world: World, start: Model | Initialization, settings: PretrainSettings) -> Model:
    data = {"world": PretrainData(world.examples, world.shards)}
    run_pretrain(job(folder), data, start, settings, Numerics(), 0)
    return Model.at(folder / "out")


def test_it_keeps_weights_vocabulary_and_statistics_of_the_earlier_one(tmp_path: Path) -> None:
    few, more = make_world(tmp_path / "few", images=60), make_world(tmp_path / "more", images=120)
    first = pretrain(tmp_path / "a", few, Initialization(few.vocabulary, MODEL), SETTINGS)
    still = pretrain(tmp_path / "b", more, first, SETTINGS.model_copy(update={"learning_rate": 0.0}))
    before, after = first.load().state_dict(), still.load().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the mean and deviation among them
    assert still.config() == first.config()
    assert still.vocabulary().encoder().tokens == first.vocabulary().encoder().tokens
    onwards = pretrain(tmp_path / "c", more, first, SETTINGS).load().state_dict()
    assert not torch.equal(onwards["encoder.pooler.weight"], before["encoder.pooler.weight"])
    assert torch.equal(onwards["encoder.embeddings.feature_mean"], before["encoder.embeddings.feature_mean"])


def test_other_features_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    first = pretrain(tmp_path / "a", world, Initialization(world.vocabulary, MODEL), SETTINGS)
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in world.shards.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes().replace(b'"detector": "none"', b'"detector": "other"'))
    with pytest.raises(UserError, match=r"detector is 'none' for the start \(Model\), 'other' for the regions"):
        pretrain(tmp_path / "b", world._replace(shards=Shards.at(folder)), first, SETTINGS)
