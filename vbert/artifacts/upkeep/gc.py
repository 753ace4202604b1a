"""Sweeping what nothing needs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vbert.artifacts.store.digests import dumps
from vbert.artifacts.store.files import FileInfo, Files, Wrong
from vbert.artifacts.store.manifest import NAME, Manifest
from vbert.artifacts.store.owner import GRACE
from vbert.artifacts.store.store import Store
from vbert.errors import Damaged, UserError, nearest

DAY = 86_400.0
RECENT = 30 * DAY  # seconds for which a run keeps what it needs, whatever came after it
FINGERPRINT = re.compile("[0-9a-f]{64}")
WORKING = "working directory: "  # before the names of what lies on this machine of a store that lies elsewhere
DEPTHS = {"artifacts": 3, "unfinished": 3, "damaged": 2, "trash": 2, "publishing": 2}  # of a thing, by its folder
Kind = Literal["artifact", "alias", "unfinished", "publishing", "damaged", "trash"]


def keep(store: Store, run_id: str, kept: bool = True) -> None:
    """Keep what a run made from `gc`, or no longer."""
    runs = store.runs()
    if run_id not in runs:
        raise UserError(f"no run {run_id!r} in {store.location}; {nearest(run_id, runs)}")
    store.record_run(run_id, runs[run_id] | {"kept": kept})


@dataclass(frozen=True)
class Sweep:
    """A thing that nothing needs: its name in the store and its size in bytes."""

    kind: Kind
    name: str
    bytes: int


@dataclass(frozen=True)
class Swept:
    """The things that `gc` removed, or would remove, and how many artifacts stay. `notes`: what it could not decide."""

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
    seconds, as does anything whose owner can't be told. Of a store in a bucket, leftovers in this machine's working
    directory go too; other machines' are theirs to sweep.
    """
    if not dry_run and store.read_only():
        raise UserError(f"{store.location} is read-only for this user: nothing can be removed")
    sweeping = _Sweeping(store, frozenset(keep_roots), grace, recent)
    items = sweeping.plan()
    if not dry_run:
        items = [item for item in items if sweeping.remove(item)]
    there, swept = {f"artifacts/{stage}/{name}" for stage, name in store.names()}, {item.name for item in items}
    return Swept(items, len(there - swept), not dry_run, list(dict.fromkeys(sweeping.notes)))


def asked(record: Mapping[str, Any]) -> str:
    """The request of a run, from its record, as a text. Another place of its recipe, or other changes, is another."""
    changes = record.get("changes")
    if changes is None:
        changes = record.get("resolved")  # by a run that didn't note what was changed: the whole of it
    of_work = {key: value for key, value in (changes or {}).items() if key.partition(".")[0] != "machine"}
    return dumps([record.get("recipe"), record.get("source"), record.get("until"), of_work])


@dataclass(frozen=True)
class _Thing:
    """Files that stay or go together; `modified` is when one of them last was."""

    folder: str
    name: str
    bytes: int
    modified: float

    @property
    def fingerprint(self) -> str:
        return "".join(self.name.split("/")[2:3])

    @property
    def stage(self) -> str:
        return self.name.split("/")[1]


