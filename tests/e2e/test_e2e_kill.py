"""`kill -9` of the whole process group in each stage, and of child processes in `regions`: the same command ends in the
bits of a run never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from e2e.finished import STAGES, TINY, contents, without
from processes import children_of, until


def command(store: Path, *more: str) -> list[str]:
    return ["run", TINY, "--store", str(store), "--local", "--json", *more]


def start(store: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command as the leader of its own process group."""
    line = [sys.executable, "-m", "flows.cli", *command(store, *more)]
    with open(log, "wb") as out:
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=out, start_new_session=True)


def kill_in(store: Path, stage: str, wait: float, log: Path) -> bool:
    """Kill the group `wait` seconds after the stage's work began; False where it was done before."""
    running = start(store, log)
    unfinished = store / "unfinished" / stage
    until(
        lambda: running.poll() is not None or (unfinished.is_dir() and any(unfinished.iterdir())),
        said=log.read_text,
        pause=0.005,
    )
    time.sleep(wait)  # the moment is drawn
    alive = running.poll() is None
    os.killpg(running.pid, signal.SIGKILL) if alive else None
    running.wait()
    return alive


def kill_a_child(running: subprocess.Popen[bytes], luck: random.Random) -> bool:
    """Kill one of the run's child processes, whatever it is doing; False where it has none."""
    there = children_of(running.pid)
    if there:
        luck.choice(there).kill()
    return bool(there)


OFTEN = ("regions", "pretrain", "report")  # a stage of units, one of checkpoints, one of neither; the others are slow


@pytest.mark.parametrize(
    "stage", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in STAGES]
)
def test_killed_in_a_stage_it_ends_in_the_same_bits(
    stage: str, finished_store: Path, tmp_path: Path, vbert: Any
) -> None:
    store = tmp_path / "store"
    without(finished_store, stage, store)
    luck = random.Random(stage)
    kept: dict[Path, int] = {}
    for attempt in range(STAGES[stage]):
        kill_in(store, stage, luck.uniform(0.0, 1.0) * (1 + 3 * attempt), tmp_path / f"killed{attempt}.log")
        for record, made in kept.items():  # a committed unit is never made again
            assert not record.exists() or record.stat().st_mtime_ns == made
        kept = {p: p.stat().st_mtime_ns for p in (store / "unfinished" / stage).glob("*/units/*/unit.json")}
    code, out, said = vbert(*command(store))
    assert code == 0, said
    assert contents(store) == contents(finished_store)
    assert json.loads(out.splitlines()[-1])["metrics"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 11))])
def test_children_killed_at_random_in_regions_are_replaced(
    seed: int, finished_store: Path, tmp_path: Path, vbert: Any
) -> None:
    """Twice, as often as a unit is tried again; then the run itself, where it is not done."""
    store, log = tmp_path / "store", tmp_path / "log"
    without(finished_store, "regions", store)
    luck = random.Random(f"children {seed}")
    running = start(store, log, "--until", "regions", "--machine", "units_at_once=2")
    kills, deadline = 0, time.monotonic() + 120
    while running.poll() is None and kills < 2:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(luck.uniform(0.1, 1.0))
        kills += kill_a_child(running, luck)
    assert kills >= 1
    if seed == 0:
        assert running.wait(120) == 0, log.read_text()
    else:
        with suppress(subprocess.TimeoutExpired):
            running.wait(luck.uniform(0.0, 4.0))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    code, _, said = vbert(*command(store, "--until", "regions"))
    assert code == 0, said
    regions = {title: content for title, content in contents(finished_store).items() if title.startswith("regions")}
    assert {title: content for title, content in contents(store).items() if title in regions} == regions
