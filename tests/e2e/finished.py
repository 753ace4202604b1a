"""A finished store, and one from which the end is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

from vbert.artifacts.store.manifest import Manifest

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
STAGES = {  # stage → how many times it is killed
    "download": 1,
    "generate": 1,
    "images": 1,
    "examples": 1,
    "overlaps": 1,
    "detector": 2,
    "regions": 2,
    "vocabulary": 1,
    "pretrain": 2,
    "finetune": 2,
    "evaluate": 1,
    "report": 1,
}


def contents(store: Path) -> dict[str, str]:
    """stage[label] → content digest of every finished artifact; a report's bytes hold times."""
    found = {}
    for path in sorted((store / "artifacts").glob("*/*/manifest.json")):
        manifest = Manifest.loads(path.read_bytes())
        if manifest.stage != "report":
            found[f"{manifest.stage}[{manifest.label}]"] = manifest.content
    return found


def without(finished: Path, stage: str, store: Path) -> None:
    """A copy of the finished store from which `stage` and all that comes after it is gone."""
    later = list(STAGES)[list(STAGES).index(stage) :]
    shutil.copytree(finished, store, ignore=shutil.ignore_patterns("unfinished", "locks"))
    for name in later:
        shutil.rmtree(store / "artifacts" / name, ignore_errors=True)
