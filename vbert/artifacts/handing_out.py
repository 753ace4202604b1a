"""A finished artifact in a folder of the user's: linked from the store, or copied where that can't be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

from vbert.artifacts.artifact import Artifact


def hand_out(artifact: Artifact, out: Path) -> None:
    """Make the folder `out` (absent or empty) hold the artifact's files, all of them or none.

    Files are hard links where the file system allows: they take no room and, like the store's, are read-only.
    """
    making = out.with_name(f".{out.name}.{uuid4().hex}")
    try:
        for name in artifact.names():
            source, target = artifact.file(name), making / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or links to others' files forbidden
                shutil.copyfile(source, target)
        if out.is_dir():
            out.rmdir()
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
