"""Every objective, killed while it trains and while it predicts, with loader workers and without: the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from objectives.grounding_world import make_grounding_world
from objectives.objectives_world import MODEL, World, job, make_world
from objectives.tasks_world import BRIEF, make_tasks_world

from vbert.artifacts.steps.settings import Numerics
from vbert.metrics.evaluation import Evaluation
from vbert.model.start import Initialization
from vbert.objectives import OBJECTIVES, downstream, load, objective
from vbert.objectives.downstream import Finetuning, run_finetune, run_predict, run_score
from vbert.objectives.trained import Model

ELSEWHERE = {"visual_entailment", "retrieval"}  # as classification; in test_objectives_retrieval_resume.py
OFTEN = ("vqa", "choice")  # one input an example, and several; the others are slow
TASKS = [
    name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
    for name in OBJECTIVES
    if name not in ELSEWHERE
]
WITHIN = {"captioning": ("readable", 20)}  # a call within the second chunk, where it isn't that of `decode`
DROPOUT = MODEL.model_copy(update={"hidden_dropout": 0.1, "attention_dropout": 0.1})
STEPS = 17


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, World]:
    """The worlds of tasks by their names; "" is that of the others."""
    folder = tmp_path_factory.mktemp("worlds")
    (folder / "tasks").mkdir()
    return {
        "": make_tasks_world(folder / "tasks"),
        "grounding": make_grounding_world(folder / "grounding"),
        "captioning": make_world(folder / "captioning", 240),
    }


def train(folder: Path, world: World, name: str, workers: int, teacher: Model | None = None) -> None:
    settings = OBJECTIVES[name].settings.model_validate(
        {"objective": name, **BRIEF, "batch_size": 16, "steps": STEPS, "validate_every": 6, "select": "best"}
    )
    here = job(folder, loader_workers=workers, checkpoint_steps=4)
    start = Initialization(world.vocabulary, DROPOUT)
    run_finetune(here, world.examples, world.shards, start, objective(name), settings, Numerics(), 3, None, teacher)


def predict(folder: Path, world: World, name: str, model: Path) -> None:
    settings = OBJECTIVES[name].settings.model_fields["evaluate"].annotation(batch_size=6, resamples=50)  # type: ignore[misc]
    plugin, here = objective(name), job(folder)
    inputs = (Model.at(model), world.examples, world.shards, plugin, settings, "test")
    run_predict(here, *inputs, Numerics())
    run_score(here, *inputs)


def killed(of: Any, method: str, call: int, run: Callable[..., None], *arguments: Any) -> int | None:
    """`run` in a process of its own, which a SIGKILL ends in that call of the method. Its exit code."""

    def child() -> None:
        whole, calls = getattr(of, method), iter(range(1, 1000))

        def counted(*given: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*given)

        setattr(of, method, counted)
        run(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


@pytest.mark.parametrize("name", TASKS)
def test_killed_in_training_and_in_prediction_it_ends_in_the_same_bits(
    name: str, worlds: Mapping[str, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained without a break and without workers; and killed twice with two workers. Then predictions in chunks, of
    which the finished ones stay."""
    monkeypatch.setattr(downstream, "CHUNK", 12)
    world = worlds.get(name, worlds[""])
    train(tmp_path / "whole", world, name, 0)
    for call in (7, 6):  # behind the checkpoints of steps 4 and 8
        assert killed(Finetuning, "loss", call, train, tmp_path / "cut", world, name, 2) == -signal.SIGKILL
    train(tmp_path / "cut", world, name, 2)
    model = files(tmp_path / "whole")
    assert files(tmp_path / "cut") == model
    assert "model.safetensors" in model

    trained, (method, call) = tmp_path / "whole" / "out", WITHIN.get(name, ("decode", 4))
    owner = import_module(getattr(load(name), method).__module__)
    predict(tmp_path / "in one", world, name, trained)
    assert killed(owner, method, call, predict, tmp_path / "in two", world, name, trained) == -signal.SIGKILL
    first, *_ = chunks = sorted((tmp_path / "in two" / "scratch" / "predictions").glob("*.jsonl"))
    assert len(chunks) == 1
    kept = first.stat().st_mtime_ns
    predict(tmp_path / "in two", world, name, trained)
    assert first.stat().st_mtime_ns == kept
    assert files(tmp_path / "in two") == files(tmp_path / "in one")
    assert Evaluation.at(tmp_path / "in one" / "out").counts()["answered"] >= 24


def test_killed_while_it_learns_from_a_teacher_it_ends_in_the_same_bits(
    worlds: Mapping[str, World], tmp_path: Path
) -> None:
    """The teacher has dropout of its own, and changes with no step."""
    world = worlds[""]
    train(tmp_path / "teacher", world, "vqa", 0)
    teacher = Model.at(tmp_path / "teacher" / "out")
    train(tmp_path / "whole", world, "vqa", 0, teacher)
    assert killed(Finetuning, "loss", 7, train, tmp_path / "cut", world, "vqa", 2, teacher) == -signal.SIGKILL
    train(tmp_path / "cut", world, "vqa", 2, teacher)
    assert files(tmp_path / "cut") == files(tmp_path / "whole") != files(tmp_path / "teacher")
    assert teacher.load().encoder.config.hidden_dropout > 0  # type: ignore[union-attr]
