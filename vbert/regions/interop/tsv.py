"""Reads tab-separated lines with base64 arrays, for all TSV formats."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vbert.errors import UserError
from vbert.regions.interop import Dtype
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, out_of_proportion

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODES: dict[str, str] = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
USUAL = 1000.0  # an upper bound of known detectors' features
LONGEST = 256 * 2**20  # bytes of a line; 100 regions of 2,048 float32 take 1.1 MB


def columns(path: Path) -> int:
    """Columns of the first line; 0 where it is no table of tabs."""
    if not path.is_file():
        return 0
    try:
        with path.open("rb") as file:
            line = file.readline(LONGEST)
    except OSError:
        return 0
    return line.count(b"\t") + 1 if b"\t" in line and b"\0" not in line[:1000] else 0


def table_files(path: Path) -> dict[str, Path]:
    """The table, and the file of its lines' offsets where one lies beside it."""
    offsets = path.with_suffix(".lineidx")
    return {"features": path} | ({"lineidx": offsets} if offsets.is_file() else {})


def lines(files: Mapping[str, Path]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(first column, (offset, length, number from 1)) of every line; by the `.lineidx` where there is one."""
    path = files["features"]
    with path.open("rb") as file:
        entries = _by_offsets(file, files["lineidx"], path) if "lineidx" in files else _in_sequence(file, path)
        for key, offset, length, number in entries:
            try:
                yield key.decode(), (offset, length, number)
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: the image's name is not UTF-8 text: is it such a table?") from None


def _in_sequence(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    offset, number = 0, 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise UserError(f"{path}:{number}: a line of more than {LONGEST:,} bytes: is it such a table?")
        if line.strip():
            yield line.partition(b"\t")[0].strip(), offset, len(line), number
        offset += len(line)


def _by_offsets(file: BinaryIO, index: Path, path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    try:
        offsets = [int(line) for line in index.read_text().split()]
    except ValueError:
        raise UserError(f"{index}: not one offset a line; remove it, and {path.name} is read through") from None
    size = path.stat().st_size
    for number, (offset, end) in enumerate(zip(offsets, [*offsets[1:], size], strict=True), 1):
        if not 0 <= offset < end <= size or end - offset > LONGEST or not _begins_line(file, offset):
            raise UserError(f"{index}:{number}: no line begins at {offset} of {path.name}; remove it or make it again")
        key = file.read(min(4096, end - offset)).partition(b"\t")[0]
        yield key.strip(), offset, end - offset, number


def _begins_line(file: BinaryIO, offset: int) -> bool:
    file.seek(max(0, offset - 1))
    return offset == 0 or file.read(1) == b"\n"


@contextmanager
def opened_table(
    files: Mapping[str, Path], parse: Callable[[Sequence[bytes], str, Dtype | None], RawRegions], dtype: Dtype | None
) -> Iterator[Callable[[str, tuple[Any, ...]], RawRegions]]:
    """A reader of lines by their places, for one process; `dtype` of the features, where it is stated."""
    path = files["features"]
    with path.open("rb") as file:

        def read(_: str, place: tuple[Any, ...]) -> RawRegions:
            offset, length, number = place
            file.seek(offset)
            return parse(file.read(length).rstrip(b"\r\n").split(b"\t"), f"{path}:{number}", dtype)

        yield read


def checked_columns(row: Sequence[bytes], count: int, where: str) -> Sequence[bytes]:
    if len(row) != count:
        raise BadEntry(where, "truncated", f"{len(row)} of {count} columns: the line is cut off")
    return row


def whole(text: bytes, name: str, where: str) -> int:
    try:
        value = int(text.replace(b"_", b"?"))  # 1_0 is Python's
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise BadEntry(where, "damaged", f"{name} is {text[:40]!r}, not a whole number")
    return value


def features(text: bytes, n: int, dtype: Dtype | None, where: str) -> NDArray[Any]:
    """The features [n, d] in base64; d follows from the bytes, which are float32 unless `dtype` is stated.

    Raises BadEntry, naming likely other types, for numbers that can't be features.
    """
    data = decoded(text, "features", where)
    values = _shaped(data, CODES[dtype or "float32"], n, where)
    if dtype is None and (problem := out_of_proportion(values)) is not None:
        raise BadEntry(
            where, "numbers", f"read as float32 its {len(data):,} bytes are no features: {problem}{_others(data, n)}"
        )
    return values


def _shaped(data: bytes, code: str, n: int, where: str) -> NDArray[Any]:
    import numpy as np

    try:
        values = np.frombuffer(data, code).reshape((n, -1) if n else (0, 0))
        if n and not values.size:
            raise ValueError
        return values
    except ValueError:
        raise BadEntry(where, "damaged", f"features has {len(data):,} bytes, which is no {n} × d of {code}") from None


def _others(data: bytes, n: int) -> str:
    """The types of which the bytes would be features, as a hint."""
    import numpy as np

    for dtype in ("float16", "float64"):
        try:
            values = np.frombuffer(data, CODES[dtype]).reshape(n, -1)
        except ValueError:
            continue
        if np.isfinite(values).all() and np.abs(values).max() < USUAL and out_of_proportion(values) is None:
            within = f"{values.shape[1]} numbers a region from {values.min():.3g} to {values.max():.3g}"
            return f"; as {dtype} they are {within}: import them with --dtype {dtype} if that is what they are"
    return ""


def boxes(text: bytes, n: int, where: str) -> NDArray[Any]:
    """The boxes [n, 4] in base64: floats of any length, or whole numbers. Raises BadEntry."""
    import numpy as np

    values = numbers(text, "f", (n, 4), "boxes", where)
    # Whole numbers of pixels are almost 0 when read as floats.
    if values.any() and np.abs(values[values != 0]).max() < (0.01 if values.itemsize == 2 else 1e-30):
        values = values.view(f"<i{values.itemsize}")
    return values.astype(np.float32) if values.dtype != np.float32 else values


def numbers(text: bytes, kind: str, shape: tuple[int, ...], name: str, where: str) -> NDArray[Any]:
    """A base64 array of `shape`, of floats (`f`) or integers (`i`); their size follows from the bytes. Raises
    BadEntry."""
    import numpy as np

    data = decoded(text, name, where)
    size, rest = divmod(len(data), prod(shape)) if prod(shape) else (4, len(data))
    if rest or size not in ((2, 4, 8) if kind == "f" else (1, 2, 4, 8)):
        wanted = " × ".join(map(str, shape))
        raise BadEntry(
            where, "damaged", f"{name} has {len(data):,} bytes, which is no {wanted} of <{kind}4 or <{kind}8"
        )
    return np.frombuffer(data, f"<{kind}{size}").reshape(shape)


def decoded(text: bytes, name: str, where: str) -> bytes:
    """The bytes behind base64, also inside `b'…'`, which Python 2's scripts write under Python 3. Raises BadEntry."""
    if text.startswith(b"b'") and text.endswith(b"'"):
        text = text[2:-1]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise BadEntry(where, "truncated", f"{name} is not whole base64 ({error})") from None
