"""What tests wait for by looking, not by the clock, and the processes that work for a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

from vbert.artifacts.making import worker_main

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    seconds: float = 200.0,
    said: Callable[[], object] = lambda: "",
    pause: float = 0.05,
) -> T:
    """The first value of `condition` that counts as true, looked for every `pause` seconds (a server is asked too).

    Fails with what `said` tells, `seconds` later.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, said()
        time.sleep(pause)
    return value


def children_of(pid: int) -> list[psutil.Process]:
    """The processes that work for it, however deep."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if worker_main.__name__ in child.cmdline():
                found.append(child)
    return found


def alive(process: psutil.Process | int) -> bool:
    """Whether it runs; what has ended and was not yet collected does not."""
    with suppress(psutil.NoSuchProcess):
        known = psutil.Process(process) if isinstance(process, int) else process
        return known.is_running() and known.status() != psutil.STATUS_ZOMBIE
    return False


def gone(processes: list[psutil.Process]) -> bool:
    return not any(map(alive, processes))
