"""A table of questions: one row an example, read leniently: a row that can't be asked is kept, with the reason."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.data.names import ending
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from vbert.data.raw import RawFiles

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
LONGEST_LINE = 1 << 20  # bytes of a row
LONGEST_TEXT = 10_000  # characters of a text that is read, in a cell or in Python
ROWS = "rows.parquet"


class Fields(NamedTuple):
    """The cells of a question: those that it must have, and those that it may."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


# What is asked, by the method of `VisualBert`.
QUESTIONS: Mapping[str, Fields] = {
    "answer": Fields(("image", "question")),
    "true": Fields(("image", "statement"), ("image_2",)),
    "classify": Fields(("image", "text"), ("text_b",)),
    "choose": Fields(("image", "question", "choices")),
    "ground": Fields(("image", "text"), ("phrase",)),
    "match": Fields(("image", "text")),
    "caption": Fields(("image",)),
    "fill": Fields(("image", "text")),
}
LISTS = ("choices",)


class TableSettings(Settings):
    """columns: pairs of a cell's name (image, question, …) and the table's column for it; others are looked for by
    their own names."""

    question: Literal["answer", "true", "classify", "choose", "ground", "match", "caption", "fill"] = Field(
        description="what is asked of every row"
    )
    columns: tuple[tuple[str, str], ...] = Field((), description="(cell, the column that holds it)")
    rows_at_once: int = Field(512, ge=1, description="rows of a unit of work")


class QuestionTable(Artifact):
    """rows.parquet: `row` (its line, or number, from 1), the cells as texts, `reason` (why it can't be asked, or ""); a
    row group is a unit of work."""

    def table(self) -> pa.Table:
        import pyarrow.parquet as pq

        table: pa.Table = pq.read_table(self.file(ROWS))
        return table

    def groups(self) -> list[int]:
        """The number of rows of each unit."""
        import pyarrow.parquet as pq

        about = pq.read_metadata(self.file(ROWS))
        return [about.row_group(k).num_rows for k in range(about.num_row_groups)]

    def group(self, number: int) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.ParquetFile(self.file(ROWS)).read_row_group(number).to_pylist()
        return rows


def write_questions(directory: Path, raw: RawFiles, settings: TableSettings) -> dict[str, Any]:
    """Writes the rows of the one file in `raw`. Returns counts. Raises UserError for a file that is no table, or lacks
    a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (name,) = raw.members()
    fields = QUESTIONS[settings.question]
    cells = [*fields.needed, *fields.optional]
    given = dict(settings.columns)
    if unknown := [cell for cell in given if cell not in cells]:
        raise UserError(f"--column {unknown[0]}: `{settings.question}` has no such cell; {nearest(unknown[0], cells)}")
    texts: dict[str, pa.DataType] = {cell: pa.string() for cell in (*cells, "reason")}
    schema = pa.schema({"row": pa.int64(), **texts})
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(directory / ROWS, schema, compression="zstd", write_page_checksum=True) as out:
        waiting: list[dict[str, Any]] = []
        for row in _rows(raw, name, fields, given):
            counts["rows"] += 1
            counts["unasked"] += bool(row["reason"])
            waiting.append(row)
            if len(waiting) == settings.rows_at_once:
                out.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        if waiting:
            out.write_table(pa.Table.from_pylist(waiting, schema))
    if not counts["rows"]:
        raise UserError(f"{name}: has no row below its columns; fill it or give another")
    return {"rows": counts["rows"], "unasked": counts["unasked"]}


def check_ending(name: str) -> str:
    """The ending of a table's name, in small letters. Raises UserError for one that is none of a table."""
    if (kind := ending(name).lower()) not in ENDINGS:
        raise UserError(f"{name}: a table is one of {', '.join(ENDINGS)}; save it as one of these")
    return kind


