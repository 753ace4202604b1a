"""Indexes the members of archives. Nothing is unpacked under a name from inside an archive, no link is followed.

Archives are not trusted, whoever made them: links, devices, encryption, overlapping or repeated entries, names that are
not plain and sizes that don't fit the file are refused; expansion is counted and bounded.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vbert.artifacts.store.manifest import NAME as MANIFEST
from vbert.data.names import is_odd, safe_name
from vbert.data.raw import DEFLATED, INDEX, STORED, RawMember
from vbert.errors import BuildError, UserError

# Expanded, a compressed file may be this many times as large as it is, and this large in any case. Text packs 20 times.
MAX_RATIO, FREE_BYTES = 100, 2**30
MAX_HEADER = 2**20  # bytes of one extended tar header (names); real ones are below 1 kB

WINDOWS = 0  # zip's number for the system that made an entry, where names are those of FAT

MAX_XZ_MEMORY = 2**28  # xz -9 needs 65 MB; a header may ask for gigabytes

# Errors of zipfile for broken bytes: names, offsets, packed data.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,
    OSError,
    ValueError,
)

OWN = (INDEX, MANIFEST)

SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}


def _gz(file: Path) -> Iterator[bytes]:
    with gzip.open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            yield block


def _bz2(file: Path) -> Iterator[bytes]:
    with bz2.open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            yield block


def _xz(file: Path) -> Iterator[bytes]:
    unpacker = lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)
    with file.open("rb") as stream:
        while not unpacker.eof:
            packed = stream.read(1 << 16) if unpacker.needs_input else b""
            if not packed and unpacker.needs_input:
                raise EOFError("it ends within its data")
            if block := unpacker.decompress(packed, 1 << 20):
                yield block
        if unpacker.unused_data or stream.read(1):
            raise EOFError("there is more behind its first stream")


COMPRESSIONS: dict[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gz, ".bz2": _bz2, ".xz": _xz}


def index_archive(
    file: Path, name: str, directory: Path, *, local: bool = False, set_aside: list[str] | None = None
) -> list[RawMember]:
    """Put `file`, called `name`, into the artifact's `directory` as it will be read, and index it.

    The ending of `name` gives the format. Zips and tars are linked and read in place; compressed tars and files are
    expanded once. With `local` the file stays where it is and only expanded files are written. Names of members that
    are refused (see `names.is_odd`) are appended to `set_aside`.
    Raises BuildError, naming the member, for an archive that is damaged or hostile.
    """
    base, suffix = os.path.splitext(name)
    base, suffix = os.path.splitext(base + SHORT.get(suffix.lower(), suffix))
    compression = COMPRESSIONS.get(suffix.lower())
    if compression is not None:
        name, local = base, False
    # The artifact's own records have these names, so a file of that name is stored under another.
    stored = f"file-{name}" if name.lower() in OWN and not local else name
    if compression is not None:
        expand(file, directory / stored, compression)
    elif not local:
        link(file, directory / stored)
    content = file if local else directory / stored
    ending = os.path.splitext(name)[1].lower()
    try:
        if ending in (".zip", ".whl"):
            return zip_members(content, name, local, set_aside)
        if ending == ".tar":
            return tar_members(content, name, local, set_aside)
    except (*BROKEN_ZIP, tarfile.TarError) as error:
        raise BuildError(f"{name} can't be read as an archive: {error}; fetch it again") from error
    except UserError as error:
        raise BuildError(f"{name} is refused: {error}") from None
    size = content.stat().st_size
    return [RawMember(safe_name(name), stored, 0, size, size, local=local)]


def link(file: Path, target: Path) -> None:
    """`file` under another name, without a copy where the file system allows it."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def expand(file: Path, target: Path, blocks: Callable[[Path], Iterator[bytes]]) -> None:
    """Write the expanded `file` to `target`, counting bytes. Raises BuildError for a bomb or damaged data."""
    most = max(FREE_BYTES, MAX_RATIO * file.stat().st_size)
    written = 0
    try:
        with target.open("wb") as out:
            for block in blocks(file):
                written += len(block)
                if written > most:
                    raise BuildError(f"{file.name} expands to more than {most:,} bytes, {MAX_RATIO} times its size")
                out.write(block)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise BuildError(f"{file.name} can't be expanded: {error}") from error


