"""Digests checked in this run, remembered by (size, mtime_ns, inode) and shared by its processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbert.artifacts.store.manifest import Manifest

VARIABLE = "VBERT_VERIFIED"  # the run's file: one line a checked file, appended by every process of the run


@contextmanager
def digests_shared() -> Iterator[None]:
    """One file in which all processes of the run note what they have read and found whole; that of a run around it."""
    if VARIABLE in os.environ:
        yield
        return
    with tempfile.NamedTemporaryFile(prefix="vbert-verified-") as verified:
        os.environ[VARIABLE] = verified.name
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)  # of several runs in one process, whichever ended first has taken it


class Verified:
    """What this run has read and found whole. Without `$VBERT_VERIFIED` it lasts as long as the process."""

    def __init__(self) -> None:
        self.alone = False  # trust nothing that another process checked
        self._known: set[str] = set()
        self._manifests: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}
        self._read_to = 0

    @staticmethod
    def _line(path: Path, info: os.stat_result) -> str:
        return f"{info.st_size} {info.st_mtime_ns} {info.st_ino} {path}"

    def knows(self, path: Path, info: os.stat_result) -> bool:
        line = self._line(path, info)
        if line in self._known:
            return True
        self._refresh()
        return line in self._known

    def note(self, path: Path, info: os.stat_result) -> None:
        line = self._line(path, info)
        self._known.add(line)
        if shared := os.environ.get(VARIABLE):
            with suppress(OSError), open(shared, "a") as out:
                out.write(line + "\n")

    def _refresh(self) -> None:
        shared = os.environ.get(VARIABLE)
        if not shared or self.alone:
            return
        with suppress(OSError), open(shared) as source:
            source.seek(self._read_to)
            whole, newline, _ = source.read().rpartition("\n")
            self._known.update(whole.split("\n"))
            self._read_to += len((whole + newline).encode())

    def manifest(self, path: Path, info: os.stat_result) -> Manifest | None:
        """The manifest read from `path` before, if the file is still the same."""
        key = (info.st_size, info.st_mtime_ns, info.st_ino)
        held = self._manifests.get(path)
        return held[1] if held is not None and held[0] == key else None

    def note_manifest(self, path: Path, info: os.stat_result, found: Manifest) -> None:
        self._manifests[path] = ((info.st_size, info.st_mtime_ns, info.st_ino), found)
