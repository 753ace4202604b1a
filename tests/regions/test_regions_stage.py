"""The stage `regions` in a store, its units in child processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from regions.regions_tiny import all_bits, extracted, small_spec, untrained

from tasks.generate import generate
from tasks.images import images
from tasks.regions import regions
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.stage import Build, Figures, Machine, stage
from vbert.data import readers
from vbert.data.shapes.scenes import ShapesSettings
from vbert.errors import BuildError
from vbert.regions.boxes import Adaptive, Nms
from vbert.regions.detector import DetectorWeights, ExtractionNumerics, RegionSettings

SETTINGS = RegionSettings(boxes=Adaptive(minimum=1, maximum=5, score=0.6), nms=Nms(), images_per_shard=5)


@stage("untrained_detector", makes=DetectorWeights, version=1)
def untrained_detector(build: Build) -> Figures:
    made = untrained(build.scratch / "weights", small_spec())
    for name in made.names():
        (build.directory / name).write_bytes(made.file(name).read_bytes())
    return {}


def test_one_child_or_two_give_the_same_bytes_as_this_process(tmp_path: Path) -> None:
    photos = images({"generated": generate(ShapesSettings(images=24))}, readers.reader("shapes"))
    weights = untrained_detector()
    made = []
    for count in (1, 2):
        store = tmp_path / str(count)
        (shards,) = build_here(
            [regions(photos, weights, SETTINGS, ExtractionNumerics())], store, Machine(units_at_once=count)
        )
        made.append(shards)
    one, two = made
    assert one.manifest.content == two.manifest.content
    tars = [f"{i:06d}.tar" for i in range(5)]
    assert one.names() == [*tars, "contract.json", "offsets.parquet", "quarantine.parquet"]
    counts = {"images": 24, "quarantined": 0, "regions": one.figures["regions"], "shards": 5, "reused": 0}
    assert one.figures == counts | {"device": "cpu"}
    here = extracted(tmp_path / "here", photos.bound(one.store), weights.bound(one.store), SETTINGS)
    assert all_bits(here) == all_bits(one)
    assert [here.file(n).read_bytes() for n in here.names()] == [one.file(n).read_bytes() for n in one.names()]


def test_unbuilt_shards_say_how_to_get_them() -> None:
    photos = images({"generated": generate(ShapesSettings(images=24))}, readers.reader("shapes"))
    shards = regions(photos, untrained_detector(), SETTINGS, ExtractionNumerics()).named("shapes")
    with pytest.raises(BuildError, match=r"regions\[shapes\] is not built"):
        shards.read("000000")
