"""Where and how: what a stage's function gets beside what to make. Nothing here is ever hashed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, Protocol, TypeVarTuple

from pydantic import AfterValidator, Field

from vbert.artifacts.making import children
from vbert.artifacts.making.children import ChildDied, Children, Overdue, Stopped
from vbert.artifacts.making.progress import Progress, Tally
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.stage import Figures
from vbert.artifacts.store import durable
from vbert.artifacts.store.disk_full import no_room, short_of_room
from vbert.artifacts.store.manifest import FileEntry, environment, used_device
from vbert.artifacts.store.owner import GRACE, SUFFIX, Owner, untouched
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import committed, is_key, make_and_share
from vbert.errors import BuildError, UserError

__all__ = ["Build", "Figures", "Job", "Machine", "Stopped", "StoreBuild", "Work", "run_works"]


Ts = TypeVarTuple("Ts")  # of a function that a child runs, what comes behind its `Job`

SCHEDULER = r"(tcp|tls)://[^\s/@]+:[0-9]+"


def _units_on(value: str) -> str:
    if value not in ("threads", "dask") and not re.fullmatch(SCHEDULER, value):
        raise ValueError(f"{value!r} is neither threads nor dask nor a Dask scheduler's address (tcp://10.0.0.5:8786)")
    return value


class Machine(Settings):
    """What should not change bits, and is proven by tests not to."""

    units_at_once: int = Field(2, ge=1, description="child processes that make units")
    steps_at_once: int = Field(1, ge=1, description="stages that run side by side")
    loader_workers: int = Field(1, ge=0, description="processes that prepare batches, a rank")
    checkpoint_steps: int = Field(200, ge=1, description="optimiser steps between two checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="of several CUDA devices, child process i that makes units sees number i alone, in turns"
    )
    units_on: Annotated[str, AfterValidator(_units_on)] = Field(
        "threads",
        description="threads (each waits for a child process), dask (a local cluster for the run), or the address of a "
        "Dask scheduler",
        json_schema_extra={"pattern": f"^(threads|dask|{SCHEDULER})$"},
    )


class Build(Protocol):
    """What the stages see."""

    directory: Path
    scratch: Path
    machine: Machine

    def each(
        self,
        units: Sequence[tuple[str, Any]],
        make: Callable[[Path, Any], Figures],
        count: Callable[[Any], int] = lambda _: 1,
    ) -> None: ...
    def unit_figures(self) -> dict[str, Figures]: ...
    def process(self, function: Callable[[Job, *Ts], Figures], *arguments: *Ts, processes: int = 1) -> Figures: ...
    def progress(self, done: int, total: int, **figures: float) -> None: ...
    def earlier(self) -> list[Artifact]: ...


@dataclass(frozen=True)
class Job:
    """The first argument of a function that `Build.process` runs in a child."""

    directory: Path
    scratch: Path
    machine: Machine
    rank: int = 0
    world: int = 1

    def progress(self, done: int, total: int, **figures: float) -> None:
        if self.rank == 0:
            children.report(done, total, **figures)

    def kept(self, done: int, total: int) -> None:
        """Note that a checkpoint of `done` of `total` steps is whole, for those who ask how far the artifact is."""
        if self.rank == 0:
            durable.hint(self.scratch / "kept.json", {"done": done, "total": total})

    @property
    def stopping(self) -> bool:
        """SIGTERM came: write a checkpoint and raise Stopped."""
        return children.stopping()


_pools: dict[tuple[int, tuple[str, ...]], Children] = {}
_pools_lock = Lock()


def pool(count: int, devices: Sequence[str] = ()) -> Children:
    """This process's children: torch and a detector are loaded once and used by every stage.

    With several `devices` (CUDA), each child sees one of them; these children are not used for other calls.
    """
    pinned = tuple(devices) if len(devices) > 1 else ()
    with _pools_lock:
        return _pools.setdefault((count, pinned), Children(count, pinned))  # no process starts before its first call


def release() -> None:
    """A detector that idle children keep for the next unit would take room on a GPU from what comes now."""
    with _pools_lock:
        pools = list(_pools.values())
    for each in pools:
        each.release()


@dataclass(frozen=True)
class Work:
    """The making of one unit: data that any worker on this store can be handed and call."""

    store: Store
    stage: str
    fingerprint: str
    key: str
    make: Callable[[Path, Any], Figures]
    argument: Any
    workers: int
    retries: int = 2
    timeout: float | None = None
    device: str = "auto"
    tell: Callable[..., None] | None = None  # progress within the unit, where it is made by this process's children

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tell": None}

    @property
    def unfinished(self) -> Path:
        return self.store.unfinished(self.stage, self.fingerprint)

    def __call__(self) -> Figures:
        """Make and commit the unit in a child of this process; a child that dies is replaced and the unit retried."""
        children_here = pool(self.workers, () if self.device == "cpu" else children.cuda_devices())
        for attempt in range(self.retries + 1):
            try:
                call = (self.store, self.stage, self.fingerprint, self.key, self.make, self.argument)
                figures: Figures = children_here.run(make_and_share, *call, progress=self.tell, timeout=self.timeout)
                return figures
            except (ChildDied, Overdue) as error:
                if attempt == self.retries:
                    what = f"took longer than {self.timeout} s" if isinstance(error, Overdue) else str(error)
                    raise BuildError(f"unit {self.key} failed {attempt + 1} times: {what}") from None
        raise AssertionError


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
    with ThreadPoolExecutor(at_once or works[0].workers) as threads:
        futures = [threads.submit(make, work) for work in works]
        try:
            for future in futures:
                done(future.result())
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass
class StoreBuild:
    """A build into a store: the `Build` that stages get from the engine."""

    artifact: Artifact
    store: Store
    machine: Machine
    run_units: Runner
    show: Progress
    directory: Path
    scratch: Path
    retries: int = 0
    say: Callable[[str], None] = lambda _: None
    only: range | None = None  # make these units of each plan and no more
    hashed: dict[str, FileEntry] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)  # on which it was computed
    _units: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def _where(self) -> tuple[Store, str, str]:
        return self.store, self.artifact.stage_name, self.artifact.fingerprint

    @property
    def unfinished(self) -> Path:
        return self.store.unfinished(self.artifact.stage_name, self.artifact.fingerprint)

    @property
    def environment(self) -> dict[str, Any]:
        """What the manifest records, with the devices that children have computed on so far."""
        return environment() | {"device": " and ".join(sorted(self.devices)) or "cpu"}

    def _shared(self) -> set[str]:
        """Keys of the units that other machines have committed; who publishes brings them here."""
        store, stage, fingerprint = self._where
        return store.gather_units(stage, fingerprint, fetch=self.only is None, say=self.say)

    def each(
        self,
        units: Sequence[tuple[str, Any]],
        make: Callable[[Path, Any], Figures],
        count: Callable[[Any], int] = lambda _: 1,
    ) -> None:
        """Make and commit the units that are missing, and link their files into `directory`.

        `count`: how many things a unit is of, which progress is told in; its `make` may report how many are done.
        """
        keys = [key for key, _ in units]
        if len(set(keys)) != len(keys) or not all(map(is_key, keys)):
            raise BuildError(f"{self.artifact.title}: unit keys must be unique, of letters, digits, - and _")
        # Read whole once: what an earlier run committed has lain on the disk since. Workers of a part leave that to
        # whoever publishes, or each would read the units of all.
        there = set(committed(self.unfinished, contents=self.only is None, say=self.say)) | self._shared()
        self.store.planned(self.artifact.stage_name, self.artifact.fingerprint, len(units))
        counts = {key: count(argument) for key, argument in units}
        tally = Tally(counts, [key for key in keys if key in there], self.progress)
        timeout = self.artifact.step.stage.timeout if self.artifact.step else None
        workers = self.machine.units_at_once
        works = [
            Work(
                *self._where,
                key,
                make,
                argument,
                workers,
                self.retries,
                timeout,
                self.machine.device,
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
            records = committed(self.unfinished).values()
            sizes = [sum(entry["size"] for entry in record["files"]) for record in records]
            raise short_of_room(self.artifact.title, full, self.store.root, sizes, len(keys)) from full
        there = self._shared()
        have = committed(self.unfinished)
        if self.only is not None:
            raise UnitsMade(sum(key in there or key in have for key in keys), len(keys))
        missing = [key for key in keys if key not in have]
        if missing:
            raise BuildError(f"{self.artifact.title}: {len(missing)} units are missing, the first is {missing[0]}")
        self._units = {key: have[key] for key in keys}
        self.devices |= {have[key]["environment"].get("device", "cpu") for key in keys}
        for key in keys:
            for raw in have[key]["files"]:
                entry = FileEntry.model_validate(raw)
                if entry.name in self.hashed:
                    raise BuildError(f"{self.artifact.title}: two units made a file {entry.name!r}")
                target = self.directory / entry.name
                durable.make_directories(target.parent, sync=False)
                durable.link(self.unfinished / "units" / key / entry.name, target)
                self.hashed[entry.name] = entry

    def unit_figures(self) -> dict[str, Figures]:
        return {key: record["figures"] for key, record in self._units.items()}

    def process(self, function: Callable[[Job, *Ts], Figures], *arguments: *Ts, processes: int = 1) -> Figures:
        if self.only is not None:
            raise self.not_of_units()
        timeout = self.artifact.step.stage.timeout if self.artifact.step else None
        deadline = None if timeout is None else time.monotonic() + timeout
        if (note := self.store.scratch_note(self.scratch)) is not None:
            self.say(f"{self.artifact.title}: {note}")
        port = children.free_port() if processes > 1 else 0
        if self.machine.device != "cpu" and children.cuda_devices():
            release()
        kept = pool(self.machine.units_at_once)
        with kept.borrowed(processes) as ranks, ThreadPoolExecutor(processes) as threads:
            shows = [self.progress, *[None] * (processes - 1)]
            try:
                for rank, child in enumerate(ranks):
                    job = Job(self.directory, self.scratch, self.machine, rank, processes)
                    child.start(
                        _with_device, (function, job, *arguments), children.rank_environment(rank, processes, port)
                    )
                waits = [threads.submit(c.result, show, deadline) for c, show in zip(ranks, shows, strict=True)]
                results = [future.result() for future in _failed_first(waits)]
            except Overdue:
                children.terminate(ranks)
                raise BuildError(f"{self.artifact.title} took longer than its {timeout} s") from None
            except BaseException:
                children.terminate(ranks)
                raise
        self.devices |= {device for _, device in results}
        return results[0][0]  # type: ignore[no-any-return]

    def not_of_units(self) -> UserError:
        return UserError(f"{self.artifact.title} is not made of units; leave out --units")

    def progress(self, done: int, total: int, **figures: float) -> None:
        self.show(done, total, **figures)

    def earlier(self) -> list[Artifact]:
        """Finished artifacts of the same stage, newest first, for reuse below the stage."""
        from vbert.artifacts.steps.stage import artifact_from_json

        records = [
            record
            for record in self.store.manifests(self.artifact.stage_name)
            if record.alias_of is None and record.fingerprint != self.artifact.fingerprint
        ]
        out = []
        for record in sorted(records, key=lambda record: record.created, reverse=True):
            with suppress(UserError):  # made by a version of a stage that this checkout has no more
                out.append(artifact_from_json(record.step).bound(self.store))
        return out


def _with_device(function: Callable[..., Figures], job: Job, *arguments: Any) -> tuple[Figures, str]:
    """What the function returns, and the device that was used: `cpu` where no other was asked for."""
    figures = function(job, *arguments)
    return figures, "cpu" if job.machine.device == "cpu" else used_device()


def _failed_first(futures: Sequence[Future[Any]]) -> list[Future[Any]]:
    """All futures in order once every one is done, or the failed ones as soon as one has failed."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failed = [future for future in done if future.exception() is not None]
    return failed or list(futures)


