"""The states a power loss may leave, enumerated from the store's own operation log.

A small model of what POSIX lets a file system do. Operations have effects on inodes:

    mkdir, link, rename, write (of a new name)   an entry in a directory, or its absence
    write                                        the bytes of a file

An entry lasts once its directory was synced after it, bytes once their file was. Until then each may be there or not,
whatever became of the others, and bytes may also be torn. So a crash after k operations leaves the lasting effects and
any subset of the pending ones. `states` gives all subsets where they are few, else the ones that break things (none,
all, one alone, all but one) and seeded random ones.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from vbert.artifacts.store import durable

TORN = b"\0torn\0"


@dataclass(frozen=True)
class Op:
    """A line of the log: `site` is where in the store's code it was asked for, `data` what a write wrote."""

    name: str
    paths: tuple[Path, ...]
    site: str = ""
    data: bytes = b""


class Log:
    """Collects the operations of `vbert.artifacts.store.durable` while it is entered."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def __call__(self, name: str, *paths: Path) -> None:
        data = paths[0].read_bytes() if name == "write" else b""
        self.ops.append(Op(name, paths, call_site(), data))

    def __enter__(self) -> Log:
        durable.observe(self)
        return self

    def __exit__(self, *_: object) -> None:
        durable.observe(None)


def call_site() -> str:
    """`store.py:publish:190 > durable.py:rename:120`: the line that asked, and those of helpers that led here."""
    frame, trail = sys._getframe(2), []
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        here = f"{file.name}:{frame.f_code.co_name}:{frame.f_lineno}"
        if file.name != "durable.py" and frame.f_code.co_name != "gathered":
            return " > ".join([here, *reversed(trail)])
        if frame.f_code.co_name != "_log" and here not in trail:  # recursion counts once
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
