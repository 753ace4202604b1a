"""A finished artifact's files in a directory of the user's."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from vbert.artifacts import durable
from vbert.artifacts.artifact import Artifact


def put(artifact: Artifact, out: Path) -> None:
    """Link (or copy, across file systems) the artifact's files into `out`, whole or not at all; it is replaced."""
    fresh = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    fresh.mkdir(parents=True)
    try:
        for name in artifact.names():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            durable.link(artifact.file(name), fresh / name)
        durable.sync_directory(fresh)
        before = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
        if out.exists():
            out.rename(before)
        fresh.rename(out)
        durable.sync_directory(out.resolve().parent)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
