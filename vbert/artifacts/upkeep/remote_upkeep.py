"""`gc` on an object store: the same roots, other leftovers. Objects have no owner but an age.

What killed builders left in this machine's working directory goes too; other machines' is theirs to sweep.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

from vbert.artifacts.store import durable, transfer
from vbert.artifacts.store.lease import LIFE, parse
from vbert.artifacts.store.manifest import NAME
from vbert.artifacts.store.objects import Entry
from vbert.artifacts.store.remote import RemoteStore
from vbert.artifacts.upkeep.upkeep import EVERYTHING, Kind, Sweep, Sweeping

FOLDERS = {"artifacts": 3, "unfinished": 3, "damaged": 2}  # and the depth at which a thing of it lies
HERE = "working directory: "  # before the names of what lies on this machine


class RemoteSweeping(Sweeping):
    """What of a store on an object store nothing needs. A thing's age is that of its object written last."""

    store: RemoteStore

    @cached_property
    def _things(self) -> dict[str, list[Entry]]:
        """Name of an artifact, of unfinished work, of something damaged → its objects. One listing of the bucket."""
        found: dict[str, list[Entry]] = {}
        for folder, depth in FOLDERS.items():
            for entry in self.store.objects.list(folder):
                parts = entry.key.split("/")
                if len(parts) > depth:
                    found.setdefault("/".join(parts[:depth]), []).append(entry)
        return found

    def plan(self) -> list[Sweep]:
        self.__dict__.pop("_things", None)
        needed, live = self.needed(), self._live()
        items = [
            Sweep(kind, name, sum(entry.size for entry in entries))
            for name, entries in self._things.items()
            if (kind := self._unneeded(name, entries, needed, live)) is not None
        ]
        here = [Sweep(item.kind, HERE + item.name, item.bytes) for item in self._here(needed)]
        return sorted(items, key=lambda item: (item.kind != "alias", item.name)) + here  # aliases before their targets

    def _here(self, needed: Collection[str]) -> Iterator[Sweep]:
        yield from self._leftovers()
        live = super()._live()
        for path in sorted((self.store.root / "unfinished").glob("*/*")):
            stage, mark = path.parent.name, path.name
            if mark not in live and (
                self._manifest(stage, mark) is not None or (mark not in needed and self._old(path))
            ):
                yield self._item("unfinished", path)

    def _unneeded(self, name: str, entries: list[Entry], needed: Collection[str], live: set[str]) -> Kind | None:
        """What the thing called `name` is, where it may go; None where it must stay."""
        folder, _, rest = name.partition("/")
        old = not self._fresh(entries)
        if folder == "damaged":
            return "damaged" if old else None
        stage, mark = rest.split("/")
        if mark in live:
            return None
        found = self._manifest(stage, mark)
        if folder == "unfinished":
            return "unfinished" if found is not None or (mark not in needed and old) else None
        if not any(entry.key == f"{name}/{NAME}" for entry in entries):
            return "publishing" if old else None  # of a builder that is gone, or of one that is not yet done
        if needed is EVERYTHING or mark in needed or not old:
            return None
        return "artifact" if found is None or found.alias_of is None else "alias"

    def _young(self) -> set[str]:
        names = (name.split("/") for name, entries in self._things.items() if self._fresh(entries))
        return {parts[2] for parts in names if parts[0] == "artifacts"}

    def _fresh(self, entries: list[Entry]) -> bool:
        return time.time() - max(entry.modified for entry in entries) < self.grace

    def _live(self) -> set[str]:
        """Fingerprints under a lease that may have a holder, and those that a process of this machine is at."""
        live = super()._live()
        for entry in self.store.objects.list("locks"):
            got = self.store.objects.get(entry.key)
            holder = parse(got[0]) if got is not None else None
            if holder is None or holder.dead() or holder.is_current() or time.time() - entry.modified > 10 * LIFE:
                continue
            live.add(entry.key.removeprefix("locks/").removesuffix(".json"))
        return live

    def _unfinished_steps(self, mark: str) -> Iterator[str]:
        yield from super()._unfinished_steps(mark)
        for name in self._things:
            if name.startswith("unfinished/") and name.endswith(f"/{mark}"):
                got = self.store.objects.get(f"{name}/step.json")
                if got is not None:
                    yield got[0].decode()

    def remove(self, item: Sweep) -> bool:
        """Whether it went; what has come to be needed since the plan stays."""
        if item.name.startswith(HERE):
            return super().remove(Sweep(item.kind, item.name.removeprefix(HERE), item.bytes))
        folder, mark = item.name.partition("/")[0], item.name.rpartition("/")[2]
        if folder == "damaged":
            transfer.sweep(self.store.objects, item.name)
            return True
        with self.store.lock(mark):
            entries = self.store.objects.list(item.name)
            if not entries or self._unneeded(item.name, entries, self.needed(), self._live()) != item.kind:
                return False
            transfer.sweep(self.store.objects, item.name)
            if folder == "artifacts" and ".." not in item.name.split("/"):
                durable.remove_tree(self.store.root / item.name)
        return True

    def _wanted(self, kind: Kind, path: Path) -> bool:
        """Of unfinished work that lies here."""
        finished = self._manifest(path.parent.name, path.name) is not None
        return path.name in super()._live() or (not finished and path.name in self.needed())
