"""The loop: the same bits however it is cut, stopped, killed or fed."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from processes import alive, until
from safetensors.torch import load_file
from training.training_toy import ToyTrainable, in_processes, job, train
from transformers import get_scheduler

from vbert.artifacts.making import worker_main, workers
from vbert.artifacts.steps.settings import Numerics, Since
from vbert.artifacts.steps.stage import Stopped
from vbert.errors import BuildError, UserError
from vbert.training import loop
from vbert.training.checkpoint import Checkpoints, TrainingState
from vbert.training.schedule import Schedule

SCHEDULE = Schedule(steps=23, batch_size=12, learning_rate=1e-2, validate_every=10)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return train(job(tmp_path_factory.mktemp("golden")), ToyTrainable(), SCHEDULE)


@pytest.mark.parametrize("machine", [{"loader_workers": 1}, {"loader_workers": 2}, {"checkpoint_steps": 3}])
def test_the_machine_changes_no_bit(golden: dict[str, object], tmp_path: Path, machine: dict[str, int]) -> None:
    assert train(job(tmp_path, **machine), ToyTrainable(), SCHEDULE)["digest"] == golden["digest"]


def test_the_seed_changes_bits(golden: dict[str, object], tmp_path: Path) -> None:
    assert train(job(tmp_path), ToyTrainable(seed=1), SCHEDULE)["digest"] != golden["digest"]


@pytest.mark.parametrize("kill_at", [1, 5, 6, 9, 17, 23])
def test_sigkill_then_resume(golden: dict[str, object], tmp_path: Path, kill_at: int) -> None:
    assert in_processes(tmp_path, 1, [ToyTrainable(kill_at=kill_at)], SCHEDULE) == [-signal.SIGKILL]
    resumed = train(job(tmp_path), ToyTrainable(), SCHEDULE)
    assert resumed["digest"] == golden["digest"]
    assert resumed["calls"] == SCHEDULE.steps - (kill_at - 1) // 5 * 5  # no finished checkpoint interval is redone


def test_sigkill_again_and_again_with_workers(golden: dict[str, object], tmp_path: Path) -> None:
    for kill_at in (3, 7, 6, 8):
        in_processes(tmp_path, 1, [ToyTrainable(kill_at=kill_at)], SCHEDULE, loader_workers=1, checkpoint_steps=2)
    resumed = train(job(tmp_path, checkpoint_steps=2), ToyTrainable(), SCHEDULE)
    assert resumed["digest"] == golden["digest"]
    assert resumed["calls"] < 10


# At 700 the gradients fill two of DDP's buckets, which it regroups after its first step: with 3 ranks another order of
# sums, hence the throw-away step.
@pytest.mark.parametrize(("world", "width"), [(2, 32), pytest.param(3, 700, marks=pytest.mark.slow)])
def test_ranks_killed_and_resumed(tmp_path: Path, world: int, width: int) -> None:
    trainables = [ToyTrainable(width=width) for _ in range(world)]
    whole = in_processes(tmp_path / "whole", world, trainables, SCHEDULE)
    for victim, kill_at in ((0, 8), (world - 1, 9)):
        broken = list(trainables)
        broken[victim] = ToyTrainable(width=width, kill_at=kill_at)
        results = in_processes(tmp_path / "killed", world, broken, SCHEDULE)
        assert results[victim] == -signal.SIGKILL
    resumed = in_processes(tmp_path / "killed", world, trainables, SCHEDULE)
    assert resumed[0]["digest"] == whole[0]["digest"]
    assert resumed[0]["calls"] < whole[0]["calls"]


def test_ranks_split_the_batch(golden: dict[str, object], tmp_path: Path) -> None:
    """Without dropout, two ranks make the same model as one but for rounding."""
    models = []
    for world in (1, 2):
        results = in_processes(tmp_path / str(world), world, [ToyTrainable(dropout=0.0)] * world, SCHEDULE)
        assert all(isinstance(result, dict) for result in results)
        models.append(load_file(tmp_path / str(world) / "checkpoints" / "000023" / "model.safetensors"))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-3, atol=1e-4)


def test_accumulation_is_the_same_batch(tmp_path: Path) -> None:
    models = []
    for parts in (1, 3):
        train(job(tmp_path / str(parts)), ToyTrainable(dropout=0.0), SCHEDULE.model_copy(update={"accumulate": parts}))
        models.append(load_file(tmp_path / str(parts) / "checkpoints" / "000023" / "model.safetensors"))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-3, atol=1e-4)


def test_sigterm_leaves_a_checkpoint(
    golden: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the child's handler notes it: the step under way is finished and kept."""
    previous = signal.signal(signal.SIGTERM, lambda *_: monkeypatch.setattr(worker_main, "_stopping", True))
    try:
        with pytest.raises(Stopped, match="step 8"):
            train(job(tmp_path, checkpoint_steps=100), ToyTrainable(term_at=8), SCHEDULE)
    finally:
        signal.signal(signal.SIGTERM, previous)
    monkeypatch.undo()
    resumed = train(job(tmp_path), ToyTrainable(), SCHEDULE)
    assert resumed == golden | {"calls": 15}


