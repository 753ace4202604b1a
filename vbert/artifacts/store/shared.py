"""Units on an object store: made by machines without a shared path, gathered by the one that publishes.

unfinished/<stage>/<fingerprint>/units/<key>/<content>/…     the unit's files; other bits have another <content>
unfinished/<stage>/<fingerprint>/units/<key>/unit.json       its record, put last; the first one stands
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from vbert.artifacts.store import durable, transfer, units
from vbert.artifacts.store.contents import damaged_name
from vbert.artifacts.store.manifest import FileEntry, content_digest
from vbert.artifacts.store.objects import Objects
from vbert.artifacts.store.transfer import Wrong, each
from vbert.errors import BuildError

log = logging.getLogger("vbert.store")


class SharedUnits:
    """The units of one unfinished artifact: `here` is its directory in the working directory."""

    def __init__(self, objects: Objects, stage: str, fingerprint: str, here: Path) -> None:
        self.objects, self.stage, self.fingerprint, self.here = objects, stage, fingerprint, here
        self.base = f"unfinished/{stage}/{fingerprint}/units"

    def keys(self) -> set[str]:
        """Keys of the units that have a record."""
        found = (entry.key.removeprefix(f"{self.base}/").split("/") for entry in self.objects.list(self.base))
        return {parts[0] for parts in found if parts[1:] == [units.RECORD] and units.is_key(parts[0])}

    def _record(self, key: str) -> str:
        return f"{self.base}/{key}/{units.RECORD}"

    def _folder(self, key: str, files: list[FileEntry]) -> str:
        return f"{self.base}/{key}/{content_digest(files)[:12]}"

    def share(self, key: str) -> None:
        """Upload a unit that is committed here, its record last."""
        directory = self.here / "units" / key
        files = units.files_of(units.unit_record(directory))
        transfer.place(self.objects, self._folder(key, files), directory, files)
        if self.objects.create(self._record(key), (directory / units.RECORD).read_bytes()) is None:
            log.info("unit %s of %s/%s: another machine was first", key, self.stage, self.fingerprint[:8])

    def share_all(self) -> set[str]:
        """Upload what was committed here and not shared: its maker was killed in between. Returns the keys shared."""
        there = self.keys()
        mine = {path.name for path in (self.here / "units").glob("*")} - there
        each(self.share, sorted(mine))
        return there | mine

    def bring(self, key: str, say: Callable[[str], None]) -> dict[str, str] | None:
        """Make the shared unit the one that lies here. Returns sha256 → key of its objects.

        A damaged one is set aside and `say` told: None.
        """
        got = self.objects.get(self._record(key))
        if got is None:
            return None
        at = units.RECORD
        try:
            files = units.files_of(units.opened(got[0], key))
            folder = self._folder(key, files)
            if not self._is_here(key, files, say):
                making = units.making_directory(self.here, key)
                try:
                    for entry in files:
                        at = entry.name
                        transfer.fetch(self.objects, f"{folder}/{at}", entry, making / at, making.parent)
                        durable.sync_file(making / at)
                    if (self.here / "units" / key).exists():
                        units.set_aside(self.here, key)
                    units.commit(making, self.here, key, got[0])
                finally:
                    units.done_with(making)
            return {entry.sha256: f"{folder}/{entry.name}" for entry in files}
        except (ValueError, KeyError, TypeError, AttributeError, Wrong) as error:
            target = f"damaged/{damaged_name(self.stage, self.fingerprint)}/{units.RECORD}"
            transfer.move(self.objects, self._record(key), target)
            say(f"unit {key}/{at} is damaged: {error}; its record moved to {self.objects.url}/{target}")
            transfer.sweep(self.objects, f"{self.base}/{key}")
            return None

    def _is_here(self, key: str, files: list[FileEntry], say: Callable[[str], None]) -> bool:
        """Whether what lies here is the unit that was shared first."""
        directory = self.here / "units" / key
        try:
            mine = units.files_of(units.unit_record(directory))
        except BuildError:
            return False
        if mine != files:
            say(f"unit {key}: another machine was first and made other bits; its unit stands")
        return mine == files
