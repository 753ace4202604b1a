"""Files in a bucket: built and cached in a local working directory, uploaded whole, put under a name once.

No listing is taken for existence, and no object that another one may rest on is written with other bytes. What was read
once holds for the life of a store: asking again would cost a request. Checkpoints stay in the working directory: they
are large and written often, and a machine that goes on from another's would have to be sure that it is gone. A pod that
must survive keeps `$VBERT_CACHE` on a volume.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vbert.artifacts.store import cache, durable
from vbert.artifacts.store.digests import sha256, sha256_file
from vbert.artifacts.store.files import FileEntry, FileInfo, Say, Wrong, each
from vbert.artifacts.store.lease import LIFE, Lease, parse
from vbert.artifacts.store.local_files import LocalFiles
from vbert.artifacts.store.s3_client import NotAllowed, S3Client
from vbert.errors import UserError

COPY_LIMIT = 5 << 30  # bytes that a server copies in one request (S3's own limit)
RECORDS = ("/manifest.json", "/unit.json")  # the objects that say that others are whole


class S3Files:
    """Files below `s3://bucket/prefix`; `here` is the working directory, with a local copy under the same name."""

    def __init__(self, url: str, alone: bool = False) -> None:
        self.client = S3Client(url)
        self.location = self.client.url
        self.here = LocalFiles(cache.working_directory(self.location, sha256(self.location)), alone)
        self._whole: set[str] = set()  # folders whose sizes were compared
        self._placed: dict[str, str] = {}  # sha256 → name of an object that holds it
        self._probed = False

    def prepare(self, folders: Sequence[str]) -> None:
        self.here.prepare(folders)
        self._probe()

    def _probe(self) -> None:
        """Once: whether the server refuses what it must refuse, a second object of one name, a change of another's."""
        if self._probed:
            return
        key = f"locks/probe-{uuid.uuid4().hex}"
        try:
            tag = self.client.create(key, b"first")
            if tag is None or self.client.create(key, b"second") is not None:
                raise UserError(
                    f"{self.location}: the server ignores `If-None-Match: *` (it took a second object of the same "
                    "name), so two builders could overwrite each other; use one that honours it, such as AWS or MinIO"
                )
            if self.client.replace(key, b"third", '"other"') is not None:
                raise UserError(
                    f"{self.location}: the server ignores `If-Match` (it replaced an object that had changed), so "
                    "builders could not wait for each other; use one that honours it, such as AWS or MinIO"
                )
        finally:
            self.client.delete([key])
        self._probed = True

    def share(self) -> None:
        raise UserError(f"{self.location}: who may build in a bucket is said on its server; leave out --shared")

    def read_only(self) -> bool:
        try:
            self._probe()
        except NotAllowed:
            return True
        return False

    # ------------------------------------------------------------------ reading

    def read(self, name: str) -> bytes | None:
        got = self.client.get(name)
        return None if got is None else got[0]

    def version(self, name: str) -> None:
        return None

    def walk(self, folder: str) -> list[FileInfo]:
        return self.client.list(folder)

    def folders(self, folder: str) -> list[str]:
        return list(self.client.folders(folder))

    def folder(self, base: str, content: str) -> str:
        return f"{base}/{content}"

    def compare_sizes(self, folder: str, files: Sequence[FileEntry]) -> None:
        """One listing spares a request a file; what it lacks is asked for by name."""
        if folder in self._whole:
            return
        listed = {info.name: info.size for info in self.client.list(folder)} if files else {}
        for entry in files:
            name = f"{folder}/{entry.name}"
            if listed.get(name) != entry.size:
                self._compare_size(name, entry)
        self._whole.add(folder)

    def _compare_size(self, name: str, entry: FileEntry) -> None:
        size = self.client.size(name)
        if size != entry.size:
            reason = "it is gone" if size is None else f"{size} bytes where its record says {entry.size}"
            raise Wrong(reason, entry.name)

    def check(self, name: str, entry: FileEntry) -> None:
        self._compare_size(name, entry)
        if self.client.digest(name, entry.size) != entry.sha256:
            raise Wrong("its sha256 is not the recorded one", entry.name)

    def local(self, name: str, entry: FileEntry) -> Path:
        """A local copy, fetched where there is none; its sha256 is checked at the first read in a run."""
        path, checked = self.here.root / name, self.here.checked
        self._placed[entry.sha256] = name
        with suppress(FileNotFoundError, NotADirectoryError):  # another process may make room at any moment
            info = path.lstat()
            if checked.knows(path, info) or (info.st_size == entry.size and sha256_file(path) == entry.sha256):
                checked.note(path, info)
                cache.used(path, info)
                return path
            path.unlink()
        if name.startswith("artifacts/"):
            cache.make_room(self.here.root, entry.size)
        self.fetch(name, entry, path)
        checked.note(path, path.lstat())
        return path

    def fetch(self, name: str, entry: FileEntry, path: Path) -> None:
        """Bring an object to `path`, whole or not at all, its size and sha256 checked."""
        durable.make_directories(path.parent, sync=False)
        part = durable.make_directories(self.here.root / "fetching", sync=False) / uuid.uuid4().hex
        try:
            if self.client.fetch(name, entry.size, part) != entry.sha256:
                self._compare_size(name, entry)
                raise Wrong("its sha256 is not the recorded one", entry.name)
            durable.open_file(part, durable.READ)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    # ------------------------------------------------------------------ writing

    def create(self, name: str, data: bytes) -> bool:
        return self.client.create(name, data) is not None

    def replace(self, name: str, data: bytes) -> None:
        self.client.put(name, data)

    def add_folder(self, folder: str, directory: Path, files: Sequence[FileEntry]) -> None:
        """There already, copied by the server, or uploaded. The directory becomes the local copy."""
        there = {info.name for info in self.client.list(folder)} if files else set()

        def holds(name: str, entry: FileEntry) -> bool:
            """By what its uploader gave: what others overwrote lacks it."""
            return self.client.claim(name) == (entry.size, entry.sha256)

        def put(entry: FileEntry) -> None:
            name, copy_of = f"{folder}/{entry.name}", self._placed.get(entry.sha256)
            if name in there and holds(name, entry):
                return
            if copy_of == name or entry.size >= COPY_LIMIT:
                copy_of = None
            if copy_of is None or not holds(copy_of, entry) or not self.client.copy(copy_of, name):
                self.client.upload(name, directory / entry.name, entry.sha256)
            self._placed[entry.sha256] = name

        each(put, files)
        target = self.here.root / folder
        if target == directory:
            return
        durable.make_directories(target.parent, sync=False)
        with suppress(OSError):  # a copy that another process fetched is as good
            durable.move(directory, target)
            for entry in files:
                self.here.checked.note(target / entry.name, (target / entry.name).lstat())
        cache.make_room(self.here.root, 0)

    def quarantine(self, folder: str, target: str, worth: Sequence[str] = ()) -> None:
        """The rest is deleted: what is made again is uploaded anew, whatever bytes lie there."""
        for name in worth:
            self._copy(f"{folder}/{name}", f"{target}/{name}")
        self.remove(folder)

    def _copy(self, name: str, target: str) -> None:
        """By the server or, where the object is too large for that, by way of this machine."""
        size = self.client.size(name)
        if size is not None and size < COPY_LIMIT:
            self.client.copy(name, target)
        elif size is not None:
            self.client.stream(name, target, size)

    def remove(self, folder: str) -> None:
        """The records first: nothing is left that looks whole and is not."""
        names = [info.name for info in self.client.list(folder)]
        self.client.delete([name for name in names if name.endswith(RECORDS)])
        self.client.delete([folder, *(name for name in names if not name.endswith(RECORDS))])
        self._whole.clear()

    # ------------------------------------------------------------------ locks

    @contextmanager
    def lock(self, name: str, waiting: Say | None = None) -> Iterator[None]:
        """The lock of this machine, then the lease among machines."""
        with self.here.lock(name, waiting), Lease(self.client, f"locks/{name}.json", waiting):
            yield

    def at_work(self, grace: float) -> set[str]:
        live = self.here.at_work(grace)
        for info in self.client.list("locks"):
            got = self.client.get(info.name)
            holder = parse(got[0]) if got is not None else None
            if holder is None or holder.dead() or holder.is_current() or time.time() - info.modified > 10 * LIFE:
                continue
            live.add(info.name.removeprefix("locks/").removesuffix(".json"))
        return live
