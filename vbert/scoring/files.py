"""Reading files of predictions and annotations strictly: every error names file, line and field, and a file of another
format is recognised."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import ValidationError

from vbert.data.file_kinds import ENOUGH, file_kind
from vbert.data.json_places import line_of
from vbert.data.readers._rows import LONGEST_LINE, adapter, checked, fault
from vbert.data.readers._tables import DELIMITERS
from vbert.errors import UserError, nearest
from vbert.scoring.formats import Format, otherwise

Content = TypeVar("Content")
NPY = b"\x93NUMPY"  # how an array of numpy begins


@dataclass(frozen=True)
class Document(Generic[Content]):
    """A JSON document: its content, and errors about a place in it."""

    path: Path
    text: str
    content: Content

    def refuse(self, place: Sequence[str | int], sentence: str) -> NoReturn:
        """Raises UserError as `file:line: field: sentence`."""
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
        field = field.replace("].", "]: ")
        raise UserError(f"{self.path}:{line_of(self.text, place)}: {field}: {sentence}")

    def keys_as_written(self) -> list[str]:
        """The keys of the outermost object, each as often as it stands in the file."""
        keys: list[str] = []

        def notice(pairs: list[tuple[str, Any]]) -> None:
            keys[:] = [key for key, _ in pairs]  # the outermost object comes last

        json.loads(self.text, object_pairs_hook=notice)
        return keys


def read(path: Path) -> bytes:
    """Raises UserError for what is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read") from None


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes. Raises UserError for what is no file."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return read(path)[:count]


