"""A folder of Hugging Face `datasets`, which `load_from_disk` opens: one row an image.

image_id string · width, height int32 · features list of float16 [d] · boxes list of float32 [4], x1 y1 x2 y2 in pixels
of the original image · scores · classes · attributes · distributions list of float16 [C]; fields that the features lack
are null, or no column. Folders written by others are read too, with features and boxes of any float type.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.store.digests import sha256_file
from vbert.errors import UserError
from vbert.regions.interop import Place, Read
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, missing_library

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
TITLE = "Hugging Face datasets folder (save_to_disk)"
REQUIRED = ("dataset_info.json", "state.json")
ROWS_AT_ONCE = 64  # in memory


def holds(path: Path) -> bool:
    return path.is_dir() and all((path / name).is_file() for name in REQUIRED)


def files(path: Path) -> dict[str, Path]:
    paths = sorted(path.glob("*.arrow")) if path.is_dir() else []
    if not paths:
        raise UserError(f"{path}: no folder that datasets saved: there is no *.arrow in it")
    return {"features": paths[0]} | {f"part {k}": part for k, part in enumerate(paths[1:], 1)}


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    for role, path in files.items():
        for k, batch in enumerate(_batches(path)):
            names = _column(batch, "image_id", path)
            for row, name in enumerate(names.to_pylist()):
                if not isinstance(name, str):
                    raise UserError(f"{path}: image_id of row {row} of batch {k} is {name!r:.40}, not a text")
                yield name, (role, k, row)


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    batches = {role: _batches(path) for role, path in files.items()}

    def read(key: str, place: Place) -> RawRegions:
        role, k, row = place
        return _regions(batches[role][k], row, f"{files[role]}: {key}")

    yield read


def _batches(path: Path) -> list[pa.RecordBatch]:
    """All record batches of a file, memory-mapped: only metadata that safety depends on is read at once."""
    import pyarrow as pa

    try:
        for message in pa.ipc.MessageReader.open_stream(pa.memory_map(str(path))):
            if message.type == "dictionary" or (
                message.type == "record batch" and _compressed(bytes(message.metadata))
            ):
                raise UserError(
                    f"{path}: its columns are compressed or dictionaries; save it as datasets does by itself"
                )
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            batches = list(stream)
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: no whole Arrow stream as datasets writes it ({str(error)[:200]})") from None
    return batches


def _compressed(metadata: bytes) -> bool:
    """Whether the metadata of a record batch names a compression, whose size when undone nothing bounds.

    Source: Message.fbs of Apache Arrow (Message.header is field 2, RecordBatch.compression field 3), read as
    FlatBuffers lays tables out: a table begins with the way back to its vtable, which says where each field is.
    """

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        at = struct.unpack_from("<H", metadata, vtable + entry)[0]
        return table + at if at else 0

    def follow(place: int) -> int:
        return place + int(struct.unpack_from("<I", metadata, place)[0])

    try:
        header = field(follow(0), 2)
        return bool(header and field(follow(header), 3))
    except struct.error:
        return True


def _column(batch: pa.RecordBatch, name: str, path: Path) -> pa.Array[Any]:
    if name not in batch.schema.names:
        raise UserError(f"{path}: there is no column {name!r}, only {', '.join(batch.schema.names)}")
    return batch.column(name)


def _regions(batch: pa.RecordBatch, row: int, where: str) -> RawRegions:
    features = _numbers(batch, "features", row, where)
    if features is None:
        raise BadEntry(where, "no regions", "features is null or no column")
    regions = RawRegions(
        features=features,
        boxes=_numbers(batch, "boxes", row, where),
        width=_plain(batch, "width", row, where, int),
        height=_plain(batch, "height", row, where, int),
        scores=_numbers(batch, "scores", row, where, deep=1),
        classes=_plain(batch, "classes", row, where, list),
        attributes=_plain(batch, "attributes", row, where, list),
        distributions=_numbers(batch, "distributions", row, where),
    )
    n = len(features)
    for name in ("boxes", "scores", "classes", "attributes", "distributions"):
        value = getattr(regions, name)
        if value is not None and len(value) != n:
            raise BadEntry(where, "damaged", f"{name} has {len(value)} entries for {n} regions")
    if regions.boxes is not None and n and regions.boxes.shape[1] != 4:
        raise BadEntry(where, "damaged", f"boxes have {regions.boxes.shape[1]} numbers each, not x1 y1 x2 y2")
    if regions.classes is not None and not all(isinstance(name, str) for name in regions.classes):
        raise BadEntry(where, "damaged", "classes are no texts")
    names = regions.attributes or ()
    if not all(isinstance(some, list) and all(isinstance(name, str) for name in some) for some in names):
        raise BadEntry(where, "damaged", "attributes are no lists of texts")
    return regions


def _plain(batch: pa.RecordBatch, name: str, row: int, where: str, kind: type) -> Any:
    value = batch.column(name)[row].as_py() if name in batch.schema.names else None
    if value is not None and not isinstance(value, kind):
        raise BadEntry(where, "damaged", f"{name} is {value!r:.60}, not {'a number' if kind is int else 'a list'}")
    return value


def _numbers(batch: pa.RecordBatch, name: str, row: int, where: str, deep: int = 2) -> Any:
    """The list (of lists) of numbers in a cell, [n] or [n, d], where it lies in the file; None for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in batch.schema.names or not batch.column(name)[row].is_valid:
        return None
    values: Any = batch.column(name).slice(row, 1)
    shape: list[int] = []
    for _ in range(deep):
        if not _is_lists(values.type) or values.null_count:
            raise BadEntry(where, "damaged", f"{name} is no {'table' if deep == 2 else 'list'} of numbers")
        lengths = pc.unique(pc.list_value_length(values)).to_pylist() or [getattr(values.type, "list_size", 0)]
        if len(lengths) > 1:
            raise BadEntry(where, "damaged", f"{name} has rows of {lengths[0]} and of {lengths[1]} numbers")
        values, shape = values.flatten(), [*shape, lengths[0]]
    if values.null_count or not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise BadEntry(where, "damaged", f"{name} is no {'table' if deep == 2 else 'list'} of numbers")
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _is_lists(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def write(target: Path, entries: Iterable[tuple[str, RawRegions]]) -> dict[str, Any]:
    """Write the entries into the empty folder `target`, in their order. Returns counts."""
    try:
        import datasets
    except ImportError:
        raise UserError(missing_library("datasets", "a folder of Hugging Face datasets")) from None
    first, rest = _first(entries)
    counts = {"images": 0, "regions": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for image_id, regions in rest:
            counts["images"] += 1
            counts["regions"] += len(regions.features)
            yield _row(image_id, regions)

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arrow-") as scratch:
        file = Path(scratch) / "rows.arrow"
        with datasets.arrow_writer.ArrowWriter(
            path=str(file), features=_features(datasets, first), writer_batch_size=ROWS_AT_ONCE
        ) as writer:
            for row in rows():
                writer.write(row)
            writer.finalize()
        made = datasets.Dataset.from_file(str(file))
        made._fingerprint = sha256_file(file)[:16]  # the library's own depends on the time
        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.utils.logging.disable_progress_bar()
        try:
            made.save_to_disk(str(target))
        finally:
            if bars:
                datasets.utils.logging.enable_progress_bar()
    return {**counts, "zeros": []}


def _first(entries: Iterable[tuple[str, RawRegions]]) -> tuple[RawRegions, Iterator[tuple[str, RawRegions]]]:
    """The first entry that has regions (it tells d and C), and all entries."""
    waiting, source = [], iter(entries)
    for entry in source:
        waiting.append(entry)
        if len(entry[1].features):
            break
    if not waiting:
        raise UserError("there are no features to export")

    def everything() -> Iterator[tuple[str, RawRegions]]:
        yield from waiting
        yield from source

    return waiting[-1][1], everything()


def _features(datasets: Any, first: RawRegions) -> Any:
    many, value = datasets.List, datasets.Value
    columns = {
        "image_id": value("string"),
        "width": value("int32"),
        "height": value("int32"),
        "features": many(many(value("float16"), length=first.features.shape[1])),
        "boxes": many(many(value("float32"), length=4)),
        "scores": many(value("float32")),
        "classes": many(value("string")),
        "attributes": many(many(value("string"))),
    }
    if first.distributions is not None:
        columns["distributions"] = many(many(value("float16"), length=first.distributions.shape[1]))
    return datasets.Features(columns)


def _row(image_id: str, regions: RawRegions) -> dict[str, Any]:
    import numpy as np

    def numbers(values: Any, dtype: Any) -> Any:
        return None if values is None else list(np.asarray(values, dtype))

    row = {
        "image_id": image_id,
        "width": regions.width,
        "height": regions.height,
        "features": numbers(regions.features, np.float16),
        "boxes": numbers(regions.boxes if regions.unit == "pixels" else None, np.float32),
        "scores": numbers(regions.scores, np.float32),
        "classes": None if regions.classes is None else list(regions.classes),
        "attributes": None if regions.attributes is None else [list(names) for names in regions.attributes],
    }
    return row | (
        {} if regions.distributions is None else {"distributions": numbers(regions.distributions, np.float16)}
    )
