"""Digests: of JSON, of files, and those of files that this run has checked already."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def dumps(value: Any) -> str:
    """Canonical JSON text: sorted keys, no spaces, ASCII, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(record: dict[str, Any]) -> bytes:
    """A record's own bytes, closed by a digest of themselves: JSON alone would not show a flipped digit."""
    body = json.loads(json.dumps(record, allow_nan=False))
    return (json.dumps(body | {"digest": sha256(dumps(body))}, indent=1, sort_keys=True) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The record in these bytes. Raises ValueError where they are not what was written."""
    body = json.loads(data)
    if not isinstance(body, dict):
        raise ValueError("it is no record")
    # Units sealed before there was one way to do it: their digest is of JSON with spaces.
    if body.pop("digest", None) not in (sha256(dumps(body)), sha256(json.dumps(body, sort_keys=True))):
        raise ValueError("its digest does not fit its content")
    return body


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


class DigestCache:
    """Files that this run has read and found whole, by size, mtime_ns and inode.

    All processes of the run share what they note (`$VBERT_VERIFIED`); `alone` trusts nothing that another one noted.
    """

    def __init__(self, alone: bool = False) -> None:
        self.alone = alone
        self._known: set[str] = set()
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
        shared = None if self.alone else os.environ.get(VARIABLE)
        if not shared:
            return
        with suppress(OSError), open(shared) as source:
            source.seek(self._read_to)
            whole, newline, _ = source.read().rpartition("\n")
            self._known.update(whole.split("\n"))
            self._read_to += len((whole + newline).encode())
