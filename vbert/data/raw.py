"""Raw files: the files of a source or a generator, read in place and by name.

Archives are indexed, never unpacked to thousands of files: `members.parquet` says where each member's bytes lie.
The user's folders and files are kept by reference: the index has their names, sizes and sha256, the bytes stay there.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from shutil import copyfileobj
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self

from vbert.artifacts.steps.argument import Argument
from vbert.artifacts.steps.artifact import Artifact
from vbert.data.names import is_hidden, safe_name
from vbert.errors import BuildError, UserError, near

if TYPE_CHECKING:
    from vbert.data.source import Source

MAX_READ = 2**31  # bytes that `read` takes into memory; `open` streams larger members
STORED, DEFLATED = 0, 8  # zip's own numbers
INDEX = "members.parquet"


@dataclass(frozen=True)
class RawMember:
    """Where a member's bytes lie: `stored` bytes at `offset` of `file`, `size` of them once inflated.

    `local`: `file` is relative to the source's path, not to the artifact. `crc32` is zip's, of the inflated bytes;
    `sha256` is recorded for files held by reference.
    """

    name: str
    file: str
    offset: int
    size: int
    stored: int
    method: int = STORED
    crc32: int | None = None
    sha256: str | None = None
    local: bool = False


class RawFiles(Artifact):
    """The files of one source, by name. Names are relative, with `/`.

    >>> raw = vbert.run("demo").artifact("generate[shapes]", vbert.RawFiles)
    >>> raw.members()[0], raw.read("images/000000.png")[1:4]
    ('images/000000.png', b'PNG')
    """

    source: Argument[Source | None] = Argument(default=None)  # None: made by a generator, without a source

    def members(self) -> list[str]:
        """All names, sorted; those of archives without hidden files (see `names.is_hidden`), as folders are read."""
        names = list(self._index())
        return [name for name in names if not is_hidden(name)] or names

    def size(self, name: str) -> int:
        """Bytes of the member."""
        return self._member(name).size

    def read(self, name: str, limit: int = MAX_READ) -> bytes:
        """The member's bytes, checked by size and by crc32 or sha256 where known.

        Raises UserError for an unknown name, BuildError above `limit` bytes or where the bytes are not those indexed.
        """
        member = self._member(name)
        if member.size > limit:
            raise BuildError(f"{self._title(name)} is {member.size:,} bytes, more than the {limit:,} read at once")
        if member.size == 0:
            return b""  # a link that leads nowhere too
        with self._stream(member) as file:
            data = file.read()
        if member.sha256 is not None and hashlib.sha256(data).hexdigest() != member.sha256:
            raise BuildError(f"{self._title(name)} has changed since it was planned; run again to take it as it is now")
        if member.crc32 is not None and zlib.crc32(data) != member.crc32:
            raise BuildError(f"{self._title(name)} is damaged: its crc32 is not the archive's; fetch the archive again")
        return data

    def open(self, name: str) -> BinaryIO:
        """A stream of the member's bytes; ending short or long of its size raises BuildError while reading."""
        return self._stream(self._member(name))

    def local(self) -> Path:
        """The user's file or folder, for libraries that open files themselves.

        Raises BuildError where these files are no reference, or have changed since they were planned.
        """
        source = self.source
        if source is None or source.path is None:
            raise BuildError(f"{self.title} is no local file or folder")
        try:
            source.pinned()  # fast, since digests of unchanged files are remembered
        except UserError as error:
            raise BuildError(f"{source.path} has changed since it was planned; run again ({error.message})") from error
        return Path(source.path)

    def sha256(self, name: str) -> str:
        """Hex digest of the member's bytes."""
        member = self._member(name)
        if member.sha256 is not None:
            return member.sha256
        digest = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _stream(self, member: RawMember) -> BinaryIO:
        path = self._local(member) if member.local else self.file(member.file)
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise BuildError(f"{self._title(member.name)} can't be read at {path}: {error.strerror}") from error
        return io.BufferedReader(_MemberStream(file, member, self._title(member.name)), 1 << 16)

    def _index(self) -> dict[str, RawMember]:
        path = self.file(INDEX)
        return _read_index(str(path), path.stat().st_mtime_ns)

    def _member(self, name: str) -> RawMember:
        index = self._index()
        if name not in index:
            raise UserError(f"{self._title('')} holds no file {name!r}; {near(name, index)}")
        return index[name]

    def _local(self, member: RawMember) -> Path:
        """The path of a member kept by reference: the source's path, or one below it."""
        source = self.source
        root = Path("" if source is None else source.path or "")
        return root if root.is_file() else root / member.file

    def _title(self, name: str) -> str:
        return f"{self.title}: {name}" if name else self.title