def attempt_directory(unfinished: Path) -> Path:
    """A scratch directory of this attempt alone, holding what earlier attempts left.

    Numbers only grow and each is taken by `mkdir`, so two builders never share one, locks or not. What a provably
    dead owner left is taken over by a rename, what may have a live owner is copied, until it was not touched for days.
    """
    base = durable.make_directories(unfinished / "scratch", sync=False)
    earlier = sorted((p for p in base.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
    number = int(earlier[-1].name) + 1 if earlier else 1
    while True:
        mine = base / str(number)
        try:
            durable.make_fresh(mine)
            break
        except FileExistsError:
            number += 1
    Owner.current().write(base / f"{number}{SUFFIX}")
    content = mine / "content"
    # An attempt killed before it had a content leaves that of the one before it.
    last = next((old for old in reversed(earlier) if (old / "content").is_dir()), None)
    if last is not None:
        owner = Owner.read(base / f"{last.name}{SUFFIX}")
        durable.settle(mine, unfinished.parents[2])
        with suppress(OSError):
            if _gone(base, last) or (owner is not None and owner.is_current()):
                durable.rename(last / "content", content)
        with suppress(OSError):
            if not content.exists():
                shutil.copytree(last / "content", mine / "copy", copy_function=_copy_if_there)
                durable.open_directory(mine / "copy")
                durable.move(mine / "copy", content)
        durable.remove_tree(mine / "copy")  # half of one, where it could not be made
    if not content.exists():
        durable.make_fresh(content)
    durable.settle(content, unfinished.parents[2])
    durable.acknowledge(content)
    for old in earlier:
        taken = old is not last or not (old / "content").exists()
        if taken and _gone(base, old):
            durable.remove_tree(old)
    return content


def _gone(base: Path, attempt: Path) -> bool:
    """Whether nobody is at an earlier attempt: its owner is dead, or can't be told and has not touched it for days."""
    owner = Owner.read(base / f"{attempt.name}{SUFFIX}")
    alive = None if owner is None else owner.alive()
    return untouched(GRACE, attempt, *attempt.rglob("*")) if alive is None else not alive


def _copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        shutil.copyfile(source, target)
