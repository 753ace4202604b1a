"""A finished artifact in a folder of the user's: linked from the store, or copied where that can't be."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

from vbert.artifacts import durable
from vbert.artifacts.artifact import Artifact


def hand_out(artifact: Artifact, out: Path) -> None:
    """Make the folder `out` hold the artifact's files, all of them or none; what it held before is replaced.

    Files are hard links where the file system allows: they take no room and, like the store's, are read-only.
    """
    making, before = (out.with_name(f".{out.name}.{uuid4().hex}") for _ in range(2))
    try:
        for name in artifact.names():
            target = making / name
            target.parent.mkdir(parents=True, exist_ok=True)
            durable.link(artifact.file(name), target)
        if out.exists():
            out.rename(before)
        making.rename(out)
    finally:
        for folder in (making, before):
            shutil.rmtree(folder, ignore_errors=True)
