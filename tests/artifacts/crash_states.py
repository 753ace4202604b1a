"""The states a power loss may leave, enumerated from a log of what the store asks of the kernel.

A small model of what POSIX lets a file system do. Operations have effects on inodes:

    mkdir, link, rename, write (of a new name)   an entry in a directory, or its absence
    write                                        the bytes of a file

An entry lasts once its directory was synced after it, bytes once their file was. Until then each may be there or not,
whatever became of the others, and bytes may also be torn. So a crash after k operations leaves the lasting effects and
any subset of the pending ones. `states` gives all subsets where they are few, else the ones that break things (none,
all, one alone, all but one) and seeded random ones.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vbert.artifacts.making import engine
from vbert.artifacts.store import durable
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import Units

TORN = b"\0torn\0"


@dataclass(frozen=True)
class Op:
    """A line of the log: `site` is where in the store's code it was asked for, `data` what a write wrote."""

    name: str
    paths: tuple[Path, ...]
    site: str = ""
    data: bytes = b""


class Killed(BaseException):
    """kill -9, for the process that would have gone on."""


class Log:
    """Collects what is asked of the kernel while it is entered, but for locks: mkdir, link, rename, fsync, and trees
    removed. A file's bytes count as written when they are synced. What the store tells as done is `acknowledge`d.

    With `kill_at` the process goes on for that many operations: then Killed is raised, and nothing is cleared away.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.ops: list[Op] = []
        self._kill_at, self._patch = kill_at, pytest.MonkeyPatch()

    def note(self, name: str, *paths: Path, data: bytes = b"") -> None:
        if any(part in ("locks", "dev") for part in paths[0].parts[-2:]) or len(self.ops) == self._kill_at:
            return
        self.ops.append(Op(name, paths, call_site(), data))
        if len(self.ops) == self._kill_at:
            raise Killed

    def __enter__(self) -> Log:
        for name in ("mkdir", "link", "rename"):
            self._patch.setattr(os, name, self._noted(name, getattr(os, name)))
        self._patch.setattr(os, "fsync", self._synced(os.fsync))
        self._patch.setattr(durable, "remove_tree", self._removed(durable.remove_tree))
        acknowledging(self._patch, lambda path: self.note("acknowledge", path))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _noted(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            real(*arguments, **named)
            self.note(name, *(Path(path) for path in arguments[: 1 if name == "mkdir" else 2]))

        return call

    def _synced(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if not path.is_dir():
                self.note("write", path, data=path.read_bytes())
            real(handle)
            self.note("syncdir" if path.is_dir() else "fsync", path)

        return call

    def _removed(self, real: Callable[[Path], None]) -> Callable[[Path], None]:
        def call(path: Path) -> None:
            if path.exists() and len(self.ops) != self._kill_at:
                real(path)
                self.note("remove", path)

        return call


def acknowledging(patch: pytest.MonkeyPatch, tell: Callable[[Path], None]) -> None:
    """Have `tell` called with what the store tells its caller to be done: from here on it must last."""

    def after(owner: Any, name: str, path: Callable[..., Path | None]) -> None:
        real = getattr(owner, name)

        @wraps(real)
        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            if (done := path(result, *arguments)) is not None:
                tell(done)
            return result

        patch.setattr(owner, name, call)

    def published(_: Manifest, store: Store, __: Path, record: Manifest, *___: Any) -> Path:
        return store.root / "artifacts" / record.stage / record.fingerprint

    def adopted(_: Manifest, store: Store, record: Manifest, __: Manifest) -> Path:
        return store.root / "artifacts" / record.stage / record.fingerprint

    after(Store, "publish", published)
    after(Store, "adopt", adopted)
    after(Store, "quarantine", lambda to, *_: None if to is None else Path(to))
    after(Store, "record_run", lambda _, store, run, __: store.root / "runs" / f"{run}.json")
    after(Units, "commit", lambda record, units, *_: units.here.root / units.base / record.key)
    after(engine, "new_attempt", lambda attempt, *_: attempt / "content")


SKIPPED = ("durable.py", "crash_states.py", "pathlib.py", "os.py", "shutil.py")


def call_site() -> str:
    """`local_files.py:create:190 > durable.py:rename:120`: the line that asked, and those of helpers that led here."""
    frame, trail = sys._getframe(2), []
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        here = f"{file.name}:{frame.f_code.co_name}:{frame.f_lineno}"
        if file.name not in SKIPPED and frame.f_code.co_name != "gathered":
            return " > ".join([here, *reversed(trail)])
        if file.name in ("durable.py", "contents.py") and here not in trail:  # recursion counts once
            trail.append(here)
        frame = frame.f_back  # type: ignore[assignment]
    raise AssertionError


@dataclass(frozen=True, eq=False)
class Effect:
    """An entry `name` → `child` (None: taken away) of directory `inode`, or the bytes of file `inode`."""

    inode: int
    name: str | None = None
    child: int | None = None
    data: bytes = b""
    after: Effect | None = None  # of a rename: the old name is not taken away before the new one is there


class Tree(dict[str, "Tree | bytes"]):
    """A directory as found after a crash; `inode` tells two names of one from two directories."""

    inode: int = 0


@dataclass
class Disk:
    """The effects of a log so far, in order, and which of them last."""

    root: Path
    effects: list[Effect] = field(default_factory=list)
    lasting: set[Effect] = field(default_factory=set)
    acknowledged: list[tuple[Path, ...]] = field(default_factory=list)  # each under the names it has had
    _now: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # directories as the processes see them
    _inodes: int = 0

    def _fresh(self, directory: bool) -> int:
        self._inodes += 1
        if directory:
            self._now[self._inodes] = {}
        return self._inodes

    def _enter(self, directory: int, name: str, child: int | None, after: Effect | None = None) -> None:
        self.effects.append(Effect(directory, name, child, after=after))
        if child is None:
            self._now[directory].pop(name, None)
        else:
            self._now[directory][name] = child

    def _at(self, path: Path) -> int:
        """The inode at `path`. Directories that something outside the store's I/O made are made here."""
        at = 0
        for name in path.relative_to(self.root).parts:
            if name not in self._now[at]:
                self._enter(at, name, self._fresh(True))
            at = self._now[at][name]
        return at

    def _slot(self, path: Path) -> tuple[int, str]:
        return self._at(path.parent), path.name

    def apply(self, op: Op) -> None:
        if op.name == "mkdir":
            self._at(op.paths[0])
        elif op.name == "write":
            directory, name = self._slot(op.paths[0])
            if name not in self._now[directory]:
                self._enter(directory, name, self._fresh(False))
            self.effects.append(Effect(self._now[directory][name], data=op.data))
        elif op.name == "link":
            self._enter(*self._slot(op.paths[1]), self._at(op.paths[0]))
        elif op.name == "rename":
            moved = self._at(op.paths[0])
            self._enter(*self._slot(op.paths[1]), moved)
            self._enter(*self._slot(op.paths[0]), None, self.effects[-1])
            for i, names in enumerate(self.acknowledged):
                if names[-1] == op.paths[0]:
                    self.acknowledged[i] = (*names, op.paths[1])
        elif op.name == "remove":
            self._enter(*self._slot(op.paths[0]), None)
        elif op.name == "fsync":
            inode = self._at(op.paths[0])
            self.lasting |= {e for e in self.effects if e.inode == inode and e.name is None}
        elif op.name == "syncdir":
            if op.paths[0].is_relative_to(self.root):  # what is above was there before
                inode = self._at(op.paths[0])
                self.lasting |= {e for e in self.effects if e.inode == inode and e.name is not None}
        elif op.name == "acknowledge":
            self.acknowledged.append((op.paths[0],))
        else:
            raise AssertionError(op.name)

    def pending(self) -> list[Effect]:
        return [effect for effect in self.effects if effect not in self.lasting]

    def tree(self, lost: Sequence[Effect], torn: Sequence[Effect] = ()) -> Tree:
        """What is found after the crash when of the pending effects `lost` never came to the disk."""
        gone, half = set(lost), set(torn)
        entries: dict[int, dict[str, int]] = {}
        bytes_: dict[int, bytes] = {}
        for effect in self.effects:
            if effect in gone or (effect.after in gone and effect not in self.lasting):
                continue
            if effect.name is None:
                bytes_[effect.inode] = TORN if effect in half else effect.data
            elif effect.child is None:
                entries.get(effect.inode, {}).pop(effect.name, None)
            else:
                entries.setdefault(effect.inode, {})[effect.name] = effect.child

        def grow(inode: int) -> Tree | bytes:
            if inode not in self._now:
                return bytes_.get(inode, b"")
            found = Tree({name: grow(child) for name, child in entries.get(inode, {}).items()})
            found.inode = inode
            return found

        grown = grow(0)
        assert isinstance(grown, Tree)
        return grown


