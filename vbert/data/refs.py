"""Referring expressions as lichengunc/refer publishes them, `refs(unc).p`: a pickle, read as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.data.file_kinds import ENOUGH, file_kind
from vbert.data.pickles import PickleLimits, UnsafePickle, load
from vbert.errors import UserError

# Of 50,000 references with their words, protocol 0 as Python 2 writes it.
LIMITS = PickleLimits(seconds=300, memory=4 * 2**30, operations=100_000_000, size=2**30)
PUBLISHED = "refs(unc).p, refs(umd).p or refs(google).p as published"


@with_config(ConfigDict(strict=True, extra="allow"))
class Expression(TypedDict):
    """`sent`: its words in lower case, joined by blanks; `raw`: as it was written."""

    sent_id: int
    sent: str
    raw: str


@with_config(ConfigDict(strict=True, extra="allow"))
class Ref(TypedDict):
    """One thing of an image (the annotation `ann_id` of instances.json) and the expressions that refer to it. split:
    train, val, test, testA (people) or testB (other things)."""

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int
    split: str
    sentences: list[Expression]


def read_refs(source: Path | bytes, name: str | None = None) -> list[Ref]:
    """The references of a file or its bytes, in the file's order. name: of the file, for errors.

    Text that Python 2 stored as UTF-8 bytes is decoded. Raises UserError for another file and, with the field, for
    other content, UnsafePickle for a pickle that isn't whole or holds more than plain data.
    """
    name = str(source) if name is None else name
    kind = file_kind(_head(source, name))
    if kind is not None and not kind.startswith("text"):  # as the oldest pickles are
        raise UserError(f"{name}: must be a pickle of references, but is {kind}; give {PUBLISHED}")
    try:
        content = load(source, name, LIMITS)
    except UnsafePickle as error:
        if not error.reason:
            raise
        raise UnsafePickle(f"{name}: is not read, because {error.reason}; give {PUBLISHED}, whole") from None
    try:
        refs: list[Ref] = TypeAdapter(list[Ref]).validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        said = (
            fault["msg"]
            .replace("Input should be", "must be")
            .replace("a valid ", "")
            .replace("Field required", "is missing")
        )
        where = f"{name}: {field.replace('].', ']: ')}{': ' if field else ''}"
        raise UserError(f"{where}{said}; is this a refs(unc).p, refs(umd).p or refs(google).p?") from None
    for ref in refs:
        for expression in ref["sentences"]:
            expression["sent"], expression["raw"] = _decoded(expression["sent"]), _decoded(expression["raw"])
    return refs


def _head(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source[:ENOUGH]
    try:
        with source.open("rb") as file:
            return file.read(ENOUGH)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder; give the file in it, {PUBLISHED}") from None
    except PermissionError:
        raise UserError(f"{name}: may not be read") from None


def _decoded(text: Any) -> str:
    """Bytes of Python 2 arrive as Latin-1, whatever they encode."""
    try:
        return str(text).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return str(text)
