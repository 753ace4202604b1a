"""Files and objects: bringing one to the other's side, whole and with the right bytes, several at a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vbert.artifacts.store import durable
from vbert.artifacts.store.manifest import NAME, FileEntry
from vbert.artifacts.store.objects import Objects

AT_ONCE = 8
COPY_LIMIT = 5 << 30  # bytes that a server copies in one request (S3's own limit)
RECORDS = (f"/{NAME}", "/unit.json")  # the objects that say that others are whole

NONE: Mapping[str, str] = {}

T = TypeVar("T")
R = TypeVar("R")


class Wrong(Exception):
    """The object is not what its record says; the message says how."""


def fetch(objects: Objects, key: str, entry: FileEntry, path: Path, aside: Path) -> None:
    """Bring an object to `path`, whole or not at all, its size and sha256 checked. Raises Wrong.

    It comes to the directory `aside` first, on the same file system.
    """
    durable.make_directories(path.parent, sync=False)
    part = durable.make_directories(aside, sync=False) / uuid.uuid4().hex
    try:
        if objects.fetch(key, entry.size, part) != entry.sha256:
            compare_size(objects, key, entry)
            raise Wrong("its sha256 is not the recorded one")
        durable.open_file(part, durable.READ)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check(objects: Objects, key: str, entry: FileEntry) -> None:
    """Read an object where it lies. Raises Wrong."""
    compare_size(objects, key, entry)
    if objects.digest(key, entry.size) != entry.sha256:
        raise Wrong("its sha256 is not the recorded one")


def compare_size(objects: Objects, key: str, entry: FileEntry) -> None:
    """Raises Wrong where the object is gone or of another size."""
    size = objects.size(key)
    if size != entry.size:
        raise Wrong("it is gone" if size is None else f"{size} bytes where the record says {entry.size}")


def place(
    objects: Objects, folder: str, directory: Path, files: Sequence[FileEntry], copies: Mapping[str, str] = NONE
) -> None:
    """Have the files of `directory` in `folder`: there already, copied by the server, or uploaded.

    `copies`: sha256 → key of an object that holds it.
    """
    there = {entry.key for entry in objects.list(folder)} if files else set()

    def put(entry: FileEntry) -> None:
        key, copy_of = f"{folder}/{entry.name}", copies.get(entry.sha256)
        if key in there and objects.claim(key) == (entry.size, entry.sha256):
            return
        if copy_of is not None and entry.size < COPY_LIMIT and objects.copy(copy_of, key):
            return
        objects.upload(key, directory / entry.name, entry.sha256)

    each(put, files)


def sweep(objects: Objects, folder: str) -> None:
    """Delete a folder, what says that others are whole first: nothing is left that looks whole and is not."""
    keys = [entry.key for entry in objects.list(folder)]
    objects.delete([key for key in keys if key.endswith(RECORDS)])
    objects.delete([key for key in keys if not key.endswith(RECORDS)])


def move(objects: Objects, key: str, target: str) -> None:
    copy(objects, key, target)
    objects.delete([key])


def copy(objects: Objects, key: str, target: str) -> None:
    """A copy of an object, if there is one: by the server or, where it is too large for that, by way of here."""
    size = objects.size(key)
    if size is not None and size < COPY_LIMIT:
        objects.copy(key, target)
    elif size is not None:
        objects.stream(key, target, size)


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of every item, several at a time; the first failure is raised when those that run have ended."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures = [threads.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
