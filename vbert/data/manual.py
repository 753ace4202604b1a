"""Sources that a person must fetch: what to do, which files to expect, and a check of what was placed.

They are looked for in `$VBERT_DATA/DATA SET/SOURCE` (`./data` without the variable), or where a recipe's `files` says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vbert.artifacts.steps.settings import Settings
from vbert.errors import UserError, near

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ManualFile(Settings):
    """What is known of a file, or of the files that a pattern with `*` matches."""

    size: int | None = Field(None, ge=0, description="bytes")
    sha256: Sha256 | None = Field(None, description="of the file")
    count: int | None = Field(None, ge=1, description="how many files match the pattern, at least")


class Manual(Settings):
    """Files that a person must fetch and place."""

    steps: tuple[str, ...] = Field(min_length=1, description="what to do, in order")
    files: dict[str, ManualFile] = Field(
        min_length=1, description="names below the place, or patterns as data/*.jpg, with sizes and digests if known"
    )


def place_of(data_set: str, source: str) -> Path:
    """Where a source is looked for unless the recipe names another place."""
    return Path(os.environ.get("VBERT_DATA") or "data").expanduser().absolute() / data_set / source


def check(
    manual: Manual,
    place: Path,
    found: Mapping[str, tuple[int, str]],
    title: str,
    whole: bool = True,
    setting: str | None = None,
    of: str = "data set",
) -> None:
    """Raises UserError, with the steps, where `found` (name → bytes, sha256) of the folder `place` is not as expected.

    whole: False for a part of the files, in which of each pattern one is enough. setting, of: see `unplaced`.
    """
    expected = manual.files.items()
    faults = (
        _fault(name, known if whole else known.model_copy(update={"count": 1}), found) for name, known in expected
    )
    if fault := next(filter(None, faults), None):
        raise unplaced(manual, place, title, fault, setting, of)


def unplaced(
    manual: Manual, place: Path, title: str, fault: str, setting: str | None = None, of: str = "data set"
) -> UserError:
    """The error of a source that isn't placed as expected; its details are the steps and the files.

    setting: the recipe's field that names another place; None: that of a source. of: what has the source, a data set or
    a model, which no recipe's field names another place for.
    """
    name, _, source = title.partition(" ")
    steps = [f"  {number}. {step}" for number, step in enumerate(manual.steps, 1)]
    expected = ", ".join(f"{name}{_known(known)}" for name, known in manual.files.items())
    other = f"place by `--set {setting or f'data.NAME.files.{source}'}=FOLDER`"
    if of != "data set":
        other = "folder than `data` by VBERT_DATA=FOLDER"
    return UserError(
        f"{of} {name}: {source} is fetched by hand into {place}, and {fault}; do as follows, or name another {other}",
        "\n".join([*steps, f"  Then {place} holds {expected}."]),
    )


def _known(file: ManualFile) -> str:
    parts = [f"{file.count:,} files or more"] if file.count else []
    parts += [f"{file.size:,} bytes"] if file.size is not None else []
    parts += [f"sha256 {file.sha256[:12]}…"] if file.sha256 else []
    return f" ({', '.join(parts)})" if parts else ""


def _fault(name: str, known: ManualFile, found: Mapping[str, tuple[int, str]]) -> str | None:
    if "*" in name:
        count = sum(fnmatchcase(other, name) for other in found)
        return f"holds {count:,} of {name}, not {known.count or 1:,}" if count < (known.count or 1) else None
    if name not in found:
        return f"holds no {name} ({near(name, found):.200})"
    size, sha256 = found[name]
    if known.size not in (None, size):
        return f"{name} has {size:,} bytes, not {known.size:,}: is it whole?"
    if known.sha256 not in (None, sha256):
        return f"{name} has the sha256 {sha256}, not {known.sha256}: is it that version?"
    return None
