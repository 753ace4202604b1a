"""For readers of tables: rows of CSV, TSV and JSON-lines files as text by column, with their places."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Literal

from vbert.data.names import ending
from vbert.data.readers._rows import LONGEST_LINE, Openable, lines
from vbert.errors import UserError, nearest

ENDINGS = (".csv", ".tsv", ".jsonl")
HINTED = re.compile("expected after|field limit")  # of csv's errors: a quote may be no quote
EXACT = 1 << 53  # up to here a float is the whole number that was written
DELIMITERS = (",", ";", "\t")  # of a .csv: that which its first line has most of

Cells = Mapping[str, str | None]


def rows(raw: Openable, name: str, columns: Mapping[str, str], quotes: bool = True) -> Iterator[tuple[str, Cells]]:
    """(`file:line`, column → text) of every row; empty cells and null are None, numbers and truth values text; 1.0
    of JSON is 1, and NaN is refused.

    columns: option → the column that it names. Raises UserError where the file lacks one, with the nearest; for other
    encodings than UTF-8 (with or without a byte order mark); and for rows that aren't as long as the first line.
    """
    if ending(name).lower() == ".jsonl":
        known: dict[str, None] = {}
        for where, row in lines(raw, name, dict[str, Any]):
            known |= dict.fromkeys(row)
            yield where, {column: _text(row.get(column), f"{where}: {column}") for column in columns.values()}
        check_columns(columns, list(known), name)
    else:
        yield from _separated(raw, name, columns, quotes)


def check_columns(columns: Mapping[str, str], known: Sequence[str], name: str) -> None:
    """Raises UserError for a column that is not among the `known` ones of the file `name`."""
    for option, column in columns.items():
        if column not in known:
            raise UserError(f"{name}: {option}: there is no column {column!r:.80}; {nearest(column, known)}")


def columns_of(raw: Openable, name: str) -> list[str]:
    """The columns of the file: its first line, or the fields of its first object."""
    if ending(name).lower() == ".jsonl":
        return next((list(row) for _, row in lines(raw, name, dict[str, Any])), [])
    return _header(_reader(raw, name, True), name)


def has_column(raw: Openable, name: str, column: str) -> bool:
    """Whether the file has the column: in its first line, or in any of its objects."""
    if ending(name).lower() == ".jsonl":
        return any(column in row for _, row in lines(raw, name, dict[str, Any]))
    return column in columns_of(raw, name)


def _separated(raw: Openable, name: str, columns: Mapping[str, str], quotes: bool) -> Iterator[tuple[str, Cells]]:
    reader = _reader(raw, name, quotes)
    header = _header(reader, name)
    check_columns(columns, header, name)
    empty = True
    places = [(column, header.index(column)) for column in dict.fromkeys(columns.values())]
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = "; if quotes are plain signs: `options: {quotes: false}`" if HINTED.search(str(error)) else ""
            raise UserError(f"{where}: {error}{hint}") from None
        if cells is None:
            break
        if len(cells) not in (0, len(header)):
            raise UserError(f"{where}: has {len(cells)} cells, the first line has {len(header)}")
        if cells:
            empty = False
            yield where, {column: cells[at] or None for column, at in places}
    if empty:
        raise UserError(f"{name}: has columns and no row below them; fill it or take it out")


def _reader(raw: Openable, name: str, quotes: bool) -> Any:
    how: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    csv.field_size_limit(LONGEST_LINE)
    return csv.reader(_decoded(raw, name), delimiter=_delimiter(raw, name), quoting=how, strict=True)


def _decoded(raw: Openable, name: str) -> Iterator[str]:
    with raw.open(name) as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(f"{name}:{number}: the line is longer than {LONGEST_LINE:,} bytes; is it a table?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}:{number}: is not UTF-8; save the file as UTF-8") from None


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{name}:1: is no line of columns: {error}") from None
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise UserError(f"{name}:1: two columns are called {twice[0]!r:.80}; rename one")
    return header


def _delimiter(raw: Openable, name: str) -> str:
    if ending(name).lower() == ".tsv":
        return "\t"
    with raw.open(name) as file:
        first = file.readline(1 << 16)
    return max(DELIMITERS, key=lambda sign: first.count(sign.encode()))


def _text(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: is {value}, no text and no number; write null, or leave it out")
    if isinstance(value, int | float):
        try:
            return str(int(value) if abs(value) < EXACT and value == int(value) else value)
        except ValueError:  # a whole number of thousands of digits
            pass
    raise UserError(f"{where}: must be text or a number, not {value!r:.80}")