def copy_only(raw: RawFiles, folder: Path, wanted: str) -> Path:
    """The one file of `raw`, copied into `folder`, which is made. Raises UserError, naming `wanted`, for more."""
    names = raw.members()
    if len(names) != 1:
        raise UserError(f"{raw.title}: {wanted} must be one file, there are {len(names)}")
    path = folder / names[0].rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with raw.open(names[0]) as source, path.open("wb") as copy:
        copyfileobj(source, copy, 1 << 20)
    return path


@lru_cache(maxsize=8)
def _read_index(path: str, _mtime_ns: int) -> dict[str, RawMember]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:  # read_table imports pandas, in every process
        columns = file.read().to_pydict()
    return {
        row[0]: RawMember(*row)
        for row in zip(*(columns[field] for field in RawMember.__dataclass_fields__), strict=True)
    }


def write_index(directory: Path, members: Iterable[RawMember], sha256: str | None = None) -> int:
    """Write `members.parquet`, sorted by name, into `directory`; returns the number of members.

    `sha256`: of a file that stays where it is, so that artifacts made of other bytes with the same names, sizes and
    offsets are not taken for those made of these.

    Raises BuildError where a name occurs twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(members, key=lambda member: member.name)
    for one, other in pairwise(rows):
        if one.name == other.name:
            raise BuildError(f"{one.file} holds two files called {one.name!r}; which one is meant can't be told")
    kinds: dict[str, Any] = {
        "name": pa.string(),
        "file": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "stored": pa.int64(),
        "method": pa.int16(),
        "crc32": pa.int64(),
        "sha256": pa.string(),
        "local": pa.bool_(),
    }
    columns = {field: pa.array([getattr(row, field) for row in rows], kind) for field, kind in kinds.items()}
    table = pa.table(columns)
    if sha256 is not None:
        table = table.replace_schema_metadata({"sha256": sha256})
    pq.write_table(table, directory / INDEX, compression="zstd", write_page_checksum=True)
    return len(rows)


class _MemberStream(io.RawIOBase):
    """The inflated bytes of one member. Never gives more than its size, whatever the archive holds."""

    def __init__(self, file: IO[bytes], member: RawMember, title: str) -> None:
        self._file, self._member, self._title = file, member, title
        self._left, self._given = member.stored, 0
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
        self._pending = b""
        file.seek(member.offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._member.size - self._given)
        data = b""
        while wanted and not data:
            if self._inflate is None:
                data = self._take(wanted)
            else:
                self._pending = self._pending or self._take(1 << 16)
                if not self._pending and self._inflate.eof:
                    break
                try:
                    data = self._inflate.decompress(self._pending, wanted)
                except zlib.error as error:
                    raise BuildError(f"{self._title} is damaged: {error}; fetch the archive again") from error
                self._pending = self._inflate.unconsumed_tail
                if not data and not self._pending and not self._left:
                    break
        if wanted and not data:
            raise BuildError(f"{self._title} ends after {self._given:,} of {self._member.size:,} bytes; fetch it again")
        buffer[: len(data)] = data
        self._given += len(data)
        return len(data)

    def _take(self, wanted: int) -> bytes:
        data = self._file.read(min(wanted, self._left))
        self._left -= len(data)
        if not data:
            self._left = 0
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class RawWriter:
    """Writes files into one plain tar with their index; same files, same bits. For generators.

    with RawWriter(build.directory) as raw:
        raw.add("images/000000.png", data)
    """

    ARCHIVE = "files.tar"

    def __init__(self, directory: Path, archive: str = ARCHIVE, index: bool = True) -> None:
        """`index`: whether the index is written, or only `members` has what it would hold: of one tar of several."""
        self._directory, self._archive, self._indexed = directory, archive, index
        self.members: list[RawMember] = []

    def __enter__(self) -> Self:
        self._file = (self._directory / self._archive).open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        return self

    def add(self, name: str, data: bytes) -> None:
        """Append the file `name`. Raises UserError for a name that is not relative and plain."""
        info = tarfile.TarInfo(safe_name(name))
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        self._tar.addfile(info, io.BytesIO(data))
        self._tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.members.append(RawMember(name, self._archive, self._tar.offset - padded, len(data), len(data)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._tar.close()
        if kind is None and self._indexed:
            write_index(self._directory, self.members)
