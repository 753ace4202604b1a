"""Child processes: killed ones are replaced, orphans die, exceptions travel, deadlines and SIGTERM are kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from artifacts import toy
from processes import alive, until

from vbert.artifacts.making import worker_main, workers
from vbert.artifacts.making.engine import Engine, Events, build_here
from vbert.artifacts.making.workers import ChildDied, Overdue, Workers
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Build, Figures, Job, Machine, Stopped, stage
from vbert.artifacts.store import manifest
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError, Damaged, UserError

TESTS = Path(__file__).parents[1]


# ---------------------------------------------------------------------- what runs in children


def who() -> int:
    return os.getpid()


def die(signal_: int, once: Path | None = None) -> str:
    if once is not None and once.exists():
        return "alive"
    if once is not None:
        once.touch()
    os.kill(os.getpid(), signal_)
    time.sleep(60)
    raise AssertionError


def leave(code: int) -> None:
    os._exit(code)


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def fail(kind: str) -> None:
    if kind == "damaged":
        raise Damaged("stage", "0" * 64, "file", "reason")
    if kind == "timeout":
        raise TimeoutError("the server did not answer")
    if kind == "unpicklable":
        raise Unpicklable(threading.Lock())
    if kind == "exit":
        sys.exit(3)
    deeper: dict[str, int] = {}
    deeper["missing"] += 1


class Unpicklable(Exception):
    pass


def big(megabytes: int) -> int:
    return len(b"x" * (megabytes << 20))


def back(data: bytes) -> bytes:
    return data


def resident() -> int:
    return psutil.Process().memory_info().rss


def until_told(report: Path) -> str:
    report.touch()
    for n in range(3000):
        if worker_main.stopping():
            raise Stopped
        worker_main.report(n, 3000)
        time.sleep(0.01)
    return "never told"


def deaf(report: Path) -> str:
    report.touch()
    time.sleep(0.3)
    return "finished"


def listening(report: Path, seconds: float) -> str:
    report.touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
    return "finished"


class Thing(Artifact):
    pass


@stage("children_unit", makes=Thing, version=1, retries=1, timeout=120.0)
def units(build: Build, kind: str, log: str, numerics: Numerics) -> Figures:
    build.each([(f"u{n}", n) for n in range(3)], partial(one, kind, Path(log)))
    return {"made": len(build.unit_figures())}


def one(kind: str, log: Path, job: Job, n: int) -> Figures:
    with open(log, "a") as out:
        out.write(f"{n}\n")
    tries = log.read_text().split().count(str(n))
    if n == 1 and (kind == "always" or (kind == "once" and tries == 1)):
        (job.directory / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 1 and kind == "error":
        raise ValueError("no such colour")
    (job.directory / f"{n}.txt").write_text(str(n))
    return {"n": n}


@stage("children_late", makes=Thing, version=1, retries=0, timeout=0.5)
def late(build: Build, where: str) -> Figures:
    if where == "unit":
        build.each([("u", 0)], dawdle)
        return {}
    return build.process(dawdle_job)


def dawdle(job: Job, n: int) -> Figures:
    time.sleep(60)
    return {}


def dawdle_job(job: Job) -> Figures:
    while not job.stopping:
        time.sleep(0.01)
    (job.scratch / "checkpoint").write_text("here")
    raise Stopped


@stage("children_ranks", makes=Thing, version=1)
def ranked(build: Build, numerics: Numerics, failing: int | None = None) -> Figures:
    return build.process(rank, failing, processes=numerics.processes)


@stage("children_refused", makes=Thing, version=1)
def refused(build: Build, kind: str) -> Figures:
    return build.process(refuse, kind)


def refuse(job: Job, kind: str) -> Figures:
    if kind == "user":
        raise UserError("no such label; write another", "more of it")
    raise BuildError("no label")


def rank(job: Job, failing: int | None) -> Figures:
    if job.rank == failing:
        raise ValueError(f"rank {job.rank} failed")
    while failing is not None:
        time.sleep(0.01)
        if job.stopping:
            raise Stopped
    told = {name: os.environ.get(name) for name in worker_main.RANK_VARIABLES}
    (job.directory / f"rank{job.rank}.json").write_text(json.dumps([job.rank, job.world, told]))
    job.progress(job.rank, job.world)
    return {"rank": job.rank}


# ---------------------------------------------------------------------- children


def test_a_child_is_kept_and_used_again() -> None:
    pool = Workers(1)
    first = pool.run(who)
    assert first != os.getpid()
    assert pool.run(who) == first
    pool.close()
    assert not psutil.pid_exists(first)


def test_a_child_that_died_idle_is_replaced_unseen() -> None:
    pool = Workers(1)
    first = pool.run(who)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # all its threads are gone; the pool is left to notice
    assert pool.run(who) != first
    pool.close()


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (die, (signal.SIGKILL,), r"was killed by SIGKILL \(out of memory\?\)"),
        (die, (signal.SIGSEGV,), "was killed by SIGSEGV"),
        (leave, (7,), "ended with exit code 7"),
    ],
)
def test_a_death_is_told(function: Any, arguments: tuple[Any, ...], said: str) -> None:
    pool = Workers(1)
    with pytest.raises(ChildDied, match=said):
        pool.run(function, *arguments)
    assert pool.run(sleep, 0.0) == "slept"
    pool.close()


def test_exceptions_travel_with_their_traceback() -> None:
    pool = Workers(1)
    with pytest.raises(KeyError) as caught:
        pool.run(fail, "")
    assert 'deeper["missing"] += 1' in caught.value.__notes__[0]
    with pytest.raises(Damaged, match="stage/00000000/file is damaged: reason") as damaged:
        pool.run(fail, "damaged")
    assert damaged.value.file == "file"
    with pytest.raises(BuildError, match="Unpicklable"):
        pool.run(fail, "unpicklable")
    with pytest.raises(SystemExit):
        pool.run(fail, "exit")
    with pytest.raises(Exception, match="pickle"):
        pool.run(lambda: None)
    pool.close()


def test_a_functions_own_timeout_is_no_deadline() -> None:
    pool = Workers(1)
    with pytest.raises(TimeoutError, match="the server did not answer"):
        pool.run(fail, "timeout", timeout=30)
    with pytest.raises(Overdue):
        pool.run(sleep, 60, timeout=0.3)
    pool.close()


def test_a_long_lived_childs_memory_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither arguments nor results of a call are held after it, however many calls there were."""
    pool = Workers(1)

    def after(rounds: int) -> int:
        for _ in range(rounds):
            pool.run(back, b"x" * (8 << 20))
            pool.run(big, 64)
        return int(pool.run(resident))

    first, last = after(2), after(12)
    process = psutil.Process(pool.run(who))
    pool.run(back, b"x" * (128 << 20))
    until(lambda: process.memory_info().rss < first + (64 << 20))
    with capsys.disabled():
        print(f" {first >> 20}, {last >> 20}, {process.memory_info().rss >> 20} MiB ", end="")
    assert last < first + (32 << 20)  # what the allocator keeps
    pool.close()


