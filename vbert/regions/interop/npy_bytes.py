"""Arrays in numpy's own format, from untrusted bytes: a shape is believed where its bytes are there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from math import prod
from typing import IO, TYPE_CHECKING, Any

from vbert.data.unpack import BROKEN_ZIP
from vbert.regions.interop.raw_regions import BadEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 1 << 30  # bytes of one member of an `.npz`, inflated


def read_npy(file: IO[bytes], size: int, where: str) -> NDArray[Any] | bytes:
    """The array of an `.npy` file of `size` bytes; the pickle, unread, where it is one of objects. Raises BadEntry."""
    import numpy as np

    shape, fortran, dtype = _header(file, where)
    left = size - file.tell()
    if dtype.hasobject:
        return file.read(left)
    if prod(shape) * dtype.itemsize > left:
        wanted = f"{shape} of {dtype}"
        raise BadEntry(
            where, "truncated", f"its header says {wanted}, {prod(shape) * dtype.itemsize - left:,} bytes more"
        )
    data = file.read(prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    from tokenize import TokenError  # of numpy's reading of headers that Python 2 wrote

    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except KeyError:
        raise BadEntry(where, "damaged", "an .npy of a version that numpy doesn't write for numbers") from None
    except (ValueError, EOFError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        raise BadEntry(where, "damaged", f"no .npy header ({str(error)[:200]})") from None
    if any(n < 0 for n in shape):
        raise BadEntry(where, "damaged", f"its header says the shape {shape}")
    return tuple(int(n) for n in shape), bool(fortran), dtype


def read_npz(data: bytes, wanted: Collection[str], where: str) -> dict[str, NDArray[Any]]:
    """The `wanted` arrays of an `.npz`, those that are there; arrays of objects and other members are left alone."""
    members = read_members(data, wanted, where)
    return {name: value for name, value in members.items() if not isinstance(value, bytes)}


def read_members(data: bytes, wanted: Collection[str], where: str) -> dict[str, NDArray[Any] | bytes]:
    """The same, with the pickles of arrays of objects, unread. Raises BadEntry."""
    members: dict[str, NDArray[Any] | bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name not in wanted:
                    continue
                if info.file_size > LARGEST:
                    raise BadEntry(where, "too large", f"{info.filename} is {info.file_size:,} bytes inflated")
                with archive.open(info) as member:
                    inflated = member.read(info.file_size)
                members[name] = read_npy(io.BytesIO(inflated), len(inflated), f"{where}/{info.filename}")
    except BROKEN_ZIP as error:
        raise BadEntry(where, "truncated", f"no whole .npz ({error})") from None
    return members
