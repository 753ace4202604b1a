"""Units: the parts of an artifact that are whole while it is still being made. The first commit of a key stands.

Each lies as an artifact does: its files in `<content>/`, then its record. Those of a store in a bucket are made in the
working directory and uploaded, so that machines without a shared path make one artifact together.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vbert.artifacts.store import durable
from vbert.artifacts.store.contents import damaged_name
from vbert.artifacts.store.digests import seal, unseal
from vbert.artifacts.store.files import FileEntry, Files, Say, Wrong, each, no_words
from vbert.artifacts.store.local_files import LocalFiles
from vbert.artifacts.store.manifest import content_digest
from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.errors import BuildError

RECORD = "unit.json"
log = logging.getLogger("vbert.store")


def is_key(key: str) -> bool:
    """Whether a unit may be called so: letters, digits, - and _."""
    return key.replace("-", "").replace("_", "").isalnum()


class UnitRecord(BaseModel):
    """The files and figures of a committed unit, how long it took and where it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    files: list[FileEntry]
    figures: dict[str, Any]
    seconds: float
    environment: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def content(self) -> str:
        return content_digest(self.files)[:12]


class Units:
    """The units of one unfinished artifact: in `here`, and in `files` where that is a bucket."""

    def __init__(self, files: Files, here: LocalFiles, stage: str, fingerprint: str) -> None:
        self.files, self.here, self.stage, self.fingerprint = files, here, stage, fingerprint
        self.unfinished = f"unfinished/{stage}/{fingerprint}"
        self.base = f"{self.unfinished}/units"

    @property
    def remote(self) -> bool:
        return self.files is not self.here

    def keys(self) -> set[str]:
        """Keys of the units that have a record, wherever."""
        return self._keys(self.here) | (self._keys(self.files) if self.remote else set())

    def _keys(self, files: Files) -> set[str]:
        parts = (info.name.removeprefix(f"{self.base}/").split("/") for info in files.walk(self.base))
        return {key for key, *rest in parts if rest == [RECORD] and is_key(key)}

    # ------------------------------------------------------------------ reading

    def record(self, key: str, contents: bool = False) -> UnitRecord | None:
        """The record of a unit that is committed here; its files' sizes are compared, with `contents` their sha256 too.

        Raises Wrong, naming the file, where it is not whole.
        """
        data = self.here.read(f"{self.base}/{key}/{RECORD}")
        if data is None:
            return None
        record = self._opened(data, key)
        folder = self._folder(record)
        self.here.compare_sizes(folder, record.files)
        for entry in record.files if contents else ():
            self.here.check(f"{folder}/{entry.name}", entry)
        return record

    def _opened(self, data: bytes, key: str) -> UnitRecord:
        try:
            record = UnitRecord.model_validate(unseal(data))
        except (ValueError, ValidationError) as error:
            raise Wrong(str(error), RECORD) from None
        if record.key != key:
            raise Wrong(f"it is the record of unit {record.key}", RECORD)
        return record

    def _folder(self, record: UnitRecord) -> str:
        return self.here.folder(f"{self.base}/{record.key}", record.content)

    def path(self, record: UnitRecord, entry: FileEntry) -> Path:
        return self.here.root / self._folder(record) / entry.name

    def committed(self, contents: bool = False, say: Say = no_words) -> dict[str, UnitRecord]:
        """Key → record of the units committed here; one that is not whole is moved away, to be made again."""

        def read(key: str) -> UnitRecord | None:
            try:
                return self.record(key, contents)
            except (Wrong, OSError) as error:
                at = error.file if isinstance(error, Wrong) else RECORD
                say(f"unit {key}/{at} is damaged: {error}; moved to {self._quarantine(key)}, making it again")
                return None

        keys = sorted(self._keys(self.here))
        with ThreadPoolExecutor(4) as threads:
            records = zip(keys, threads.map(read, keys), strict=True)
            return {key: record for key, record in records if record is not None}

    def _quarantine(self, key: str) -> Path:
        moved = f"{self.unfinished}/broken/{uuid.uuid4().hex}"
        self.here.quarantine(f"{self.base}/{key}", moved)
        return self.here.root / moved

    # ------------------------------------------------------------------ making

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """A fresh directory for the making of a unit, of its maker alone; what a killed maker left of another goes."""
        base = durable.make_directories(self.here.root / self.unfinished / "making", sync=False)
        clear_dead(base, key)
        making = durable.make_fresh(base / f"{key}.{uuid.uuid4().hex}")
        owner = making.with_name(making.name + SUFFIX)
        try:
            with suppress(OSError):
                Owner.current().write(owner)
            yield making
        finally:
            durable.remove_tree(making)
            owner.unlink(missing_ok=True)

    def commit(self, record: UnitRecord, directory: Path) -> UnitRecord:
        """Make `directory`, whose files are synced, the unit of its key, unless one stands there; returns what does."""
        self.here.add_folder(f"{self.base}/{record.key}/{record.content}", directory, record.files)
        self.here.create(f"{self.base}/{record.key}/{RECORD}", seal(record.model_dump()))
        standing = self.record(record.key)
        if standing is None:
            raise BuildError(f"unit {record.key} was committed and is gone: is the store being cleared?")
        return standing

    # ------------------------------------------------------------------ sharing

    def share(self, key: str) -> None:
        """Bring a unit that is committed here to where other machines see it; the first record of a key stands."""
        if not self.remote:
            return
        record, name = self.record(key), f"{self.base}/{key}/{RECORD}"
        data = self.here.read(name)
        if record is None or data is None:
            return
        self.files.add_folder(
            f"{self.base}/{key}/{record.content}", self.here.root / self._folder(record), record.files
        )
        if not self.files.create(name, data):
            log.info("unit %s of %s/%s: another machine was first", key, self.stage, self.fingerprint[:8])

    def gather(self, fetch: bool, say: Say) -> set[str]:
        """Keys of the units that other machines see; with `fetch` they are brought here, in place of what lies here."""
        if not self.remote:
            return set()
        there = self._keys(self.files)
        mine = self._keys(self.here) - there  # their maker was killed before it shared them
        each(self.share, sorted(mine))
        keys = sorted(there | mine)
        return (
            set(keys)
            if not fetch
            else {key for key, whole in zip(keys, each(self._bring(say), keys), strict=True) if whole}
        )

    def _bring(self, say: Say) -> Callable[[str], bool]:
        """A function that makes the unit that was shared first the one that lies here; False where it is damaged."""

        def bring(key: str) -> bool:
            name = f"{self.base}/{key}/{RECORD}"
            data = self.files.read(name)
            if data is None:
                return False
            try:
                record = self._opened(data, key)
                mine = self.whole(key)
                if mine is not None and mine.files != record.files:
                    say(f"unit {key}: another machine was first and made other bits; its unit stands")
                    self._quarantine(key)
                    mine = None
                for entry in record.files:
                    path = self.files.local(f"{self.base}/{key}/{record.content}/{entry.name}", entry)
                    if mine is None:
                        durable.sync_file(path)
                if mine is None:
                    durable.sync_tree(durable.make_directories(self.here.root / self.base / key, sync=False))
                    self.here.create(name, data)
                return True
            except Wrong as error:
                target = f"damaged/{damaged_name(self.stage, self.fingerprint)}"
                self.files.quarantine(f"{self.base}/{key}", target, [RECORD])
                say(
                    f"unit {key}/{error.file} is damaged: {error}; its record moved to {self.files.location}/{target}/"
                    f"{RECORD}"
                )
                return False

        return bring

    def whole(self, key: str) -> UnitRecord | None:
        """The record of a unit that is committed here; one that is not whole is moved away."""
        try:
            return self.record(key)
        except (Wrong, OSError):
            self._quarantine(key)
            return None