class _Sweeping:
    def __init__(self, store: Store, roots: frozenset[str], grace: float, recent: float) -> None:
        self.store, self.roots, self.grace, self.recent = store, roots, grace, recent
        self.notes: list[str] = []
        self._places: dict[str, Files] = {"": store.files} | ({WORKING: store.here} if store.remote else {})
        self._things: dict[str, list[_Thing]] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._broken: set[str] = set()

    def plan(self) -> list[Sweep]:
        listed = {place: _listed(files) for place, files in self._places.items()}
        self._things = {place: _things(infos) for place, infos in listed.items()}
        needed = self.needed()
        items = []
        for place, files in self._places.items():
            live = files.at_work(self.grace)
            parts: dict[str, list[_Thing]] = {}
            for part in _things(listed[place], 4) if place != WORKING else ():
                parts.setdefault(part.name.rpartition("/")[0], []).append(part)
            for thing in self._things[place]:
                if (kind := self._kind(thing, needed, live, place)) is not None:
                    items.append(Sweep(kind, place + thing.name, thing.bytes))
                elif thing.folder == "artifacts" and thing.name in parts:
                    strays = self._strays(thing, parts[thing.name], live)
                    items += [Sweep("publishing", stray.name, stray.bytes) for stray in strays]
        return sorted(items, key=lambda item: item.kind != "alias")  # before their targets: none is left dangling

    def _kind(self, thing: _Thing, needed: Collection[str], live: Collection[str], place: str) -> Kind | None:
        """The kind of a thing that may go; None where it must stay."""
        old = time.time() - thing.modified >= self.grace
        if thing.folder == "trash":
            return "trash"
        if thing.folder == "damaged":
            return "damaged" if old else None
        if thing.folder == "publishing":  # a builder's own, in format 1 of the store
            return "publishing" if old and thing.name.split("/")[1].split(".")[0] not in live else None
        if not FINGERPRINT.fullmatch(thing.fingerprint):
            self.notes.append(f"{thing.name} is nothing of this store: it stays")
            return None
        if thing.fingerprint in live:
            return None
        made = self._manifest(thing.stage, thing.fingerprint)
        if thing.folder == "unfinished":
            return "unfinished" if made is not None or (thing.fingerprint not in needed and old) else None
        if place == WORKING or thing.fingerprint in needed or not old:  # local copies are the cache's to sweep
            return None
        if made is None:
            return "artifact" if thing.fingerprint in self._broken else "publishing"  # of a builder that was killed
        return "artifact" if made.alias_of is None else "alias"

    def _strays(self, thing: _Thing, parts: Sequence[_Thing], live: Collection[str]) -> list[_Thing]:
        """The parts of an artifact that its manifest does not lead to: of builders that were killed, or came second."""
        made = self._manifest(thing.stage, thing.fingerprint)
        if made is None or thing.fingerprint in live:
            return []
        files = self.store.files.folder(thing.name, made.content[:12])
        if made.alias_of is None and files == thing.name:  # format 1: they lie beside the manifest
            return []
        named, now = (files, f"{thing.name}/{NAME}"), time.time()
        return [part for part in parts if part.name not in named and now - part.modified >= self.grace]

    def needed(self) -> Collection[str]:
        """Fingerprints that stay, or EVERYTHING where a run does not say what it rests on."""
        names = self.store.names()
        manifests = {fingerprint: self._manifest(stage, fingerprint) for stage, fingerprint in names}
        old = {t.name for t in self._things[""] if time.time() - t.modified >= self.grace}
        live = self.store.files.at_work(self.grace)
        roots = set(self.roots) | live
        roots |= {fingerprint for stage, fingerprint in names if f"artifacts/{stage}/{fingerprint}" not in old}
        for run_id, record in self._kept_runs().items():
            targets = set(record.get("targets", []))
            steps = record.get("steps")
            roots |= targets | set(steps or [])
            if steps is None and any(manifests.get(target) is None for target in targets):
                self.notes.append(f"run {run_id} did not finish, and what it made can't be told: all artifacts stay")
                return EVERYTHING
        begun = live | {thing.fingerprint for things in self._things.values() for thing in things}
        needed: set[str] = set()
        aliased: set[str] = set()
        while roots:
            fingerprint = roots.pop()
            if fingerprint in needed:
                continue
            needed.add(fingerprint)
            made = manifests.get(fingerprint)
            if made is not None:
                roots |= set(made.step.get("steps", {}))
                aliased |= {made.alias_of} if made.alias_of else set()
            elif fingerprint in begun:
                roots |= self._described(fingerprint)
        return needed | aliased  # an alias's target by itself: its own inputs are those of other arguments

    def _described(self, fingerprint: str) -> set[str]:
        """Fingerprints that unfinished work rests on, as `Store.describe` left them."""
        inputs: set[str] = set()
        for files in self._places.values():
            for stage in files.folders("unfinished"):
                with suppress(OSError, Wrong, ValueError, KeyError):
                    document = files.read(f"unfinished/{stage}/{fingerprint}/step.json")
                    inputs |= set(json.loads(document or b"{}")["steps"])
        return inputs

    def _manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        if (stage, fingerprint) not in self._manifests:  # what is published never changes
            try:
                made = self.store.record(stage, fingerprint)
            except Damaged:
                self._broken.add(fingerprint)
                return None
            if made is None:
                return None
            self._manifests[stage, fingerprint] = made
        return self._manifests[stage, fingerprint]

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

    def remove(self, item: Sweep) -> bool:
        """Whether it went; what has come to be needed since the plan stays."""
        place = WORKING if item.name.startswith(WORKING) else ""
        files, name = self._places[place], item.name.removeprefix(place)
        if name.partition("/")[0] not in ("artifacts", "unfinished"):
            files.remove(name)
            return True
        owner = "/".join(name.split("/")[:3])
        with self.store.lock(owner.rpartition("/")[2]):
            infos, live = files.walk(owner), files.at_work(self.grace)
            thing = next((thing for thing in _things(infos) if thing.name == owner), None)
            if thing is not None and name != owner:
                strays = self._strays(thing, _things(infos, 4), live)
                if stray := any(stray.name == name for stray in strays):
                    files.remove(name)
                return stray
            if thing is None or self._kind(thing, self.needed(), live, place) != item.kind:
                return False
            made = self._manifests.get((thing.stage, thing.fingerprint))
            if made is not None and thing.folder == "artifacts":
                self.store.forget(made)
            files.remove(name)
            if self.store.remote and thing.folder == "artifacts":
                self.store.here.remove(name)  # the local copy
        return True


def _listed(files: Files) -> list[FileInfo]:
    return [info for folder in DEPTHS for info in files.walk(folder)]


def _things(infos: Iterable[FileInfo], deeper: int = 0) -> list[_Thing]:
    """Listed files by the thing that they are of or, `deeper`, by the part of one."""
    files_of: dict[str, list[FileInfo]] = {}
    for info in infos:
        parts = info.name.split("/")
        depth = deeper or DEPTHS[parts[0]]
        if len(parts) >= depth and ".." not in parts:
            files_of.setdefault("/".join(parts[:depth]), []).append(info)
    return [
        _Thing(name.partition("/")[0], name, sum(info.size for info in infos), max(info.modified for info in infos))
        for name, infos in sorted(files_of.items())
    ]


class _Everything(frozenset[str]):
    def __contains__(self, _: object) -> bool:
        return True


EVERYTHING: Collection[str] = _Everything()
