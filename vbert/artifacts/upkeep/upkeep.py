"""Upkeep of a store: reading all of it again, and sweeping what nothing needs."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vbert.artifacts.steps.fingerprint import dumps
from vbert.artifacts.store import durable
from vbert.artifacts.store.manifest import NAME as MANIFEST
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.owner import GRACE, Owner, untouched
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.why import lineage, why
from vbert.errors import Damaged, UserError, nearest

__all__ = ["Sweep", "Swept", "asked", "gc", "keep", "lineage", "verify", "why"]

DAY = 86_400.0
RECENT = 30 * DAY  # seconds for which a run keeps what it needs, whatever came after it


def no_progress(done: int, total: int) -> None: ...


# ---------------------------------------------------------------------- verify


def verify(store: Store, progress: Callable[[int, int], None] = no_progress, set_aside: bool = True) -> list[Damaged]:
    """Read every file of every finished artifact again; `progress(bytes done, bytes in all)`.

    Returns what is damaged, in the order of the store. Its artifacts are moved to `damaged/`, so that the next run
    makes them again (a run itself looks at sizes, and at contents only of what it reads).
    """
    fresh = store.afresh()
    damaged: list[Damaged] = []
    todo: list[tuple[Manifest, str, int]] = []
    for stage, fingerprint in store.names():
        try:
            found = fresh.find(stage, fingerprint)
        except Damaged as damage:
            damaged.append(damage)
            continue
        if found is not None and found.fingerprint == fingerprint:  # an alias's files are its target's
            todo += [(found, entry.name, entry.size) for entry in found.files]
    total, done = sum(size for *_, size in todo), 0

    def read(item: tuple[Manifest, str, int]) -> Damaged | None:
        try:
            fresh.check(item[0], item[1])
        except Damaged as damage:
            return damage
        return None

    # Digests and reads leave the interpreter's lock: two threads a core keep the disk and the cores busy at once.
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as threads:
        for (_, _, size), found_damage in zip(todo, threads.map(read, todo), strict=True):
            done += size
            progress(done, total)
            if found_damage is not None:
                damaged.append(found_damage)
    damaged = list({str(each): each for each in damaged}.values())
    if set_aside and not store.read_only():
        for one in {each.fingerprint: each for each in damaged}.values():
            store.set_aside(one)
    return sorted(damaged, key=str)


# ---------------------------------------------------------------------- keep and gc


def keep(store: Store, run_id: str, kept: bool = True) -> None:
    """Keep what a run made from `gc`, or no longer."""
    runs = store.runs()
    if run_id not in runs:
        raise UserError(f"no run {run_id!r} in {store.location}; {nearest(run_id, runs)}")
    store.note_run(run_id, runs[run_id] | {"kept": kept})


RECORD_SECONDS = 60.0  # writing an owner record takes no longer
Kind = Literal["artifact", "alias", "unfinished", "publishing", "damaged", "trash"]


@dataclass(frozen=True)
class Sweep:
    """A thing that nothing needs: its name in the store and its size in bytes."""

    kind: Kind
    name: str
    bytes: int


@dataclass(frozen=True)
class Swept:
    """What `gc` removed, or would remove, and how many artifacts stay. `notes` say what it could not decide."""

    items: list[Sweep]
    kept: int
    removed: bool
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def lines(self) -> list[str]:
        return [f"{item.kind:<11}{item.name}  {item.bytes / 1e6:,.1f} MB" for item in self.items] + self.notes

    def as_json(self) -> dict[str, Any]:
        return {
            "removed": self.removed,
            "bytes": self.bytes,
            "kept": self.kept,
            "items": [asdict(item) for item in self.items],
            "notes": self.notes,
        }


def gc(
    store: Store,
    keep_roots: Collection[str] = (),
    dry_run: bool = True,
    grace: float = GRACE,
    recent: float = RECENT,
) -> Swept:
    """Remove what nothing needs (with `dry_run`, only say what that is).

    Needed are `keep_roots` (fingerprints), what the records of these runs name: kept ones, those of the last `recent`
    seconds, and of those that were asked for the same (recipe and changes) the last and the last successful one; what
    was made in the last `grace` seconds or is being made by live builders; and all that exists of what those are made
    from. Unfinished work of provably dead owners, and what lies in `damaged/`, goes when it was not touched for `grace`
    seconds, as does anything whose owner can't be told. A thing is renamed to `trash/` first and deleted there, so that
    being killed leaves nothing half there.
    """
    sweeping = store.sweeping(frozenset(keep_roots), grace, recent)
    items = sweeping.plan()
    if not dry_run:
        items = [item for item in items if sweeping.remove(item)]
    there, swept = {f"artifacts/{stage}/{mark}" for stage, mark in store.names()}, {item.name for item in items}
    return Swept(items, len(there - swept), not dry_run, sweeping.notes)


def asked(record: Mapping[str, Any]) -> str:
    """What a run was asked for, from its record. Another place of its recipe or other changes are another thing."""
    changes = record.get("changes")
    if changes is None:
        changes = record.get("resolved")  # by a run that didn't note what was changed: the whole of it
    of_work = {key: value for key, value in (changes or {}).items() if key.partition(".")[0] != "machine"}
    return dumps([record.get("recipe"), record.get("source"), record.get("until"), of_work])


class Sweeping:
    """What of a store on a path nothing needs, and its removal."""

    def __init__(self, store: Store, roots: frozenset[str], grace: float, recent: float) -> None:
        self.store, self.roots, self.grace, self.recent = store, roots, grace, recent
        self.notes: list[str] = []
        self._read: dict[tuple[str, str], Manifest | None] = {}

    def plan(self) -> list[Sweep]:
        root, needed = self.store.root, self.needed()
        items = self._leftovers()
        live = self._live()
        for path in sorted((root / "unfinished").glob("*/*")):
            if path.name in live:
                continue
            finished = self.store.directory(path.parent.name, path.name).exists()
            if finished or (path.name not in needed and self._old(path, *path.glob("units"), *path.glob("scratch/*"))):
                items.append(self._item("unfinished", path))
        items += [self._item("damaged", path) for path in sorted((root / "damaged").glob("*")) if self._old(path)]
        if needed is not EVERYTHING:
            found = [p for p in sorted((root / "artifacts").glob("*/*")) if p.name not in needed]
            aliases = [
                path
                for path in found
                if (m := self._manifest(path.parent.name, path.name)) is not None and m.alias_of is not None
            ]
            items += [self._item("alias", path) for path in aliases]  # before their targets: none is left dangling
            items += [self._item("artifact", path) for path in found if path not in aliases]
        return items

    def _leftovers(self) -> list[Sweep]:
        """What killed sweeps and builders left."""
        root = self.store.root
        items = [self._item("trash", path) for path in sorted((root / "trash").glob("*"))]
        for path in sorted((root / "publishing").glob("*")):
            if path.name.endswith(".owner"):
                if not path.with_suffix("").exists() and self._ownerless(path):
                    items.append(self._item("publishing", path))
            elif ".owner." in path.name:  # a record that is just being written, or was when its builder was killed
                if untouched(max(self.grace, RECORD_SECONDS), path):
                    items.append(self._item("publishing", path))
            elif self._ownerless(path.with_name(path.name + ".owner"), path):
                items.append(self._item("publishing", path))
        return items

    def needed(self) -> Collection[str]:
        """Fingerprints that stay, or EVERYTHING where a run does not say what it rests on."""
        manifests = {mark: self._manifest(stage, mark) for stage, mark in self.store.names()}
        self.notes.clear()
        roots = set(self.roots) | self._live() | self._young()
        for run_id, record in self._kept_runs().items():
            targets = set(record.get("targets", []))
            steps = record.get("steps")
            roots |= targets | set(steps or [])
            if steps is None and any(manifests.get(target) is None for target in targets):
                self.notes.append(f"run {run_id} did not finish, and what it made can't be told: all artifacts stay")
                return EVERYTHING
        needed: set[str] = set()
        aliased: set[str] = set()
        while roots:
            mark = roots.pop()
            if mark in needed:
                continue
            needed.add(mark)
            found = manifests.get(mark)
            if found is not None:
                roots |= set(found.step.get("steps", {}))
                aliased |= {found.alias_of} if found.alias_of else set()
            for document in self._unfinished_steps(mark):
                with suppress(ValueError, KeyError):
                    roots |= set(json.loads(document)["steps"])
        return needed | aliased  # an alias's target by itself: its own inputs are those of other arguments

    def _manifest(self, stage: str, mark: str) -> Manifest | None:
        if self._read.get((stage, mark)) is None:  # what is published never changes
            self._read[stage, mark] = self.store.record(stage, mark)
        return self._read[stage, mark]

    def _unfinished_steps(self, mark: str) -> Iterator[str]:
        """What `Store.describe` left of unfinished work under this fingerprint."""
        for path in (self.store.root / "unfinished").glob(f"*/{mark}/step.json"):
            with suppress(OSError):
                yield path.read_text()

    def _kept_runs(self) -> dict[str, dict[str, Any]]:
        """Kept ones, recent ones, those going on, and the last and the last successful of those asked for the same."""
        runs = self.store.runs()
        last: dict[tuple[str, bool], str] = {}
        for run_id, record in sorted(runs.items(), key=lambda item: (item[1].get("started", 0.0), item[0])):
            last[asked(record), False] = run_id
            if record.get("status", "done") == "done":
                last[asked(record), True] = run_id
        now = time.time()

        def stays(run_id: str, record: dict[str, Any]) -> bool:
            age = now - record.get("started", 0.0)
            running = record.get("status") == "running" and age < self.grace
            recent = age - record.get("seconds", 0.0) < self.recent
            return bool(record.get("kept")) or run_id in last.values() or running or recent

        return {run_id: record for run_id, record in runs.items() if stays(run_id, record)}

    def _young(self) -> set[str]:
        """Fingerprints of what was made within the grace, whoever made it."""
        artifacts = (self.store.root / "artifacts").glob("*/*")
        return {path.name for path in artifacts if not self._old(path, path / MANIFEST)}

    def _live(self) -> set[str]:
        """Fingerprints that a live (or not provably dead) builder works on."""
        root, live = self.store.root, set()
        owners = [(path.name.split(".")[0], path) for path in (root / "publishing").glob("*.owner")]
        owners += [(path.name.split(".")[0], path) for path in (root / "locks").glob("*.holder")]
        owners += [(path.parents[1].name, path) for path in (root / "unfinished").glob("*/*/scratch/*.owner")]
        for fingerprint, path in owners:
            owner = Owner.read(path)
            if owner is not None and owner.is_current() and path.suffix == ".holder":
                continue  # held to sweep it; what this process builds has a directory in publishing/ too
            alive = False if owner is None else owner.alive()
            if alive or (alive is None and not self._old(path)):
                live.add(fingerprint)
        return live

    def _ownerless(self, owner_path: Path, *things: Path) -> bool:
        owner = Owner.read(owner_path)
        alive = None if owner is None else owner.alive()
        return self._old(*things, owner_path) if alive is None else not alive

    def _old(self, *paths: Path) -> bool:
        return untouched(self.grace, *paths)

    def _item(self, kind: Kind, path: Path) -> Sweep:
        return Sweep(kind, path.relative_to(self.store.root).as_posix(), _size(path))

    def remove(self, item: Sweep) -> bool:
        """Whether it went; what has come to be needed since the plan stays."""
        path = self.store.root / item.name
        trash = durable.make_directories(self.store.root / "trash") / uuid.uuid4().hex
        if item.kind == "trash":
            durable.remove_tree(path)
            return True
        with suppress(FileNotFoundError):
            if item.kind in ("artifact", "alias", "unfinished"):
                with self.store.lock(path.name):
                    if self._wanted(item.kind, path):
                        return False
                    durable.rename(path, trash)
            else:
                durable.rename(path, trash)
        if path.parent.name == "publishing":
            path.with_name(path.name + ".owner").unlink(missing_ok=True)
        if trash.is_dir() and not trash.is_symlink():
            durable.remove_tree(trash)
        else:
            trash.unlink(missing_ok=True)
        return True

    def _wanted(self, kind: Kind, path: Path) -> bool:
        if kind == "unfinished":
            finished = self.store.directory(path.parent.name, path.name).exists()
            return path.name in self._live() or (not finished and path.name in self.needed())
        return path.name in self.needed()


class _Everything(frozenset[str]):
    def __contains__(self, _: object) -> bool:
        return True


EVERYTHING: Collection[str] = _Everything()


def _size(path: Path) -> int:
    files = [p for p in path.rglob("*") if not p.is_dir()] if path.is_dir() and not path.is_symlink() else [path]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size
    return total
