"""The line of a value in a JSON document, for errors about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from json import JSONDecodeError, JSONDecoder

BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = JSONDecoder(strict=False)


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, from 1, on which the value at `path` begins: ("annotations", 3, "answers"). Of a path that leads
    nowhere, or of text that ends before it, the line of the last value on its way."""
    at = _skip(text, text.startswith("\ufeff"))
    for part in path:
        try:
            inner = _entry(text, at, part)
        except (JSONDecodeError, RecursionError):
            break
        if inner is None:
            break
        at = inner
    return text.count("\n", 0, at) + 1


def _entry(text: str, at: int, part: str | int) -> int | None:
    """Where the entry `part` of the object or list at `at` begins; of equal keys the last, which is the one read."""
    kind, number, found = text[at : at + 1], 0, None
    if (kind, type(part)) not in (("{", str), ("[", int)):
        return None
    at = _skip(text, at + 1)
    while at < len(text) and text[at] not in "}]":
        key: str | int = number
        if kind == "{":
            key, at = DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # behind the colon
        if key == part:
            found = at
            if kind == "[":
                break
        _, at = DECODER.raw_decode(text, at)
        at, number = _skip(text, at), number + 1
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    blanks = BLANKS.match(text, at)
    return blanks.end() if blanks else at
