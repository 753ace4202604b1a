"""For all readers: checks JSON against types, with errors that name file, place and field, and checks options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, BinaryIO, NotRequired, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.errors import UserError, nearest

LONGEST_LINE = 1 << 24  # bytes; the whole of an example is below a few KB
NO, YES = (False, 0, "", "0", "false", "no", None), (True, 1, "1", "true", "yes")


class PhraseRow(TypedDict):
    start: int
    end: int
    boxes: list[list[int | float]]
    types: NotRequired[list[str] | None]


class ChoiceRow(TypedDict):
    text: str
    phrases: NotRequired[list[PhraseRow] | None]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class ExampleRow(TypedDict, total=False):
    """The columns of EXAMPLES_SCHEMA; null is the same as not given."""

    example_id: str | None
    kind: str | None
    image_ids: list[str] | None
    split: str | None
    text: str | None
    text_b: str | None
    answers: list[Any] | None
    label: str | None
    question_type: str | None
    phrases: list[PhraseRow] | None
    negatives: list[str] | None
    changed: list[str] | None
    false_of: list[str] | None
    unique: bool | None
    given: list[str] | None
    answer_type: str | None
    choices: list[ChoiceRow] | None
    group: str | None
    boxes: list[list[int | float]] | None
    part: str | None
    scene: str | None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Made at first use: planning imports readers but reads nothing."""
    return TypeAdapter(kind)


def checked(data: bytes, kind: Any, where: str) -> Any:
    """JSON checked against the type `kind`, without fields that it doesn't have. Raises UserError as `where: field:
    what`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where}: is text in UTF-16; save it as UTF-8")
    try:
        return adapter(kind).validate_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        raise UserError(f"{where}: {fault(error, kind)}") from None


class Openable(Protocol):
    """Files by name: raw files, or a folder's."""

    def open(self, name: str) -> BinaryIO: ...


def lines(raw: Openable, name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """(`file:line`, row) of every line that isn't empty."""
    with raw.open(name) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{name}:{number}"
            if len(line) > LONGEST_LINE:
                raise UserError(f"{where}: the line is longer than {LONGEST_LINE:,} bytes; is it one object a line?")
            if line.strip() not in (b"", b"\xef\xbb\xbf"):
                yield where, checked(line, kind, where)


def stated(text: str, where: str, field: str = "sentence") -> str:
    """The text without blanks around it. Raises UserError where it is empty."""
    if not text.strip():
        raise UserError(f"{where}: {field}: is empty; mend the line or take it out")
    return text.strip()


def flag(value: Any, where: str) -> bool:
    """A flag as files write it: 1, true, "1"; 0, false, "0", null, nothing. Raises UserError for anything else."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if plain in YES or plain in NO:
        return plain in YES
    raise UserError(f"{where}: must be 0 or 1, not {value!r:.80}")


def check_choice(value: Any, valid: Sequence[str | bool], option: str) -> None:
    """Raises UserError for an option of a reader that is not among the valid ones."""
    if value not in valid:
        words = [str(choice) for choice in valid]
        raise UserError(f"options.{option}: {value!r:.80} is none of {', '.join(words)}; {nearest(str(value), words)}")


def named_by_split(splits: Any) -> Mapping[str, str] | None:
    """The option `splits`, if it is a mapping of split to text; UserError otherwise."""
    if splits is None:
        return None
    if isinstance(splits, Mapping) and splits:
        known: dict[str, str] = {}
        for split, value in splits.items():
            check_choice(split, ("train", "val", "test"), "splits")
            if not isinstance(value, str):
                raise UserError(f"options.splits.{split}: must be text, not {value!r:.80}")
            if known.setdefault(value, split) != split:
                raise UserError(f"options.splits.{split}: {value!r:.80} is that of {known[value]} too; part them")
        return splits
    raise UserError(f"options.splits: must be a mapping like {{train: …, test: …}}, not {splits!r:.80}")


def check_matched(splits: Mapping[str, str], names: Iterable[str], ends: bool, what: str) -> None:
    """Raises UserError for a split whose prefix (or suffix) matches no name."""
    every = list(names)
    for split, part in splits.items():
        if not any(f"/{name}".endswith(f"/{part}") if ends else name.startswith(part) for name in every):
            how = "ends" if ends else "begins"
            raise UserError(f"options.splits.{split}: no {what} {how} with {part!r}; {nearest(part, every[:20]):.300}")


def fault(error: ValidationError, kind: Any) -> str:
    """The first of pydantic's faults as a sentence with its field."""
    fault = error.errors(include_url=False)[0]
    at = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"] if part not in ("int", "str")
    )
    field = at.removeprefix(".").replace("].", "]: ")
    if fault["type"] == "json_invalid":
        return f"not JSON: {fault['msg'].removeprefix('Invalid JSON: ')}"
    if fault["type"] == "missing":
        return f"{field}: is missing"
    if fault["type"] == "extra_forbidden":
        unknown = fault["loc"][-1]
        return f"there is no field {unknown!r:.80}; {nearest(str(unknown), _fields(kind, fault['loc'][:-1]))}"
    if fault["type"] in ("too_short", "too_long"):
        end, bound = ("least", "min_length") if fault["type"] == "too_short" else ("most", "max_length")
        sizes = fault["ctx"]
        return f"{field}: must have at {end} {sizes[bound]} items, not {sizes['actual_length']}"
    message = fault["msg"].replace("Input should be", "must be").replace("a valid ", "").replace("array", "list")
    return f"{field}{': ' if field else ''}{message}, not {json.dumps(fault['input'], default=repr):.80}"


def _fields(kind: Any, path: Sequence[Any]) -> list[str]:
    """The fields of a row, or of the phrase or choice in it."""
    for part in reversed(path):
        if part in ("phrases", "choices"):
            return list((PhraseRow if part == "phrases" else ChoiceRow).__annotations__)
    return list(kind.__annotations__)
