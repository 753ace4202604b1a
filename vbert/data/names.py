"""Names of files inside archives and folders: relative, plain, with `/`; which are images; and which file is meant."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from vbert.errors import UserError, near

MACOSX = "__MACOSX"  # the folder of resource forks in zips that macOS makes

CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")

# Name endings of the formats in `decode.FORMATS`, in lower case: one list for all readers. It is fixed, not asked of
# Pillow, so that an installed plug-in of Pillow changes no collection.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)


def given_path(given: Any, what: str) -> str:
    """A path of `what` that somebody gave, as text. Raises UserError for an empty one, and for what is no path."""
    if not isinstance(given, str | os.PathLike) or not isinstance(text := os.fspath(given), str):
        raise UserError(f"{type(given).__name__} is no path of {what}; give its name as text, or a pathlib.Path")
    if not text.strip():
        raise UserError(f"the path of {what} is empty; give its name")
    return text


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


def is_odd(name: str) -> bool:
    """Whether a file is set aside for its name: a backslash or control characters, no UTF-8, more than 1,024 bytes."""
    try:
        return CONTROL.search(name) is not None or len(name if name.isascii() else name.encode()) > 1024
    except UnicodeEncodeError:
        return True


def is_hidden(name: str) -> bool:
    """Whether a file is hidden: `.name`, in a folder of such a name, or added by macOS."""
    return name.startswith((".", f"{MACOSX}/")) or "/." in name or f"/{MACOSX}/" in name


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def kinds(names: Iterable[str]) -> str:
    """The names counted by ending: `.txt 3, .pdf 2, no ending 1`."""
    counts = Counter(ending(name).lower() or "no ending" for name in names)
    order = sorted(counts, key=lambda kind: (-counts[kind], kind == "no ending", kind))
    listed = [f"{kind} {counts[kind]:,}" for kind in order[:6]]
    return ", ".join(listed) + (" …" if len(counts) > len(listed) else "")


def count_of(things: Collection[object], word: str) -> str:
    """`1 file`, `3 files`."""
    return f"{len(things):,} {word}{'' if len(things) == 1 else 's'}"


def ending(name: str) -> str:
    """`.jpg` of `a/b.jpg`; empty where there is none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return dot + last if stem else ""


# Spellings of one file's name on different systems, each looser than the one before.


def plain(name: str) -> str:
    """The name with `/`, without `./`, its accents as one character each (NFC; macOS takes them apart)."""
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def folded(name: str) -> str:
    """`plain`, whatever the case."""
    return unicodedata.normalize("NFC", plain(name).casefold())


def bare(name: str) -> str:
    """`folded`, without the ending of an image."""
    name = folded(name)
    end = next((end for end in IMAGE_ENDINGS if name.endswith(end)), "")
    return name.removesuffix(end)


def official_number(name: str) -> int | str:
    """A data set's number of an image: the digits at the end of its file's stem (COCO_val2014_000000391895.jpg); the
    whole name where there are none."""
    stem = name.rpartition("/")[2].removesuffix(ending(name))
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if digits else name


LOOSER: tuple[Callable[[str], str], ...] = (plain, folded, bare)


class FileNames:
    """An index of names that finds other spellings too: exact first, then `plain`, `folded` and `bare` if
    unambiguous."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._by: dict[Callable[[str], str], dict[str, list[str]]] = {}

    def matches(self, name: str) -> list[str]:
        """The names that `name` may stand for: one if unambiguous, none if there is no match."""
        if name in self._names:
            return [name]
        for key in LOOSER:
            if key not in self._by:
                index = self._by[key] = {}
                for one in self._names:
                    index.setdefault(key(one), []).append(one)
            if matches := self._by[key].get(key(name)):
                return matches
        return []

    def some(self) -> list[str]:
        """A few of the names, for errors."""
        return sorted(self._names)[:3]

    def find(self, name: str, where: str, what: str) -> str:
        """The name that `name` stands for. Raises UserError, with `where` and `what`, for no match and for several."""
        matches = self.matches(name)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UserError(f"{where}: the {what} {name!r:.80} may be {' or '.join(map(repr, sorted(matches)[:2]))}")
        raise UserError(f"{where}: there is no {what} {name!r:.80}; {near(name, self._names):.200}")
