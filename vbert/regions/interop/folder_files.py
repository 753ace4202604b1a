"""For formats with one numpy file an image: finds the files of a folder, or takes a single one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vbert.data.folders import names_below
from vbert.data.names import safe_name
from vbert.regions.interop import Place

LOOKED_AT = 1000  # entries of a folder, among which such a file must occur


def _names(root: Path) -> Iterator[str]:
    return iter([root.name]) if root.is_file() else names_below(root)


def any_of(root: Path, ending: str, but: str = "\0") -> bool:
    """Whether one of the first files has the ending; files with the ending `but` are ignored."""
    return any(name.endswith(ending) and not name.endswith(but) for name in islice(_names(root), LOOKED_AT))


def all_of(root: Path, ending: str, but: str = "\0") -> Iterator[tuple[str, Place]]:
    """(name without its ending, folders below included; (file,)) of each of them, sorted."""
    for name in sorted(_names(root)):
        if name.endswith(ending) and not name.endswith(but):
            yield name.removesuffix(ending), (name,)


def file_of(root: Path, place: Place) -> Path:
    return root if root.is_file() else root / safe_name(place[0])
