"""Names of files inside archives and folders: relative, plain, with `/`."""

from __future__ import annotations

from vbert.artifacts.errors import UserError


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
    if long or "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise UserError(f"file name {name!r:.200} holds a backslash or control characters, or is too long; rename it")
    return name
