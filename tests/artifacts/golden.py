"""Golden digests: what a stage makes of a tiny fixed input, recorded once for each of its versions.

    def test_squares(tmp_path: Path) -> None:
        check(toy.squares(toy.numbers(3), toy.Slow()), tmp_path)

`tests/golden.json` holds `{"regions[tiny]": {"version": 1, "content": "3f2a…", "numerics": […]}}`. Bits that changed
under an unchanged version fail; a raised version, or a stage not seen before, is recorded by `VBERT_GOLDEN=record
pytest …`.

Same bits are promised within one class of processor and libraries, `numerics`: where those differ from the recorded
ones the test is skipped. A stage that only moves bytes names the `libraries` its bits rest on, or none: its digest then
holds on any processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures, Job, Machine, Make
from vbert.artifacts.steps.step import Stage
from vbert.artifacts.store.digests import sha256_file
from vbert.artifacts.store.files import FileEntry
from vbert.artifacts.store.manifest import content_digest, environment, numerics_class

RECORD = Path(__file__).parents[1] / "golden.json"


def check(target: Artifact, store: Path, record: Path = RECORD, libraries: Sequence[str] | None = None) -> None:
    """Build `target` and compare its content with what `record` says of this version of its stage."""
    manifest = build_here([target], store)[0].manifest
    compare(target.title, manifest.version, manifest.content, manifest.environment, record, libraries)


@dataclass
class Here:
    """A `Build` in this process, over directories of its own: its stage may be given loose artifacts."""

    directory: Path
    scratch: Path
    machine: Machine = field(default_factory=partial(Machine, device="cpu", loader_workers=0))
    made: dict[str, Figures] = field(default_factory=dict)

    def each(
        self,
        units: Sequence[tuple[str, Any]],
        make: Make[Any],
        count: Callable[[Any], int] = lambda _: 1,
    ) -> None:
        job = Job(self.directory, self.scratch, self.machine)
        self.made = {key: make(job, unit) for key, unit in units}

    def unit_figures(self) -> dict[str, Figures]:
        return self.made

    def earlier(self) -> list[Artifact]:
        return []

    def process(self, function: Callable[..., Figures], *arguments: Any, processes: int = 1) -> Figures:
        assert processes == 1
        return function(Job(self.directory, self.scratch, self.machine), *arguments)


def check_here(stage: Stage[Any, Any], label: str, folder: Path, *arguments: Any) -> Path:
    """Run `stage` in this process and compare as `check` does. Returns the directory of what it made."""
    build = Here(folder / "made", folder / "scratch")
    for directory in (build.directory, build.scratch):
        directory.mkdir(parents=True)
    stage.function(build, *arguments)
    files = [path for path in build.directory.rglob("*") if path.is_file()]
    entries = [
        FileEntry(name=path.relative_to(build.directory).as_posix(), size=0, sha256=sha256_file(path)) for path in files
    ]
    compare(f"{stage.name}[{label}]", stage.version, content_digest(entries), environment())
    return build.directory


def compare(
    title: str,
    version: int,
    content: str,
    environment: dict[str, Any],
    record: Path = RECORD,
    libraries: Sequence[str] | None = None,
) -> None:
    known: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    if libraries is None:
        numerics = list(numerics_class(environment))
    else:
        numerics = [f"{name} {environment['libraries'][name]}" for name in libraries]
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
