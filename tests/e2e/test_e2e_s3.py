"""Region features from workers that share nothing but a bucket: the shards of a build on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto is the S3 server of this test")

from artifacts.s3 import Proxy, S3Server, Site, serving

from flows.graph import graph
from flows.recipe import resolve
from vbert.artifacts.making.plan import needs, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store.store import Store

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving() as server:
        yield server


def upload(artifact: Artifact, source: Store, target: Store) -> None:
    """A finished artifact of a local store, as it is, into another one."""
    found = source.find(artifact.stage_name, artifact.fingerprint)
    assert found is not None
    target.prepare()
    with TemporaryDirectory(dir=target.root) as directory:
        for entry in found.files:
            path = Path(directory, entry.name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(source.file(found, entry.name).read_bytes())
        target.publish(Path(directory, ""), found, {})


def test_shards_of_two_workers_and_a_publisher(
    finished_store: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vbert: Any
) -> None:
    site, local = Site(server, tmp_path / "machines", monkeypatch), Store(finished_store)
    regions = next(a for a in walk(graph(resolve(TINY, {}))) if a.title == "regions[easy_vqa]")
    store = Store(site.url)
    store.prepare()
    for artifact in walk(*needs(regions)):
        upload(artifact, local, store)
    step, proxy = tmp_path / "step.json", Proxy(server.port)
    step.write_text(json.dumps(steps_as_json(regions)))
    proxy.cut_at = [30_000, 10_000, 20_000]  # in the middle of shards

    def start(machine: str, *more: str) -> subprocess.Popen[str]:
        command = ["build", str(step), "--store", site.url, "--machine", "units_at_once=1", *more]
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *command],
            env=os.environ | site.environment(machine, proxy.port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for process in [start("one", "--units", "0-2"), start("two", "--units", "3-4")]:
        said, wrong = process.communicate(timeout=250)
        assert process.returncode == 0, wrong
        assert " of 6 units are there" in said
    shared = {key.split("/")[4] for key in site.keys("unfinished/regions/") if key.endswith("/unit.json")}
    site.machine("publisher")
    code, _, wrong = vbert("build", step, "--store", site.url)
    assert code == 0, wrong
    assert len(shared) == 5
    assert proxy.cuts >= 1

    golden = local.find("regions", regions.fingerprint)
    made = Store(site.url).find("regions", regions.fingerprint)
    assert golden is not None
    assert made is not None
    assert made.files == golden.files  # names, sizes, sha256
    site.machine("reader")
    bound = regions.bound(Store(site.url))
    ids = bound.image_ids()  # type: ignore[attr-defined]
    assert len(ids) == made.figures["images"]
    assert bound.read(ids[0]).features.shape[1] == bound.dim  # type: ignore[attr-defined]