@pytest.fixture
def term(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM as a child's handler notes it."""
    previous = signal.signal(signal.SIGTERM, lambda *_: monkeypatch.setattr(worker_main, "_stopping", True))
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.usefixtures("term")
@pytest.mark.parametrize(
    ("trainable", "said", "validations"),
    [
        (ToyTrainable(term_at=8), "stopped at step 8", 0),
        (ToyTrainable(term_in_validation=2), "stopped at step 20, before its validation", 2),
        (ToyTrainable(term_at=20), "stopped at step 20", 1),  # its validation would begin now
        (ToyTrainable(term_at=23), "stopped at step 23", 2),  # the last one, likewise
    ],
)
def test_sigterm_is_seen_at_every_step_where_losses_are_read_seldom(
    golden: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainable: ToyTrainable,
    said: str,
    validations: int,
) -> None:
    """As on a GPU; and no validation begins, or is believed, meanwhile."""
    monkeypatch.setitem(loop.LOG_EVERY, "cpu", 10)
    with pytest.raises(Stopped, match=said):
        train(job(tmp_path, checkpoint_steps=100), trainable, SCHEDULE)
    assert trainable.validations == validations
    monkeypatch.setattr(worker_main, "_stopping", False)
    assert train(job(tmp_path, checkpoint_steps=100), ToyTrainable(), SCHEDULE) == golden | {
        "calls": 23 - trainable.calls
    }


def stopped(trainable: ToyTrainable, at: Path, rank: int, port: int) -> None:
    worker_main._working = True
    signal.signal(signal.SIGTERM, worker_main._stop)
    loop.LOG_EVERY["cpu"] = 10
    os.environ.update(workers.rank_environment(rank, 2, port))
    try:
        train(job(at, rank, 2, checkpoint_steps=100), trainable, SCHEDULE)
    except Stopped as stop:
        (at / f"rank{rank}").write_text(str(stop))


def test_ranks_stop_together_at_the_step_at_which_one_is_told(tmp_path: Path) -> None:
    context, port = multiprocessing.get_context("fork"), workers.free_port()
    ranks = [
        context.Process(target=stopped, args=(ToyTrainable(term_at=6 if rank else -1), tmp_path, rank, port))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    # The first call is that of the throw-away step of a fresh DDP.
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["training stopped at step 5"] * 2
    assert (tmp_path / "checkpoints" / "000005").is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damaged_checkpoint_gives_way(
    golden: dict[str, object], tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    in_processes(tmp_path, 1, [ToyTrainable(kill_at=18)], SCHEDULE)
    path = tmp_path / "checkpoints" / "000015" / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "flip":
        data[len(data) // 2] ^= 1
    if how != "gone":
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    resumed = train(job(tmp_path), ToyTrainable(), SCHEDULE)
    assert resumed == golden | {"calls": 13}
    assert "000015 is damaged" in caplog.text


def test_half_a_checkpoint_of_a_killed_writer_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "digest")
    checkpoints.save(TrainingState("digest", step=5), {"model": {}, "optimizer": {}})
    (tmp_path / "0123.part").mkdir()
    (tmp_path / "0123.part" / "model.safetensors").write_text("half")
    found = checkpoints.latest()
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["000005"]


def test_best_is_kept(tmp_path: Path) -> None:
    """The model of step 10, the largest `late`, is given back; also when the run is killed behind it."""
    early = SCHEDULE.model_copy(update={"steps": 20})
    whole = train(job(tmp_path / "a"), ToyTrainable(best_at=10), early, best="validation/late")
    last = train(job(tmp_path / "b"), ToyTrainable(), early)
    assert whole["digest"] != last["digest"]
    in_processes(
        tmp_path / "c", 1, [ToyTrainable(best_at=10, kill_at=14)], early, ToyTrainable.one_thread, "validation/late"
    )
    resumed = ToyTrainable(best_at=10)
    resumed.calls = 10
    assert train(job(tmp_path / "c"), resumed, early, best="validation/late")["digest"] == whole["digest"]
    assert not list((tmp_path / "c" / "checkpoints").glob("best-000020"))


def test_a_lost_best_model_is_found_again(tmp_path: Path) -> None:
    whole = train(job(tmp_path / "a"), ToyTrainable(best_at=10), SCHEDULE, best="validation/late")
    in_processes(
        tmp_path / "c", 1, [ToyTrainable(best_at=10, kill_at=14)], SCHEDULE, ToyTrainable.one_thread, "validation/late"
    )
    (tmp_path / "c" / "checkpoints" / "best-000010" / "model.safetensors").unlink()
    resumed = ToyTrainable(best_at=10)
    resumed.calls = 5
    assert train(job(tmp_path / "c"), resumed, SCHEDULE, best="validation/late")["digest"] == whole["digest"]


def test_a_loss_that_is_not_finite_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"step 7: loss nan.*lower learning_rate \(0.01\)"):
        train(job(tmp_path), ToyTrainable(nan_at=7), SCHEDULE)


def test_a_setting_added_since_leaves_checkpoints_valid(golden: dict[str, object], tmp_path: Path) -> None:
    """Its fingerprint is the same, so the upgraded code finds them: they are gone on from, not refused."""

    class Later(Schedule):
        added: Annotated[int, Since(0)] = 0

    in_processes(tmp_path, 1, [ToyTrainable(kill_at=17)], SCHEDULE)
    resumed = train(job(tmp_path), ToyTrainable(), Later(**SCHEDULE.model_dump()))
    assert (resumed["digest"], resumed["calls"]) == (golden["digest"], SCHEDULE.steps - 15)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of processes × accumulate = 5; set it to 15"):
        train(job(tmp_path), ToyTrainable(), SCHEDULE.model_copy(update={"accumulate": 5}))
    train(job(tmp_path), ToyTrainable(), SCHEDULE)
    with pytest.raises(BuildError, match="checkpoint of other settings"):
        train(job(tmp_path), ToyTrainable(), SCHEDULE.model_copy(update={"learning_rate": 0.1}))


def test_precisions_differ_and_repeat(tmp_path: Path) -> None:
    runs = [train(job(tmp_path / str(i)), ToyTrainable(), SCHEDULE, Numerics(precision="bf16")) for i in range(2)]
    assert runs[0]["digest"] == runs[1]["digest"]


def test_zero_steps_leave_the_model_as_it_is(tmp_path: Path) -> None:
    trainable = ToyTrainable()
    before = {name: tensor.clone() for name, tensor in trainable.model.state_dict().items()}
    assert train(job(tmp_path), trainable, SCHEDULE.model_copy(update={"steps": 0}))["rows"] == 0
    assert all((before[name] == tensor).all() for name, tensor in trainable.model.state_dict().items())


def test_sigterm_is_not_for_the_loader_workers(golden: dict[str, object], tmp_path: Path) -> None:
    (trained,) = in_processes(tmp_path, 1, [ToyTrainable(term_workers_at=7)], SCHEDULE, loader_workers=2)
    assert trained["digest"] == golden["digest"]


def test_loader_workers_die_with_a_killed_trainer(tmp_path: Path) -> None:
    in_processes(tmp_path, 1, [ToyTrainable(kill_at=6, note=tmp_path / "pids")], SCHEDULE, loader_workers=2)
    pids = {int(p.name) for p in (tmp_path / "pids").iterdir()}
    assert len(pids) == 2
    until(lambda: not any(map(alive, pids)), 30, lambda: "a loader worker outlived its trainer")


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.1879, 1.0])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_rates_are_those_of_transformers(steps: int, warmup: float, kind: Any) -> None:
    schedule = Schedule(steps=steps, learning_rate=0.3, warmup=warmup, schedule=kind)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, math.ceil(steps * warmup), steps)
    for step in range(steps):
        assert schedule.rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-15), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.1879])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_rates_of_bert_adam_are_the_originals(steps: int, warmup: float, kind: Any) -> None:
    """pytorch_pretrained_bert's schedules, of the step's progress before the step is counted."""
    schedule = Schedule(steps=steps, learning_rate=0.3, warmup=warmup, schedule=kind, optimizer="bert_adam")
    for step in range(steps):
        progress = step / steps
        if progress < warmup:
            rate = progress / warmup
        elif kind == "linear":
            rate = (progress - 1) / (warmup - 1)
        else:
            rate = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) if kind == "cosine" else 1.0
        assert schedule.rate(step) == pytest.approx(0.3 * rate, abs=1e-15), step
