"""The schemas of Parquet tables: one for all data sets, unused columns null. Tables are written sorted, so the order of
reading changes no bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def _schema(required: dict[str, Any], optional: dict[str, Any] | None = None) -> pa.Schema:
    fields: list[pa.Field[Any]] = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    fields += [pa.field(name, kind) for name, kind in (optional or {}).items()]
    return pa.schema(fields)


def _struct(**kinds: Any) -> Any:
    return pa.struct(list(kinds.items()))


_BOXES = pa.list_(pa.list_(pa.float32()))  # x1, y1, x2, y2
# start and end: characters of the text; types: what a phrase names (people, scene), null where nothing says so
_PHRASES = pa.list_(_struct(start=pa.int32(), end=pa.int32(), boxes=_BOXES, types=pa.list_(pa.string())))

IMAGES_SCHEMA = _schema(
    {
        "image_id": pa.string(),
        "path": pa.string(),  # source/member of the raw files
        "sha256": pa.string(),  # of the file's bytes
        "width": pa.int32(),  # pixels as shown (EXIF orientation applied); 0 where the file can't be opened
        "height": pa.int32(),
    },
    {"split": pa.string()},
)

BOXES_SCHEMA = _schema(
    {
        "image_id": pa.string(),
        "x1": pa.float32(),  # pixels as shown; x2 and y2 exclusive
        "y1": pa.float32(),
        "x2": pa.float32(),
        "y2": pa.float32(),
        "class": pa.string(),
        "attributes": pa.list_(pa.string()),
    }
)

EXAMPLES_SCHEMA = _schema(
    {
        "example_id": pa.string(),
        "kind": pa.string(),  # one of examples.KINDS
        "image_ids": pa.list_(pa.string()),
        "split": pa.string(),  # train | val | test
        "text": pa.string(),
    },
    {
        "text_b": pa.string(),
        "answers": pa.list_(_struct(answer=pa.string(), score=pa.float32())),
        "label": pa.string(),
        "question_type": pa.string(),
        "phrases": _PHRASES,  # of `text`
        "negatives": pa.list_(pa.string()),  # texts false of this image
        "changed": pa.list_(pa.string()),  # the kind of change in each of `negatives`, e.g. color
        "false_of": pa.list_(pa.string()),  # images of the split that the text is known to be false of
        "unique": pa.bool_(),  # a caption true of this image alone within its split
        "given": pa.list_(pa.string()),  # people's answers as they were given, one each, in the file's order
        "answer_type": pa.string(),
        "choices": pa.list_(_struct(text=pa.string(), phrases=_PHRASES)),  # `label`: the right one's number, from 0
        "group": pa.string(),  # of examples that count together, e.g. the pairs of one sentence
        "boxes": _BOXES,  # of the image's given boxes, those that the example is about; null: all
        "part": pa.string(),  # of the split that a data set publishes in parts, e.g. test1
        "scene": pa.string(),  # what the image holds, JSON, see `scene_checks`
    },
)

ROWS_AT_ONCE = 20_000  # rows kept as Python objects; Arrow's are several times smaller


def as_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """`rows` as a table of `schema`; a missing key is null. Raises ValueError for an unknown key or a wrong type."""
    known = set(schema.names)
    batches = []
    source = iter(rows)
    while chunk := list(islice(source, ROWS_AT_ONCE)):
        for row in chunk:
            if unknown := row.keys() - known:
                raise ValueError(f"unknown column {min(unknown)!r} in {dict(row)!r:.200}")
        try:
            batch = pa.RecordBatch.from_pylist(chunk, schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"{error} (one of the rows from {dict(chunk[0])!r:.200})") from None
        for field in schema:
            if not field.nullable and batch.column(field.name).null_count:
                raise ValueError(f"no {field.name!r} in {next(r for r in chunk if r.get(field.name) is None)!r:.200}")
        batches.append(batch)
    return pa.Table.from_batches(batches, schema)


def sorted_table(table: pa.Table, *keys: str) -> pa.Table:
    """Rows by `keys`, equal ones in the order they came."""
    table = table.append_column("#", pa.array(range(table.num_rows), pa.int64()))
    return table.sort_by([(key, "ascending") for key in (*keys, "#")]).drop_columns(["#"])


def first_duplicate(table: pa.Table, key: str) -> str | None:
    """A value of the sorted string column `key` that occurs more than once."""
    column = table.column(key).combine_chunks()
    if len(column) < 2:
        return None
    same = pc.equal(column.slice(1), column.slice(0, len(column) - 1))
    at = pc.index(same, True).as_py()
    return None if at < 0 else str(column[at].as_py())


def write_table(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    return pq.read_table(path, schema=schema, memory_map=False)
