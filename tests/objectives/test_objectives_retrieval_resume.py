"""Retrieval, killed behind a search for negatives, in one, in training and in a matrix of pairs: the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.objectives_world import MODEL, World, job
from objectives.retrieval_world import evaluate, finetune, make_retrieval_world
from objectives.test_objectives_resume import files, killed

from vbert.artifacts.steps.stage import Stopped
from vbert.model.retrieval import PairScorer
from vbert.objectives import retrieval, retrieval_blocks
from vbert.objectives.downstream import Finetuning
from vbert.objectives.retrieval_blocks import PairBlocks
from vbert.objectives.trained import Model
from vbert.training.loop import _TrainingLoop

DROPOUT = MODEL.model_copy(update={"layers": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1})
MINED: dict[str, Any] = {
    "sizes": DROPOUT, "steps": 13, "negatives": "mined", "mine_every": 5, "candidates": 12, "hard": 3, "select": "best",
    "validate_every": 6, "batch_size": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_retrieval_world(tmp_path_factory.mktemp("retrieval") / "world")


def train(folder: Path, world: World) -> None:
    finetune(folder, world, **MINED)


def predict(folder: Path, world: World, model: Path, rerank: int | str) -> None:
    evaluate(folder, world, Model.at(model), rerank=rerank)


def test_killed_beside_mined_negatives_it_ends_in_the_same_bits(world: World, tmp_path: Path) -> None:
    """Checkpoints stand at steps 4, 8, 12, and behind each search, at 0, 5 and 10; searches are calls 1, 2 and 3."""
    train(tmp_path / "whole", world)
    cut = (tmp_path / "cut", world)
    assert killed(retrieval, "mine", 1, train, *cut) == -signal.SIGKILL  # before anything is kept
    assert killed(_TrainingLoop, "_step", 1, train, *cut) == -signal.SIGKILL  # behind the first search
    assert checkpoints(tmp_path / "cut") == [0]
    assert killed(retrieval, "mine", 1, train, *cut) == -signal.SIGKILL  # the second one: the first isn't made again
    assert checkpoints(tmp_path / "cut") == [0, 4]
    assert killed(Finetuning, "loss", 4, train, *cut) == -signal.SIGKILL  # at step 7
    assert checkpoints(tmp_path / "cut") == [4, 5]
    train(*cut)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "scratch" / "checkpoints").glob("0*"))


def test_mined_negatives_change_the_model(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found goes into the batches: other findings, other bits."""
    train(tmp_path / "one", world)
    whole = retrieval.mine
    monkeypatch.setattr(retrieval, "mine", lambda *given: {name: t.roll(1, 0) for name, t in whole(*given).items()})
    train(tmp_path / "other", world)
    assert files(tmp_path / "one")["model.safetensors"] != files(tmp_path / "other")["model.safetensors"]


def test_stopped_in_a_search_it_searches_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", world)

    def stopped(*_: Any) -> dict[str, torch.Tensor]:
        raise Stopped("stopped between two steps")

    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "mine", stopped)
        with pytest.raises(Stopped, match="mined"):
            train(tmp_path / "cut", world)
    train(tmp_path / "cut", world)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("rerank", ["all", 6])
def test_killed_in_a_matrix_of_pairs_it_ends_in_the_same_bits(
    rerank: int | str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are made stay; what is left is made alone."""
    monkeypatch.setattr(retrieval_blocks, "BLOCK", 60)
    finetune(tmp_path / "m", world, steps=2, sizes=DROPOUT)
    model = tmp_path / "m" / "out"
    predict(tmp_path / "whole", world, model, rerank)
    cut = (tmp_path / "cut", world, model, rerank)
    assert killed(PairBlocks, "make", 3, predict, *cut) == -signal.SIGKILL
    made = sorted((tmp_path / "cut" / "scratch" / "predictions").glob("*.pairs"))
    assert len(made) == 2
    before = [path.stat().st_mtime_ns for path in made]
    assert killed(PairScorer, "scores", 1, predict, *cut) == -signal.SIGKILL
    predict(*cut)
    assert [path.stat().st_mtime_ns for path in made] == before
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_ranks_share_the_blocks(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbert.artifacts.steps.settings import Numerics
    from vbert.objectives import objective
    from vbert.objectives.downstream import run_predict
    from vbert.objectives.retrieval import RetrievalEvaluateSettings

    monkeypatch.setattr(retrieval_blocks, "BLOCK", 60)
    model = finetune(tmp_path / "m", world, steps=2, sizes=DROPOUT)
    predict(tmp_path / "whole", world, tmp_path / "m" / "out", 6)
    settings = RetrievalEvaluateSettings(rerank=6, resamples=50)
    for rank in (1, 0):
        inputs = (model, world.examples, world.shards, objective("retrieval"), settings, "test", Numerics())
        run_predict(job(tmp_path / "both", rank, 2), *inputs)
    predict(tmp_path / "both", world, tmp_path / "m" / "out", 6)
    assert files(tmp_path / "both") == files(tmp_path / "whole")
