"""A build into a store: the `Build` that stages get from the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from vbert.artifacts.making import workers
from vbert.artifacts.making.progress import Progress, Tally
from vbert.artifacts.making.work import Runner, UnitsMade, Work
from vbert.artifacts.making.worker_main import report, stopping
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures, Job, Machine, Make
from vbert.artifacts.steps.step_json import artifact_from_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.disk_full import no_room, short_of_room
from vbert.artifacts.store.files import FileEntry, Say, no_words
from vbert.artifacts.store.manifest import environment, used_device
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import UnitRecord, is_key
from vbert.errors import BuildError, UserError

U = TypeVar("U")
Ts = TypeVarTuple("Ts")  # of a function that a child runs, what comes behind its `Job`


@dataclass
class StoreBuild:
    """As `Build` says. `attempt` is the directory of this attempt: what it builds, and its checkpoints."""

    artifact: Artifact
    store: Store
    machine: Machine
    run_units: Runner
    show: Progress
    attempt: Path
    retries: int = 0
    say: Say = no_words
    only: range | None = None  # make these units of each plan and no more
    hashed: dict[str, FileEntry] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)  # on which it was computed
    _units: dict[str, UnitRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scratch = self.attempt / "content"
        self.directory = durable.make_fresh(self.attempt / "files")
        self._of = self.artifact.stage_name, self.artifact.fingerprint

    @property
    def environment(self) -> dict[str, Any]:
        """For the manifest: this machine, with the devices that children have computed on so far."""
        return environment() | {"device": " and ".join(sorted(self.devices)) or "cpu"}

    @property
    def _timeout(self) -> float | None:
        return self.artifact.step.stage.timeout if self.artifact.step else None

    def each(self, units: Sequence[tuple[str, U]], make: Make[U], count: Callable[[U], int] = lambda _: 1) -> None:
        """Make and commit the units that are missing, and link their files into `directory`.

        `count`: how many things a unit is of, which progress is told in; its `make` may report how many are done.
        """
        keys = [key for key, _ in units]
        if len(set(keys)) != len(keys) or not all(map(is_key, keys)):
            raise BuildError(f"{self.artifact.title}: unit keys must be unique, of letters, digits, - and _")
        mine, whole = self.store.units(*self._of), self.only is None
        # Read whole once: what an earlier run committed has lain on the disk since. Workers of a part leave that to
        # whoever publishes, or each would read the units of all.
        there = set(mine.committed(contents=whole, say=self.say)) | mine.gather(fetch=whole, say=self.say)
        self.store.planned(*self._of, len(units))
        counts = {key: count(argument) for key, argument in units}
        tally = Tally(counts, [key for key in keys if key in there], self.progress)
        works = [
            Work(
                self.store,
                *self._of,
                key,
                make,
                argument,
                self.machine,
                self.retries,
                self._timeout,
                partial(tally.within, key),
            )
            for position, (key, argument) in enumerate(units)
            if key not in there and (self.only is None or position in self.only)
        ]
        try:
            self.run_units(self.artifact.title, works, tally.finished)
        except Exception as error:
            if (full := no_room(error)) is None:
                raise
            sizes = [record.size for record in mine.committed().values()]
            raise short_of_room(self.artifact.title, full, self.store.root, sizes, len(keys)) from full
        there = mine.gather(fetch=whole, say=self.say)
        have = mine.committed()
        if self.only is not None:
            raise UnitsMade(sum(key in there or key in have for key in keys), len(keys))
        missing = [key for key in keys if key not in have]
        if missing:
            raise BuildError(f"{self.artifact.title}: {len(missing)} units are missing, the first is {missing[0]}")
        self._units = {key: have[key] for key in keys}
        for record in self._units.values():
            self.devices.add(record.environment.get("device", "cpu"))
            for entry in record.files:
                if entry.name in self.hashed:
                    raise BuildError(f"{self.artifact.title}: two units made a file {entry.name!r}")
                target = self.directory / entry.name
                durable.make_directories(target.parent, sync=False)
                durable.link(mine.path(record, entry), target)
                self.hashed[entry.name] = entry

    def unit_figures(self) -> dict[str, Figures]:
        return {key: record.figures for key, record in self._units.items()}

    def process(self, function: Callable[[Job, *Ts], Figures], *arguments: *Ts, processes: int = 1) -> Figures:
        if self.only is not None:
            raise self.not_of_units()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        if self.store.remote:
            self.say(
                f"{self.artifact.title}: checkpoints stay on this machine, in {self.scratch}; units and finished "
                f"artifacts go to {self.store.location}"
            )
        port = workers.free_port() if processes > 1 else 0
        if self.machine.device != "cpu" and workers.cuda_devices():
            workers.release()
        pool = workers.pool(self.machine.units_at_once)
        with pool.borrowed(processes) as ranks, ThreadPoolExecutor(processes) as threads:
            shows = [self.progress, *[None] * (processes - 1)]
            try:
                for rank, worker in enumerate(ranks):
                    job = Job(self.directory, self.scratch, self.machine, rank, processes, report, stopping)
                    variables = workers.rank_environment(rank, processes, port)
                    worker.start(_with_device, (function, job, *arguments), variables)
                waits = [threads.submit(w.result, show, deadline) for w, show in zip(ranks, shows, strict=True)]
                results = [future.result() for future in _failed_first(waits)]
            except workers.Overdue:
                workers.terminate(ranks)
                raise BuildError(f"{self.artifact.title} took longer than its {self._timeout} s") from None
            except BaseException as error:
                workers.terminate(ranks)
                _name(error, self.artifact.title)
                raise
        self.devices |= {device for _, device in results}
        return results[0][0]  # type: ignore[no-any-return]

    def not_of_units(self) -> UserError:
        return UserError(f"{self.artifact.title} is not made of units; leave out --units")

    def progress(self, done: int, total: int, **figures: float) -> None:
        self.show(done, total, **figures)

    def earlier(self) -> list[Artifact]:
        """Finished artifacts of the same stage, newest first, for reuse below the stage."""
        stage, fingerprint = self._of
        manifests = [m for m in self.store.manifests(stage) if m.alias_of is None and m.fingerprint != fingerprint]
        out = []
        for manifest in sorted(manifests, key=lambda manifest: manifest.created, reverse=True):
            with suppress(UserError):  # made by a version of a stage that this checkout has no more
                out.append(artifact_from_json(manifest.step).bound(self.store))
        return out


def _with_device(function: Callable[..., Figures], job: Job, *arguments: Any) -> tuple[Figures, str]:
    """The function's result, and the device that was used: `cpu` where no other was asked for."""
    figures = function(job, *arguments)
    return figures, "cpu" if job.machine.device == "cpu" else used_device()


def _failed_first(futures: Sequence[Future[Any]]) -> list[Future[Any]]:
    """All futures in order once every one is done, or the failed ones as soon as one has failed."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failed = [future for future in done if future.exception() is not None]
    return failed or list(futures)


def _name(error: BaseException, title: str) -> None:
    """Puts the artifact before the sentence of a failed stage that doesn't name it: of several it is told apart."""
    if title in str(error):
        return
    if type(error) is UserError:
        error.message = f"{title}: {error.message}"
        error.args = (error.message, error.details)
    elif type(error) is BuildError:
        error.args = (f"{title}: {error}",)