def _rows(raw: RawFiles, name: str, fields: Fields, given: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows as `QuestionTable` has them."""
    kind = check_ending(name)
    read = {".jsonl": _json_lines, ".parquet": _parquet}.get(kind, _separated)
    cells = [*fields.needed, *fields.optional]
    columns: dict[str, str] | None = None
    for number, row in read(raw, name):
        if columns is None and not isinstance(row, str):
            columns = _columns(name, list(row), fields, given)
        if isinstance(row, str):
            yield {"row": number, **dict.fromkeys(cells), "reason": row}
            continue
        assert columns is not None
        found = {cell: row.get(columns[cell]) if cell in columns else None for cell in cells}
        texts, reason = _texts(found, fields)
        yield {"row": number, **texts, "reason": reason}


def _columns(name: str, known: Sequence[str], fields: Fields, given: Mapping[str, str]) -> dict[str, str]:
    """Cell → column. Raises UserError for one that is not there."""
    columns = {cell: given.get(cell, cell) for cell in (*fields.needed, *fields.optional)}
    for cell, column in list(columns.items()):
        if column in known:
            continue
        if cell in fields.optional and cell not in given:
            del columns[cell]
            continue
        raise UserError(
            f"{name}: no column {column!r:.80}, which is to hold `{cell}`: {nearest(column, known)}; name it by "
            f"--column {cell}=COLUMN"
        )
    return columns


def _texts(row: Mapping[str, Any], fields: Fields) -> tuple[dict[str, str | None], str]:
    """(the cells as texts, why the row can't be asked or "")."""
    texts: dict[str, str | None] = {}
    reason = ""
    for cell, value in row.items():
        if cell in LISTS:
            texts[cell], problem = _listed(value, cell)
        elif value is None or isinstance(value, str):
            texts[cell], problem = value, ""
        elif isinstance(value, int | float) and not isinstance(value, bool):
            texts[cell], problem = str(value), ""
        else:
            texts[cell], problem = None, f"{cell}: is no text"
        if not problem and cell in fields.needed and not (texts[cell] or "").strip():
            problem = f"{cell}: is empty"
        if not problem and len(texts[cell] or "") > LONGEST_TEXT:
            texts[cell], problem = None, f"{cell}: is longer than {LONGEST_TEXT:,} characters"
        reason = reason or problem
    phrase, text = texts.get("phrase"), texts.get("text")
    if not reason and phrase and phrase not in (text or ""):
        reason = "phrase: is no part of the text"
    return texts, reason


def _listed(value: Any, cell: str) -> tuple[str | None, str]:
    """A list of texts as JSON: given as such, as JSON text, or with | between them."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else [one.strip() for one in value.split("|")]
        except ValueError:
            return None, f"{cell}: is no list of JSON"
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value) or len(value) < 2:
        return None, f"{cell}: is no list of two texts or more"
    return json.dumps(value, ensure_ascii=False), ""


def _separated(raw: RawFiles, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, the row by column, or what is wrong with it) of a CSV or TSV file."""
    with raw.open(name) as file:
        first = file.readline(LONGEST_LINE)
    sign = "\t" if ending(name).lower() == ".tsv" else max(",;\t", key=lambda one: first.count(one.encode()))
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_decoded(raw, name), delimiter=sign, strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name}:{number}: {error}, in the row that begins here; quote cells with quotes or line ends in "
                "them, and double those quotes"
            ) from None
        if cells is None:
            return
        if not header:
            header = cells
            if twice := sorted({column for column in header if header.count(column) > 1}):
                raise UserError(f"{name}:1: two columns are called {twice[0]!r:.80}; rename one")
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        elif cells:
            yield number, f"row: has {len(cells)} cells, the first line has {len(header)}"


def _decoded(raw: RawFiles, name: str) -> Iterator[str]:
    number = 0
    with raw.open(name) as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(f"{name}:{number}: the line is longer than {LONGEST_LINE:,} bytes; is it a table?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}:{number}: is not UTF-8; save the file as UTF-8") from None


def _json_lines(raw: RawFiles, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(_decoded(raw, name), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "row: is no JSON"
            continue
        yield number, row if isinstance(row, dict) else "row: is no object of JSON"


def _parquet(raw: RawFiles, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(raw.local() / name if raw.local().is_dir() else raw.local()).iter_batches(4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: no Parquet file that can be read ({str(error).splitlines()[0]:.100})") from None