def zip_members(file: Path, name: str, local: bool = False, set_aside: list[str] | None = None) -> list[RawMember]:
    """The regular files of a zip, stored or deflated ones."""
    members: list[RawMember] = []
    unusable = [] if set_aside is None else set_aside
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for info in archive.infolist():
            place = f"{name}: {info.filename!r:.100}"
            if info.orig_filename != info.filename:  # zipfile cuts a name at NUL
                raise BuildError(f"{place} has a name with a NUL byte")
            if not info.filename:
                raise BuildError(f"{place} has no name")
            # Some of Windows' tools part folders by `\`; there it can't be part of a name.
            inside = info.filename.replace("\\", "/") if info.create_system == WINDOWS else info.filename
            if inside.endswith("/"):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise BuildError(f"{place} is a link or a device; only plain files are taken")
            if info.flag_bits & 0x1:
                raise BuildError(f"{place} is encrypted; give an archive without a password")
            if info.compress_type not in (STORED, DEFLATED):
                raise BuildError(f"{place} is packed by method {info.compress_type}; pack it again with deflate")
            stream.seek(info.header_offset)
            header = stream.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise BuildError(f"{place} has no header where the archive's list says; fetch it again")
            offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            if is_odd(inside):
                unusable.append(inside)
                continue
            members.append(
                RawMember(
                    safe_name(inside),
                    name,
                    offset,
                    info.file_size,
                    info.compress_size,
                    info.compress_type,
                    info.CRC,
                    local=local,
                )
            )
        end = archive.start_dir
    _refuse_empty(members, unusable)
    for member, begins in _with_next(members, end):
        if member.offset + member.stored > begins:
            raise BuildError(f"{name}: {member.name!r:.100} overlaps another entry; a zip bomb, or damaged")
        if member.method == STORED and member.size != member.stored:
            raise BuildError(f"{name}: {member.name!r:.100} gives two sizes; damaged")
    return members


def _with_next(members: list[RawMember], end: int) -> list[tuple[RawMember, int]]:
    """Each member with the offset at which the next one's bytes begin."""
    ordered = sorted(members, key=lambda member: member.offset)
    return list(zip(ordered, [*(member.offset for member in ordered[1:]), end], strict=True))


class _Headers:
    """A tar for `tarfile` to read headers from: large reads are refused, so no header fills the memory."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise BuildError(f"{self._name}: a header of {size:,} bytes; damaged or hostile")
        return self._file.read(size)


def tar_members(file: Path, name: str, local: bool = False, set_aside: list[str] | None = None) -> list[RawMember]:
    """The regular files of a plain tar."""
    members: list[RawMember] = []
    unusable = [] if set_aside is None else set_aside
    length = file.stat().st_size
    with file.open("rb") as stream:
        headers: Any = _Headers(stream, name)
        end = 0
        with tarfile.open(fileobj=headers, mode="r:", errorlevel=2) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                place = f"{name}: {info.name!r:.100}"
                end = info.offset_data
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise BuildError(f"{place} is a link, a device or sparse; only plain files are taken")
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if info.size < 0 or end > length:
                    raise BuildError(f"{place} ends behind the end of the file; cut off, fetch it again")
                if is_odd(info.name):
                    unusable.append(info.name)
                    continue
                members.append(
                    RawMember(safe_name(info.name), name, info.offset_data, info.size, info.size, local=local)
                )
        stream.seek(end)
        trailer = stream.read(tarfile.BLOCKSIZE)
    if trailer != bytes(tarfile.BLOCKSIZE):
        raise BuildError(f"{name} has no end mark after {len(members):,} files; cut off, fetch it again")
    _refuse_empty(members, unusable)
    return members


def _refuse_empty(members: list[RawMember], unusable: list[str]) -> None:
    if unusable and not members:
        safe_name(unusable[0])  # raises a BuildError of its own
