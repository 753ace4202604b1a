"""Stages whose units fail, die or last as files tell them. Without Prefect: child processes import this."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

from artifacts import toy

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Build, Figures, Job, stage


@stage("toy_fragile", makes=toy.Squares, version=1, retries=1)
def fragile(build: Build, numbers: toy.Numbers, fate: str) -> Figures:
    build.each([(f"{n:04d}", n) for n in numbers.read()], partial(fragile_square, Path(fate)))
    return {"squares": len(build.unit_figures())}


def fragile_square(fate: Path, job: Job, n: int) -> Figures:
    """Does what files in `fate` say.

    `fail-3` raises each time, `full-3` has a full disk, `die-3` kills the process once, `kill-3` its
    parent, `slow` takes long.
    Leaves in `log` what was begun, in `makers` whose children did so.
    """
    with open(fate / "log", "a") as log:
        log.write(f"{n}\n")
    with open(fate / "makers", "a") as makers:
        makers.write(f"{os.getppid()}\n")
    if (fate / f"fail-{n}").exists():
        raise ValueError(f"{n} is not to be squared")
    if (fate / f"full-{n}").exists():
        raise OSError(errno.ENOSPC, "No space left on device", str(job.directory / "square"))
    if (fate / f"die-{n}").exists():
        (fate / f"die-{n}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (fate / f"kill-{n}").exists():
        (fate / f"kill-{n}").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if (fate / "slow").exists():
        time.sleep(0.5)
    (job.directory / f"{n:04d}.json").write_text(json.dumps(n * n))
    return {"n": n}


@stage("toy_busy", makes=toy.Numbers, version=1)
def busy(build: Build, fate: str) -> Figures:
    """Works in the builder's own thread, for as long as nobody stops it."""
    (Path(fate) / "busy").touch()
    for _ in range(3000):
        time.sleep(0.1)
    return {}


def fragile_graph(fate: str, count: int = 6) -> Artifact:
    return fragile(toy.numbers(count).named("one"), fate).named("one")