def test_sigterm_lets_a_call_leave_off(tmp_path: Path) -> None:
    pool = Workers(1)
    with pool.borrowed(1) as (child,):
        child.start(until_told, (tmp_path / "there",), {})
        until((tmp_path / "there").exists)
        child.process.terminate()
        with pytest.raises(Stopped):
            child.result(None, time.monotonic() + 20)
        child.process.wait(20)  # told to stop: it takes no other call
    pool.close()


def test_sigterm_while_sigterm_is_handled(tmp_path: Path) -> None:
    """A scheduler tells the whole group, and the parent its children."""
    child = workers.Worker()
    child.start(listening, (tmp_path / "there", 2.0), {})
    until((tmp_path / "there").exists)
    for n in range(2000):
        child.process.terminate()
        soon = time.perf_counter() + n % 100 / 1e6
        while time.perf_counter() < soon:
            pass
        child.process.terminate()
        time.sleep(0.0003)
    assert child.result(None, time.monotonic() + 20) == "finished"
    child.process.wait(20)
    child.close()


def test_several_that_do_not_heed_are_killed_after_one_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 1.0)
    several = [workers.Worker() for _ in range(3)]
    for number, child in enumerate(several):
        child.start(listening, (tmp_path / str(number), 60.0), {})
        until((tmp_path / str(number)).exists)
    began = time.monotonic()
    workers.terminate(several)
    assert time.monotonic() - began < 2.5, "it was a grace each"
    assert {child.process.poll() for child in several} == {-signal.SIGKILL}


def test_terminate_does_not_wait_for_nothing(tmp_path: Path) -> None:
    """A function that does not listen finishes; its child then goes, long before the grace is over."""
    child = workers.Worker()
    child.start(deaf, (tmp_path / "there",), {})
    until((tmp_path / "there").exists)
    began = time.monotonic()
    workers.terminate([child])
    assert time.monotonic() - began < workers.GRACE
    assert child.result(None, None) == "finished"
    child.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_their_parent(
    tmp_path: Path, how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
from artifacts.test_artifacts_children import *
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
pool = Workers(2)
def run(n): return pool.run(busy, Path({str(tmp_path)!r}) / str(n))
with ThreadPoolExecutor(2) as threads: list(threads.map(run, range(2)))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: all((tmp_path / str(n)).exists() and (tmp_path / str(n)).read_text() for n in range(2)))
    pids = [int((tmp_path / str(n)).read_text()) for n in range(2)]
    os.kill(parent.pid, how)
    parent.wait(60)
    began = time.monotonic()
    until(lambda: not any(alive(pid) for pid in pids))
    with capsys.disabled():
        print(f" {time.monotonic() - began:.2f} s ", end="")


