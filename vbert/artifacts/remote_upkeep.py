"""`gc` on an object store: the same roots, other leftovers. Objects have no owner but an age."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import cached_property

from vbert.artifacts import durable, transfer
from vbert.artifacts.lease import LIFE, parse
from vbert.artifacts.manifest import NAME
from vbert.artifacts.objects import Entry
from vbert.artifacts.remote import RemoteStore
from vbert.artifacts.upkeep import EVERYTHING, Kind, Sweep, Sweeping

FOLDERS = {"artifacts": 3, "unfinished": 3, "damaged": 2}  # and the depth at which a thing of it lies


class RemoteSweeping(Sweeping):
    """What of a store on an object store nothing needs. A folder's age is that of the object written last."""

    store: RemoteStore

    @cached_property
    def _things(self) -> dict[str, list[Entry]]:
        """Name of an artifact, of unfinished work, of something damaged → its objects. One listing of the bucket."""
        found: dict[str, list[Entry]] = {}
        for folder, depth in FOLDERS.items():
            for entry in self.store.objects.list(folder):
                found.setdefault("/".join(entry.key.split("/")[:depth]), []).append(entry)
        return found

    def plan(self) -> list[Sweep]:
        self.__dict__.pop("_things", None)
        needed, live = self.needed(), self._live()
        items = [
            Sweep(kind, name, sum(entry.size for entry in entries))
            for name, entries in self._things.items()
            if (kind := self._unneeded(name, entries, needed, live)) is not None
        ]
        return sorted(items, key=lambda item: (item.kind != "alias", item.name))  # before their targets

    def _unneeded(self, name: str, entries: list[Entry], needed: Collection[str], live: set[str]) -> Kind | None:
        """What the thing called `name` is, where it may go; None where it must stay."""
        folder, _, rest = name.partition("/")
        old = self._past(entries)
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
        if needed is EVERYTHING or mark in needed:
            return None
        return "artifact" if found is None or found.alias_of is None else "alias"

    def _past(self, entries: list[Entry]) -> bool:
        return time.time() - max(entry.modified for entry in entries) >= self.grace

    def _live(self) -> set[str]:
        """Fingerprints under a lease that may have a holder."""
        live = set()
        for entry in self.store.objects.list("locks"):
            got = self.store.objects.get(entry.key)
            holder = parse(got[0]) if got is not None else None
            if holder is None or holder.dead() or holder.is_current() or time.time() - entry.modified > 10 * LIFE:
                continue
            live.add(entry.key.removeprefix("locks/").removesuffix(".json"))
        return live

    def _unfinished_steps(self, mark: str) -> Iterator[str]:
        for name in self._things:
            if name.startswith("unfinished/") and name.endswith(f"/{mark}"):
                got = self.store.objects.get(f"{name}/step.json")
                if got is not None:
                    yield got[0].decode()

    def remove(self, item: Sweep) -> bool:
        """Whether it went; what has come to be needed since the plan stays."""
        folder, mark = item.name.partition("/")[0], item.name.rpartition("/")[2]
        if folder == "damaged":
            transfer.sweep(self.store.objects, item.name)
            return True
        with self.store.lock(mark):
            entries = self.store.objects.list(item.name)
            if not entries or self._unneeded(item.name, entries, self.needed(), self._live()) != item.kind:
                return False
            transfer.sweep(self.store.objects, item.name)
            durable.remove_tree(self.store.root / item.name)
        return True