def text_of(path: Path, wanted: Format) -> str:
    """UTF-8 with or without BOM. Raises UserError for other files, saying what they are."""
    data = read(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(path, wanted, f"byte {error.start:,} is not UTF-8")
    if "\0" in text:
        refuse(path, wanted, "it holds NUL characters")
    return text


def document(path: Path, kind: type[Content], wanted: Format) -> Document[Content]:
    """A JSON document of the type `kind`."""
    text = text_of(path, wanted)
    known: Any = kind
    try:
        content = adapter(known).validate_json(text)
    except ValidationError as error:
        otherwise(path, text, wanted)
        first = error.errors(include_url=False)[0]
        where = f"{path}:{line_of(text, [part for part in first['loc'] if isinstance(part, str | int)])}"
        if first["type"] == "json_invalid":
            where = f"{path}"
        raise UserError(f"{where}: {fault(error, kind)}") from None
    return Document(path, text, content)


def lines(path: Path, kind: type[Content], wanted: Format) -> list[tuple[str, Content]]:
    """(`file:line`, row) of every line of JSON lines that isn't empty."""
    text = text_of(path, wanted)
    rows = []
    try:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                rows.append((f"{path}:{number}", checked(line.encode(), kind, f"{path}:{number}")))
    except UserError:
        otherwise(path, text, wanted)
        _refuse_array(path, text)
        raise
    return rows


def pairs(path: Path, wanted: Format) -> list[tuple[str, str, str]]:
    """(`file:line`, name, value) of a CSV of two columns without a header; blanks around both are dropped."""
    text = text_of(path, wanted)
    rows = []
    try:
        for where, cells in _cells(path, text, ","):
            if len(cells) != 2:
                raise UserError(f"{where}: must be two fields, {wanted.looks}, not {','.join(cells)!r:.80}")
            rows.append((where, cells[0], cells[1]))
    except UserError:
        otherwise(path, text, wanted)
        raise
    return rows


def records(
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str],
    wanted: Format,
    instead: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """(`file:line`, column → text) of a CSV (or with `;`) or TSV with a header, or of JSON lines, whose strings, whole
    numbers and flags become text; numbers with a fraction only of `optional` columns, which a row lacks where they are
    empty. instead: column → the name of the one that is read where it isn't there."""
    text = text_of(path, wanted)
    try:
        read_rows = _json_records if text.lstrip()[:1] in ("{", "[") else _csv_records
        return list(read_rows(path, text, columns, optional, instead or {}))
    except UserError:
        otherwise(path, text, wanted)
        _refuse_array(path, text)
        raise


def _refuse_array(path: Path, text: str) -> None:
    """Raises UserError for a list in place of JSON lines."""
    if text.lstrip()[:1] == "[":
        raise UserError(f"{path}: must be JSON lines, one object a line, not one list of them")


def number(value: str, where: str, field: str) -> float:
    """A finite number as text. Raises UserError."""
    try:
        found = float(value.replace("_", "?"))  # Python's own 1_0 is no number of a file
    except ValueError:
        raise UserError(f"{where}: {field}: must be a number, not {value!r:.80}") from None
    if not abs(found) < float("inf"):
        raise UserError(f"{where}: {field}: must be a finite number, not {value!r:.80}")
    return found


def _csv_records(
    path: Path, text: str, columns: Sequence[str], optional: Sequence[str], instead: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    first = text.partition("\n")[0]
    rows = _cells(path, text, max(DELIMITERS, key=first.count))
    where, header = next(rows, (f"{path}:1", []))
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise UserError(f"{where}: the column {twice[0]!r} occurs twice")
    names = _there(columns, instead, header)
    for column in columns:
        if names[column] not in header:
            raise UserError(f"{where}: there is no column {column!r}; {nearest(column, header):.300}")
    places = {
        column: header.index(names.get(column, column))
        for column in (*columns, *optional)
        if names.get(column, column) in header
    }
    for where, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{where}: has {len(cells)} fields, the header {len(header)}")
        for column in columns:
            if not cells[places[column]]:
                raise UserError(f"{where}: {column}: is empty")
        yield where, {column: cells[at] for column, at in places.items() if cells[at]}


def _json_records(
    path: Path, text: str, columns: Sequence[str], optional: Sequence[str], instead: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = checked(line.encode(), dict[str, Any], where)
        names, record = _there(columns, instead, row), {}
        for column in (*columns, *optional):
            value = row.get(names.get(column, column))
            if value is None and column in columns:
                if names[column] in row:
                    raise UserError(f"{where}: {column}: is null")
                raise UserError(f"{where}: {column}: is missing; {nearest(column, row):.300}")
            if value is not None:
                record[column] = _as_text(value, column in optional, f"{where}: {column}")
        yield where, record


def _there(columns: Sequence[str], instead: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """Each column → the name that it has in the file."""
    return {c: instead[c] if c not in known and instead.get(c) in known else c for c in columns}


def _as_text(value: Any, fractions: bool, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and fractions:
        return repr(value)
    if isinstance(value, str | int) and str(value).strip():
        return str(value).strip()
    raise UserError(f"{where}: must be text or a whole number, not {json.dumps(value, default=repr):.80}")


def _cells(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(`file:line` of its last line, cells without blanks around them) of every row that isn't empty."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{path}:{reader.line_num}", [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: no CSV: {error}") from None


def check_ids(path: Path, wanted: Format, known: Iterable[str], given: Iterable[str]) -> None:
    """Raises UserError for a file of another format that reads as the wanted one and has none of the known ids."""
    if set(known).isdisjoint(given):
        otherwise(path, text_of(path, wanted), wanted)


def refuse(path: Path, wanted: Format, fault: str = "it is of another format") -> NoReturn:
    """Raises UserError for a file of another format than the wanted one, saying what it is."""
    data = read(path)
    if data.startswith(NPY):
        otherwise(path, None, wanted)
    kind = file_kind(data[:ENOUGH])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    else:
        otherwise(path, text, wanted)
    known = kind is not None and not kind.startswith(("JSON", "text"))
    raise UserError(f"{path}: must be {wanted.title}; {f'it is {kind}' if known else fault}")


def unknown_label(label: str, known: Iterable[str]) -> str:
    """The end of an error for a label that the annotations don't have."""
    return f"{label!r:.80} is no label of the annotations; {nearest(label, known):.300}"


def by_label(known: Sequence[str]) -> Callable[[str], str | None]:
    """From a label as predicted to the one of the annotations: the same, or the only one that differs in case alone."""
    exact = set(known)
    folded = {label.casefold(): label for label in known}
    if len(folded) < len(exact):
        folded = {}
    return lambda label: label if label in exact else folded.get(label.casefold())