def busy(report: Path) -> None:
    report.write_text(str(os.getpid()))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(1000))


# ---------------------------------------------------------------------- devices


def seen(seconds: float = 0.0) -> tuple[str | None, int]:
    time.sleep(seconds)
    return os.environ.get(workers.DEVICES), os.getpid()


def seen_at_once(pool: Workers, count: int) -> list[tuple[str | None, int]]:
    with pool.borrowed(count) as found:
        for child in found:
            child.start(seen, (), {})
        return [child.result(None, None) for child in found]


def test_child_i_sees_device_i_alone_and_its_successor_too() -> None:
    pool = Workers(5, ["0", "1", "GPU-two"])
    first = seen_at_once(pool, 5)
    assert [device for device, _ in first] == ["0", "1", "GPU-two", "0", "1"]
    _, pid = first[2]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    again = seen_at_once(pool, 5)
    assert sorted(device or "" for device, _ in again) == ["0", "0", "1", "1", "GPU-two"]
    assert {pid for _, pid in again} - {pid for _, pid in first} == {p for d, p in again if d == "GPU-two"}
    pool.close()


@pytest.mark.parametrize(
    ("variable", "expected"), [("0,1", ["0", "1"]), ("GPU-a, MIG-b", ["GPU-a", "MIG-b"]), ("", []), ("2,-1,0", ["2"])]
)
def test_devices_are_those_this_process_may_use(
    variable: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(workers.DEVICES, variable)
    assert workers.cuda_devices() == expected


@stage("children_devices", makes=Thing, version=1)
def devices_of_units(build: Build) -> Figures:
    build.each([(f"u{n}", n) for n in range(4)], device_of_unit)
    return build.process(device_of_job)


def device_of_unit(job: Job, n: int) -> Figures:
    device, pid = seen(0.5)
    (job.directory / f"{n}").write_text(f"{device} {pid}")
    return {}


def device_of_job(job: Job) -> Figures:
    (job.directory / "job").write_text(str(seen()[0]))
    return {}


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_units_are_spread_over_devices_and_training_sees_all(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: dict[Any, Workers] = {}  # an idle child of an earlier test would not know of the devices
    monkeypatch.setattr(workers, "_pools", pools)
    monkeypatch.setenv(workers.DEVICES, "6,7")
    machine = Machine(units_at_once=2, device=device)
    made = build_here([devices_of_units()], tmp_path, machine)[0]
    units = [made.file(str(n)).read_text().split() for n in range(4)]
    assert {d for d, _ in units} == ({"6", "7"} if device == "auto" else {"6,7"})
    assert len({(d, pid) for d, pid in units}) == 2  # a child keeps its device
    assert made.file("job").read_text() == "6,7"
    for pool in pools.values():
        pool.close()


# ---------------------------------------------------------------------- units and jobs


def test_a_killed_unit_is_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    made = build_here([units("once", str(log), Numerics())], tmp_path / "s")[0]
    assert sorted(log.read_text().split()) == ["0", "1", "1", "2"]
    assert made.names() == ["0.txt", "1.txt", "2.txt"]
    assert made.figures == {"made": 3}


def test_a_unit_that_kills_its_child_again_and_again_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    target = units("always", str(log), Numerics())
    with pytest.raises(BuildError, match=r"unit u1 failed 2 times: child process \d+ was killed by SIGKILL"):
        build_here([target], tmp_path / "s", Machine(units_at_once=1))
    store = Store(tmp_path / "s")
    kept = [p.name for p in (store.unfinished("children_unit", target.fingerprint) / "units").iterdir()]
    assert "u0" in kept
    assert "u1" not in kept
    assert log.read_text().split()[:3] == ["0", "1", "1"]


def test_a_units_error_is_its_own_and_not_retried(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="no such colour") as caught:
        build_here([units("error", str(log), Numerics())], tmp_path / "s")
    assert "in the child process" in caught.value.__notes__[0]
    assert log.read_text().split().count("1") == 1


def test_a_units_deadline(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"unit u failed 1 times: took longer than 0\.5 s"):
        build_here([late("unit")], tmp_path)


def test_a_jobs_deadline_leaves_a_checkpoint(tmp_path: Path) -> None:
    target = late("job")
    with pytest.raises(BuildError, match=r"children_late took longer than its 0\.5 s"):
        build_here([target], tmp_path)
    scratch = Store(tmp_path).unfinished("children_late", target.fingerprint) / "scratch"
    assert [p.read_text() for p in scratch.glob("*/content/checkpoint")] == ["here"]


def test_sigterm_to_a_job_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    target = toy.total(toy.squares(toy.numbers(8), toy.Slow()), {}, toy.Slow(seconds=0.05))

    class Terminating(Events):
        def progress(self, artifact: Any, done: int, total: int, figures: dict[str, float]) -> None:
            if artifact.title == "toy_total" and done == 3:
                workers.terminate_all()

    # terminate_all waits for the children, so it can't be called from the thread that reads their progress
    events = Terminating()
    own = events.progress
    events.progress = lambda *given: threading.Thread(target=own, args=given).start()  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        Engine(Store(tmp_path / "s"), events=events).ensure_all([target])
    assert 3 <= log.read_text().count("add") <= 7
    assert build_here([target], tmp_path / "s")[0].read() == sum(n * n for n in range(8))
    assert log.read_text().count("add") == 8


def test_ranks(tmp_path: Path) -> None:
    made = build_here([ranked(Numerics(processes=2))], tmp_path)[0]
    found = [json.loads(made.file(name).read_text()) for name in made.names()]
    assert [(r, w) for r, w, _ in found] == [(0, 2), (1, 2)]
    assert [told["RANK"] for *_, told in found] == ["0", "1"]
    assert len({told["MASTER_PORT"] for *_, told in found}) == 1
    assert made.figures == {"rank": 0}
    alone = build_here([ranked(Numerics())], tmp_path)[0]  # in a child that was a rank before
    assert json.loads(alone.file("rank0.json").read_text()) == [0, 1, dict.fromkeys(worker_main.RANK_VARIABLES)]


def test_a_failed_rank_ends_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 1 failed"):
        build_here([ranked(Numerics(processes=2), failing=1)], tmp_path)


class Gpu:
    """Of torch, what looks at the device in use."""

    def __init__(self, name: str | None) -> None:
        self.name, self.emptied, self.cuda = name, 0, self

    def is_initialized(self) -> bool:
        return self.name is not None

    def get_device_name(self) -> str | None:
        return self.name

    def empty_cache(self) -> None:
        self.emptied += 1


@pytest.mark.parametrize(("name", "device", "emptied"), [(None, "cpu", 0), ("H100", "H100", 1)])
def test_after_a_call_a_gpus_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch, name: str | None, device: str, emptied: int
) -> None:
    torch = Gpu(name)
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    assert manifest.used_device() == device
    worker_main._free_device()
    assert torch.emptied == emptied


def test_children_that_have_made_units_can_be_let_go() -> None:
    """They keep a detector; those of trainings are used again."""
    pool = Workers(2)
    _, made_units = pool.run(seen)
    ((_, kept),) = seen_at_once(pool, 1)
    assert kept == made_units
    pool.release()
    ((_, fresh),) = seen_at_once(pool, 1)
    assert fresh != made_units
    pool.release()
    assert seen_at_once(pool, 1) == [(None, fresh)]
    pool.close()


@pytest.mark.parametrize(("device", "gpus", "released"), [("auto", ["0"], 1), ("cpu", ["0"], 0), ("auto", [], 0)])
def test_training_on_a_gpu_begins_without_idle_detectors_and_its_manifest_says_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Any, gpus: list[str], released: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(workers, "cuda_devices", lambda: gpus)
    monkeypatch.setattr(workers, "release", lambda: calls.append(1))
    total = build_here([toy.graph(2)], tmp_path, Machine(device=device))[0]
    assert len(calls) == released
    assert total.manifest.environment["device"] == "cpu"


def test_the_device_counts_where_bits_are_compared() -> None:
    here = manifest.environment()
    cpu, gpu = (manifest.numerics_class(here | {"device": device}) for device in ("cpu", "H100"))
    assert cpu == manifest.numerics_class(here) != gpu


def test_the_error_of_a_stage_names_the_artifact(tmp_path: Path) -> None:
    """Of several fine-tunings, the one whose settings don't fit is told."""
    with pytest.raises(UserError) as caught:
        build_here([refused("user").named("mood")], tmp_path)
    assert str(caught.value) == "children_refused[mood]: no such label; write another\nmore of it"
    assert caught.value.message.startswith("children_refused[mood]: ")
    with pytest.raises(BuildError, match=r"^children_refused\[mood\]: no label"):
        build_here([refused("build").named("mood")], tmp_path)
