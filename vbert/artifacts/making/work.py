"""The making of units: each in a child process, committed whole, tried again where its child dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbert.artifacts.making import workers
from vbert.artifacts.making.worker_main import report, stopping
from vbert.artifacts.steps.stage import Figures, Job, Machine, Make
from vbert.artifacts.store import durable
from vbert.artifacts.store.contents import gathered
from vbert.artifacts.store.manifest import environment, used_device
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import RECORD, UnitRecord
from vbert.errors import BuildError


@dataclass(frozen=True)
class Work:
    """The making of one unit: data that any worker on this store can be handed and call."""

    store: Store
    stage: str
    fingerprint: str
    key: str
    make: Make[Any]
    argument: Any
    machine: Machine
    retries: int = 2
    timeout: float | None = None
    tell: Callable[..., None] | None = None  # progress within the unit, where it is made by this process's children

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tell": None}

    @property
    def unfinished(self) -> Path:
        return self.store.unfinished(self.stage, self.fingerprint)

    def __call__(self) -> Figures:
        """Make and commit the unit in a child of this process; a child that dies is replaced and the unit retried."""
        devices = () if self.machine.device == "cpu" else workers.cuda_devices()
        pool = workers.pool(self.machine.units_at_once, devices)
        for attempt in range(self.retries + 1):
            try:
                figures: Figures = pool.run(make_unit, self, progress=self.tell, timeout=self.timeout)
                return figures
            except (workers.ChildDied, workers.Overdue) as error:
                if attempt == self.retries:
                    died = isinstance(error, workers.ChildDied)
                    reason = str(error) if died else f"took longer than {self.timeout} s"
                    raise BuildError(f"unit {self.key} failed {attempt + 1} times: {reason}") from None
        raise AssertionError


def make_unit(work: Work) -> Figures:
    """Make a unit in a directory of its own, commit it whole and share it; the first commit of a key stands."""
    units = work.store.units(work.stage, work.fingerprint)
    record = units.whole(work.key)
    if record is None:
        with units.making(work.key) as making:
            directory, scratch = durable.make_fresh(making / "files"), durable.make_fresh(making / "scratch")
            began = time.monotonic()
            figures = work.make(Job(directory, scratch, work.machine, report=report, stop=stopping), work.argument)
            made = UnitRecord(
                key=work.key,
                files=gathered(directory, f"unit {work.key}", RECORD, {}),
                figures=figures,
                seconds=round(time.monotonic() - began, 3),
                environment=environment() | {"device": used_device()},
            )
            record = units.commit(made, directory)
    units.share(work.key)
    return record.figures


class UnitsMade(Exception):
    """The units asked for are committed; the artifact is for another builder to publish."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(done, total)
        self.done, self.total = done, total


Runner = Callable[[str, Sequence[Work], Callable[[Figures], None]], None]


def run_works(
    title: str,
    works: Sequence[Work],
    done: Callable[[Figures], None],
    make: Callable[[Work], Figures] = Work.__call__,
    at_once: int | None = None,
) -> None:
    """Run units on threads that wait for child processes, or for what `make` waits for.

    The first failure is raised after the running ones end.
    """
    if not works:
        return
    with ThreadPoolExecutor(at_once or works[0].machine.units_at_once) as threads:
        futures = [threads.submit(make, work) for work in works]
        try:
            for future in futures:
                done(future.result())
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
