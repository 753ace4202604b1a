"""The contents of a directory that becomes an artifact or a unit, and how two makings of it differ."""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from vbert.artifacts.store import durable, manifest
from vbert.artifacts.store.digests import sha256_file
from vbert.artifacts.store.files import FileEntry
from vbert.artifacts.store.manifest import Manifest, content_digest, numerics_class
from vbert.errors import BuildError


def damaged_name(stage: str, fingerprint: str) -> str:
    """A name of its own for something damaged."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{stage}-{fingerprint[:12]}-{stamp}-{uuid.uuid4().hex[:6]}"


def damaged_of(name: str) -> tuple[str, str]:
    """The stage and the first digits of the fingerprint in what `damaged_name` gave; empty for another name."""
    stage, start, *rest = name.rsplit("-", 3)
    return (stage, start) if len(rest) == 2 else ("", "")


def complete(directory: Path, record: Manifest, hashed: Mapping[str, FileEntry]) -> Manifest:
    """`record` with the files below `directory`, synced and hashed."""
    entries = gathered(directory, record.stage, manifest.NAME, hashed)
    return record.model_copy(update={"files": entries, "content": content_digest(entries)})


def tell_difference(ours: Manifest, standing: Manifest, say: Callable[[str], None]) -> None:
    """Say where two builders of one numerics class made other bits of one step: it is not deterministic."""
    if ours.content == standing.content or numerics_class(ours.environment) != numerics_class(standing.environment):
        return
    before = {entry.name: entry.sha256 for entry in standing.files}
    again = {entry.name: entry.sha256 for entry in ours.files}
    names = sorted(name for name in before.keys() | again.keys() if before.get(name) != again.get(name))
    say(
        f"{ours.stage}/{ours.fingerprint[:8]}: another builder was first, and {len(names)} files differ from ours "
        f"({', '.join(names[:5])}); theirs stand. The stage is not deterministic: please report it"
    )


def gathered(directory: Path, maker: str, record: str, known: Mapping[str, FileEntry]) -> list[FileEntry]:
    """Every file below `directory`, synced and hashed (those `known` are already), sorted by name.

    Raises BuildError for what is no file, or has the name `record` that its maker keeps for itself.
    """

    def failed(error: OSError) -> None:
        raise error  # os.walk would pass over what can't be listed

    entries = []
    for folder, folders, names in os.walk(directory, onerror=failed):
        for path in (Path(folder) / name for name in [*folders, *names]):
            name, mode = path.relative_to(directory).as_posix(), path.lstat().st_mode
            if stat.S_ISDIR(mode):
                durable.open_directory(path)
                continue
            if not stat.S_ISREG(mode) or name == record:
                what = "a file" if stat.S_ISREG(mode) else "something that is no file"
                raise BuildError(f"{maker} left {what} called {name!r}: artifacts hold files of other names")
            entry = known.get(name)
            if entry is None:
                durable.sync_file(path)
                entry = FileEntry(name=name, size=path.stat().st_size, sha256=sha256_file(path))
            entries.append(entry)
    return sorted(entries, key=lambda entry: entry.name)
