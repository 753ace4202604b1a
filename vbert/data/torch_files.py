"""Files of `torch.save` in both forms (the zip archive and the older row of pickles), read without torch.

The pickles are read as plain data (`pickles.py`); tensors are offsets into the file until their numbers are read.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vbert.data.pickles import load_torch
from vbert.data.unpack import BROKEN_ZIP
from vbert.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER, the first of the older form's five pickles
PICKLES = 5  # magic, protocol, system, the object, the keys of its storages in order
# Files of the older form begin with the pickle of MAGIC, in any protocol.
LEGACY = re.compile(rb"\x80.(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
LARGEST_PICKLE = 2**30  # bytes of an archive's data.pkl, inflated


@dataclass(frozen=True)
class TorchFile:
    """The saved object with `StoredTensor` for tensors, and the byte of the file where each storage begins."""

    value: Any
    starts: Mapping[str, int]


def read_torch_file(path: Path, named: bool = False) -> TorchFile:
    """The object that the file `path` holds. `named`: objects of unknown classes appear as `UnreadObject` instead of
    being refused. Raises UserError."""
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(b"PK"):
            return _archive(file, path, named)
    if len(head) > 262 and head[257:262] == b"ustar":
        raise UserError(f"{path}: saved by a torch of before 2017 (a tar); load it there and save it again")
    return _pickles_in_a_row(path, named)


def _archive(file: BinaryIO, path: Path, named: bool) -> TorchFile:
    """torch's zip: `<name>/data.pkl`, and `<name>/data/<key>` for each storage, stored as it is."""
    starts: dict[str, int] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if any(name.startswith("code/") for name in members):
                raise UserError(f"{path}: a TorchScript model; save its state_dict() with torch.save and give that")
            if "data.pkl" not in members:
                listed = ", ".join(info.filename for info in archive.infolist()[:3]) or "nothing"
                raise UserError(f"{path}: a zip without data.pkl (it holds {listed:.120}): was it saved by torch?")
            if "byteorder" in members and archive.open(members["byteorder"]).read(16) != b"little":
                raise UserError(f"{path}: saved on a big-endian machine, which is not read")
            if members["data.pkl"].file_size > LARGEST_PICKLE:
                raise UserError(f"{path}: its data.pkl is larger than {LARGEST_PICKLE:,} bytes")
            pickled = archive.read(members["data.pkl"])
        for name, info in members.items():
            if name.startswith("data/") and info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset)
                lengths = struct.unpack("<HH", file.read(30)[26:])
                starts[name.removeprefix("data/")] = info.header_offset + 30 + sum(lengths)
    except BROKEN_ZIP as error:
        size = path.stat().st_size
        raise UserError(
            f"{path}: not a whole archive of torch, {size:,} bytes ({error}); fetch or copy it again"
        ) from None
    pickled_object, size = load_torch(pickled, f"{path}/data.pkl", named=named), path.stat().st_size
    for key in starts.keys() & pickled_object.sizes.keys():
        dtype, elements = pickled_object.sizes[key]
        present = min(members[f"data/{key}"].file_size, size - starts[key])
        if elements * item_size(dtype) > present:
            raise UserError(
                f"{path}: its data.pkl says {elements:,} numbers of storage {key!r:.40}, which has {present:,} bytes: "
                "damaged; fetch or copy it again"
            )
    return TorchFile(pickled_object.value, starts)


def _pickles_in_a_row(path: Path, named: bool) -> TorchFile:
    """torch's older form: five pickles, then each storage: its number of elements (int64), then the elements."""
    pickled_object = load_torch(path, str(path), PICKLES, named=named)
    magic, _, _, value, keys = pickled_object.value
    if magic != MAGIC or not isinstance(keys, list):
        raise UserError(f"{path}: neither of the forms in which torch saves")
    starts, at = {}, pickled_object.end
    for key in keys:
        dtype, elements = pickled_object.sizes.get(key, ("|u1", 0))
        starts[str(key)] = at + 8
        at += 8 + elements * item_size(dtype)
    if at > path.stat().st_size:
        short = at - path.stat().st_size
        raise UserError(f"{path}: cut off, {short:,} bytes are missing; fetch or copy it again")
    return TorchFile(value, starts)


def item_size(dtype: str) -> int:
    """Bytes of an element of a storage: a numpy dtype, or `bfloat16`, which numpy doesn't know."""
    return 2 if dtype == "bfloat16" else int(dtype[2:])
