"""Golden digests: what a stage makes of a tiny fixed input, recorded once for each of its versions.

    def test_squares(tmp_path: Path) -> None:
        check(toy.squares(toy.numbers(3), toy.Slow()), tmp_path)

`tests/golden.json` holds `{"regions[tiny]": {"version": 1, "content": "3f2a…", "numerics": […]}}`. Bits that changed
under an unchanged version fail; a raised version, or a stage not seen before, is recorded by `VBERT_GOLDEN=record
pytest …`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vbert.artifacts.artifact import Artifact
from vbert.artifacts.graph import build_here
from vbert.artifacts.manifest import numerics_class

RECORD = Path(__file__).parents[1] / "golden.json"


def check(target: Artifact, store: Path, record: Path = RECORD, exact: bool = False) -> None:
    """Build `target` and compare its content with what `record` says of this version of its stage.

    Same bits are promised within one class of processor and libraries: where those differ from the recorded ones the
    test is skipped, unless the stage computes nothing that depends on them (`exact`).
    """
    manifest = build_here([target], store)[0].manifest
    compare(target.title, manifest.version, manifest.content, manifest.environment, record, exact)


def compare(
    title: str, version: int, content: str, environment: dict[str, Any], record: Path = RECORD, exact: bool = False
) -> None:
    known: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    numerics = [] if exact else list(numerics_class(environment))
    mine = {"version": version, "content": content, "numerics": numerics}
    entry = known.get(title)
    if entry == mine:
        return
    if os.environ.get("VBERT_GOLDEN") == "record":
        if entry is not None and entry["version"] == version and entry["numerics"] == numerics:
            pytest.fail(_sentence(title, version))
        record.write_text(json.dumps(known | {title: mine}, indent=1, sort_keys=True) + "\n")
        return
    if entry is None or entry["version"] != version:
        pytest.fail(f"{title} version {version} has no golden digest yet: VBERT_GOLDEN=record pytest records it")
    if entry["numerics"] != numerics:
        pytest.skip(f"{title}: recorded on {entry['numerics'][0]}, other bits are allowed on {numerics[0]}")
    pytest.fail(_sentence(title, version))


def _sentence(title: str, version: int) -> str:
    stage = title.split("[")[0]
    return f"{title} makes other bits than before under version {version}: raise the version of stage {stage}"