@dataclass(frozen=True)
class State:
    """A crash after `after` operations: what is on the disk, and what had been acknowledged by then."""

    after: int
    tree: Tree
    acknowledged: tuple[tuple[Path, ...], ...]


def states(ops: Sequence[Op], root: Path, seed: int = 0, samples: int = 24, start: int = 0) -> Iterator[State]:
    """The crash states of `ops` in a disk that holds the lasting directory `root`, from the `start`-th operation on."""
    disk = Disk(root)
    for after, op in enumerate(ops, 1):
        disk.apply(op)
        if after < start:
            continue
        pending = disk.pending()
        for lost, torn in _choices(pending, random.Random(f"{seed}/{after}"), samples):
            yield State(after, disk.tree(lost, torn), tuple(disk.acknowledged))


def _choices(pending: list[Effect], draw: random.Random, samples: int) -> Iterator[tuple[list[Effect], list[Effect]]]:
    """(lost, torn) of the pending effects."""
    bytes_ = [effect for effect in pending if effect.name is None]
    if 2 ** len(pending) * 1.5 ** len(bytes_) <= 300:
        kinds = [(0, 1, 2) if effect.name is None else (0, 1) for effect in pending]
        for fate in product(*kinds):
            lost = [effect for effect, f in zip(pending, fate, strict=True) if f == 1]
            yield lost, [effect for effect, f in zip(pending, fate, strict=True) if f == 2]
        return
    yield [], []
    yield pending, []
    yield [], bytes_
    for effect in pending:
        yield [effect], []
        yield [other for other in pending if other is not effect], []
        if effect.name is None:
            yield [], [effect]
    for _ in range(samples):
        share = draw.random()
        lost = [effect for effect in pending if draw.random() < share]
        yield lost, [effect for effect in bytes_ if effect not in lost and draw.random() < 0.2]


# ---------------------------------------------------------------------- making logs worse


def without(ops: Sequence[Op], site: str) -> list[Op]:
    """The log of a store whose code lacks the sync at `site`."""
    return [op for op in ops if not (op.site == site and op.name in ("fsync", "syncdir"))]


def earlier(ops: Sequence[Op], index: int, to: int) -> list[Op]:
    """The log of a store that did operation `index` already at `to`; what lies between then works on its new names."""
    moved = ops[index]
    between = list(ops[to:index])
    if moved.name == "rename":
        source, target = moved.paths
        between = [
            Op(
                op.name,
                tuple(target / p.relative_to(source) if p.is_relative_to(source) else p for p in op.paths),
                op.site,
                op.data,
            )
            for op in between
        ]
    return [*ops[:to], moved, *between, *ops[index + 1 :]]
