"""Archives, hostile ones above all: nothing is written, nothing is believed, every refusal names the member."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from vbert.data import unpack
from vbert.data.raw import RawFiles, RawWriter, write_index
from vbert.data.unpack import index_archive
from vbert.errors import BuildError, UserError

FILES = {"a.txt": b"alpha", "b/c.bin": bytes(range(256)) * 400, "b/empty": b"", "ä 1.txt": b"umlaut"}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return out.getvalue()


def tarred(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of(kind: bytes, name: str = "x", link: str = "/etc/passwd") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return out.getvalue()


def indexed(data: bytes, name: str, tmp_path: Path) -> RawFiles:
    file, directory = tmp_path / f"fetched-{name}", tmp_path / "raw"
    file.write_bytes(data)
    directory.mkdir()
    write_index(directory, index_archive(file, name, directory))
    return RawFiles.at(directory)


@pytest.mark.parametrize("name", ["members.parquet", "manifest.json", "Members.parquet", "members.parquet.gz"])
def test_a_file_called_as_the_artifact_calls_its_own(name: str, tmp_path: Path) -> None:
    data = gzip.compress(b"a table") if name.endswith(".gz") else b"a table"
    raw = indexed(data, name, tmp_path)
    assert raw.members() == [name.removesuffix(".gz")]
    assert raw.read(name.removesuffix(".gz")) == b"a table"
    assert (tmp_path / f"fetched-{name}").read_bytes() == data
    assert "manifest.json" not in raw.names()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "x.zip": lambda: zipped(FILES),
    "x.whl": lambda: zipped(FILES, zipfile.ZIP_STORED),
    "x.tar": lambda: tarred(FILES),
    "gnu.tar": lambda: tarred({"n" * 300: b"long", **FILES}, tarfile.GNU_FORMAT),
    "x.tar.gz": lambda: gzip.compress(tarred(FILES)),
    "x.TGZ": lambda: gzip.compress(tarred(FILES)),
    "x.tar.bz2": lambda: bz2.compress(tarred(FILES)),
    "x.tar.xz": lambda: lzma.compress(tarred(FILES)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_of_archives_are_read_in_place(name: str, tmp_path: Path) -> None:
    raw = indexed(ARCHIVES[name](), name, tmp_path)
    assert [m for m in raw.members() if m[0] != "n"] == sorted(FILES)
    assert all(raw.read(member) == data for member, data in FILES.items())
    assert all(raw.size(member) == len(data) for member, data in FILES.items())
    # One archive and the index, no file of its own for a member.
    assert len(raw.names()) == 2


def test_members_stream_in_small_reads(tmp_path: Path) -> None:
    raw = indexed(zipped(FILES), "x.zip", tmp_path)
    with raw.open("b/c.bin") as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == FILES["b/c.bin"]
    with raw.open("b/c.bin") as file:
        assert file.read(10) == bytes(range(10))


@pytest.mark.parametrize(
    ("name", "data", "member"),
    [
        ("t.json", b"{}", "t.json"),
        ("t.json.gz", gzip.compress(b"{}", mtime=0), "t.json"),
        ("t.json.xz", lzma.compress(b"{}"), "t.json"),
        ("t.bz2", bz2.compress(b"{}"), "t"),
    ],
)
def test_single_files_are_members_by_their_name(name: str, data: bytes, member: str, tmp_path: Path) -> None:
    raw = indexed(data, name, tmp_path)
    assert raw.members() == [member]
    assert raw.read(member) == b"{}"


def test_unknown_member_gives_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no file 'b/c\.bim'; near: 'b/c\.bin'"):
        indexed(zipped(FILES), "x.zip", tmp_path).read("b/c.bim")


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def zip_link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def zip_encrypted() -> bytes:
    data = bytearray(zipped({"a": b"x"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    return bytes(data)


def zip_overlap() -> bytes:
    """Two entries in the list, one piece of data behind both: how a small zip becomes gigabytes."""
    data = zipped({"aa": bytes(50_000), "bb": b"y"})
    first, second = (i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02")
    entry = bytearray(data[first : first + 46 + 2])
    entry[46:48] = b"bb"
    body = data[:first] + data[first : first + 48] + bytes(entry)
    body = body[: data.index(b"PK\x03\x04") + 30] + b"aa" + body[data.index(b"PK\x03\x04") + 32 :]
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, 96, first, 0)
    assert second > first
    return body + end


def zip_size(real: bytes, said: int) -> bytes:
    """A deflated member whose list entry and header say another size."""
    data = bytearray(zipped({"a": real}))
    struct.pack_into("<I", data, data.index(b"PK\x03\x04") + 22, said)
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, said)
    return bytes(data)


def tar_header(size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_sparse() -> bytes:
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_SPARSE
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def tar_twice() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("aa"))
    return out.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "zip ..": ("x.zip", lambda: zipped({"../evil": b"x"}), "'../evil' is not a plain relative one"),
    "zip absolute": ("x.zip", lambda: zipped({"/etc/x": b"x"}), "'/etc/x' is not a plain relative one"),
    "zip backslash": ("x.zip", lambda: zipped({"a\\b": b"x"}), "backslash"),
    "zip NUL": ("x.zip", lambda: changed(zipped({"a_b": b"x"}), b"a_b", b"a\0b"), "NUL"),
    "zip control": ("x.zip", lambda: zipped({"a\x1b[2Jb": b"x"}), "control characters"),
    "zip twice": ("x.zip", lambda: changed(zipped({"aa": b"x", "ab": b"y"}), b"ab", b"aa"), "two files called 'aa'"),
    "zip link": ("x.zip", zip_link, "'link' is a link or a device"),
    "zip encrypted": ("x.zip", zip_encrypted, "encrypted"),
    "zip lzma": ("x.zip", lambda: zipped({"a": b"x"}, zipfile.ZIP_LZMA), "packed by method 14"),
    "zip overlap": ("x.zip", zip_overlap, "overlaps another entry"),
    "zip cut off": ("x.zip", lambda: zipped(FILES)[:-40], "can't be read as an archive"),
    "zip none": ("x.zip", lambda: b"<html>not a zip</html>", "can't be read as an archive"),
    "zip empty": ("x.zip", lambda: b"", "can't be read as an archive"),
    "zip stored size": (
        "x.zip",
        lambda: changed(zipped({"a": b"12345"}, 0), struct.pack("<II", 5, 5), struct.pack("<II", 5, 9)),
        "gives two sizes",
    ),
    "tar ..": ("x.tar", lambda: tarred({"../evil": b"x"}), "not a plain relative one"),
    "tar absolute": ("x.tar", lambda: tarred({"/etc/x": b"x"}), "not a plain relative one"),
    "tar symlink": ("x.tar", lambda: tar_of(tarfile.SYMTYPE), "is a link, a device"),
    "tar hard link": ("x.tar", lambda: tar_of(tarfile.LNKTYPE), "is a link, a device"),
    "tar device": ("x.tar", lambda: tar_of(tarfile.CHRTYPE), "is a link, a device"),
    "tar fifo": ("x.tar", lambda: tar_of(tarfile.FIFOTYPE), "is a link, a device"),
    "tar sparse": ("x.tar", tar_sparse, "sparse"),
    "tar twice": ("x.tar", tar_twice, "two files called 'aa'"),
    "tar cut in a file": ("x.tar", lambda: tarred(FILES)[:4000], "cut off"),
    "tar cut between files": ("x.tar", lambda: tarred({"a": b"x"})[:1024], "no end mark"),
    "tar of nothing": ("x.tar", lambda: b"hello" * 300, "can't be read as an archive"),
    "tar empty": ("x.tar", lambda: b"", "can't be read as an archive"),
    "tar huge size": ("x.tar", lambda: tar_header(2**62, tarfile.REGTYPE) + bytes(1024), "behind the end of the file"),
    "tar huge header": ("x.tar", lambda: tar_header(2**33, tarfile.XHDTYPE) + bytes(1024), "a header of"),
    "tar huge name": ("x.tar", lambda: tar_header(2**33, tarfile.GNUTYPE_LONGNAME) + bytes(1024), "a header of"),
    "gz cut off": ("x.tar.gz", lambda: gzip.compress(tarred(FILES))[:-20], "can't be expanded"),
    "gz flipped": ("x.gz", lambda: changed(gzip.compress(b"hello", mtime=0), b"\xcb\x48", b"\xcb\x49"), "can't be exp"),
    "gz of nothing": ("x.tar.gz", lambda: b"hello", "can't be expanded"),
    "xz cut off": ("x.xz", lambda: lzma.compress(b"hello" * 1000)[:-20], "can't be expanded"),
    "xz of two": ("x.xz", lambda: lzma.compress(b"a") + b"more", "more behind its first stream"),
    "bz2 cut off": ("x.bz2", lambda: bz2.compress(b"hello" * 1000)[:-5], "can't be expanded"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused(case: str, tmp_path: Path) -> None:
    name, data, said = HOSTILE[case]
    with pytest.raises((BuildError, UserError)) as error:
        indexed(data(), name, tmp_path)
    assert said in str(error.value)
    assert name.partition(".")[0] in str(error.value)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {f"fetched-{name}", name, "x", "x.tar"}


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_bomb_stops_at_its_ratio(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FREE_BYTES", 2**20)
    with pytest.raises(BuildError, match="expands to more than"):
        indexed(pack(bytes(2**25)), f"x{suffix}", tmp_path)
    assert (tmp_path / "raw" / "x").stat().st_size <= 2**22


def test_xz_that_wants_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    packer = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**16}])
    data = bytearray(packer.compress(b"hello") + packer.flush())
    # Block header: size, flags, filter 0x21 with 1 byte (the dictionary's size), padding, CRC32.
    at = data.index(b"\x21\x01", 12)
    data[at + 2] = 36  # 1 GiB
    data[at + 6 : at + 10] = struct.pack("<I", zlib.crc32(data[12 : at + 6]))
    with pytest.raises(BuildError, match="can't be expanded: Memory usage limit"):
        indexed(bytes(data), "x.xz", tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: zip_size(b"x" * 1000, 10), "damaged: its crc32"),
        (lambda: zip_size(b"x" * 1000, 5000), "ends after 1,000 of 5,000 bytes"),
        (lambda: changed(zipped({"a": b"hello there"}, 0), b"hello", b"jello"), "damaged: its crc32"),
    ],
)
def test_members_that_are_not_what_the_list_says_are_found_when_read(
    data: Callable[[], bytes], said: str, tmp_path: Path
) -> None:
    raw = indexed(data(), "x.zip", tmp_path)
    with pytest.raises(BuildError, match=said):
        raw.read("a")


def test_flipped_deflate_bytes_never_pass(tmp_path: Path) -> None:
    text = " ".join(str(i * i) for i in range(2000)).encode()
    good = zipped({"a": text})
    (tmp_path / "all").mkdir()
    begin = 31
    end = good.index(b"PK\x01\x02")
    for at in range(begin, end, max(1, (end - begin) // 60)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        (tmp_path / f"{at}").mkdir()
        raw = indexed(bytes(bad), "x.zip", tmp_path / f"{at}")
        with pytest.raises(BuildError):
            raw.read("a")


def test_large_members_are_not_taken_into_memory(tmp_path: Path) -> None:
    raw = indexed(zipped({"a": bytes(5000)}), "x.zip", tmp_path)
    with pytest.raises(BuildError, match="5,000 bytes, more than the 4,999 read at once"):
        raw.read("a", limit=4999)


def test_written_raw_files_have_the_same_bits_and_can_be_read_by_tar(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with RawWriter(tmp_path / name) as writer:
            for member, data in FILES.items():
                writer.add(member, data)
    for file in ("files.tar", "members.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    raw = RawFiles.at(tmp_path / "one")
    assert {member: raw.read(member) for member in raw.members()} == FILES
    with tarfile.open(tmp_path / "one" / "files.tar") as archive:
        assert sorted(archive.getnames()) == sorted(FILES)


def test_writer_refuses_names_that_lead_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a plain relative one"), RawWriter(tmp_path) as writer:
        writer.add("../x", b"")
    assert not (tmp_path / "members.parquet").exists()


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("b", "x")
    (tmp_path / "x.zip").write_bytes(whole.getvalue().replace(b"b", b"\0"))
    with pytest.raises(BuildError, match="has a name with a NUL byte"):
        unpack.zip_members(tmp_path / "x.zip", "x.zip")
