"""Names of files inside archives and folders: relative, plain, with `/`."""

from __future__ import annotations

import re

from vbert.artifacts.errors import UserError

CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def safe_name(name: str) -> str:
    """`name`, if it is relative, plain and below 1,024 bytes; UserError otherwise. A leading `./` is dropped."""
    name = name.removeprefix("./")
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"file name {name!r:.200} is not a plain relative one")
    try:
        long = len(name.encode()) > 1024
    except UnicodeEncodeError:
        raise UserError(f"file name {name!r:.200} is not UTF-8; rename it") from None
    if long or CONTROL.search(name):
        raise UserError(f"file name {name!r:.200} holds a backslash or control characters, or is too long; rename it")
    return name
