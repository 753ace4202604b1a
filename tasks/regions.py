"""Stage `regions`: region features of every image, as WebDataset shards."""

from __future__ import annotations

from functools import partial

from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.images import Images
from vbert.regions.detector import DetectorWeights, ExtractionNumerics, RegionSettings
from vbert.regions.extract import extract_shard, gather, reusable, shard_plan
from vbert.regions.shards import Shards


@stage(
    "regions",
    makes=Shards,
    version=1,
    retries=2,
    cost=Cost(seconds_by=("images.images",), bytes_by=("images.images",)),
)
def regions(
    build: Build, images: Images, detector: DetectorWeights, settings: RegionSettings, numerics: ExtractionNumerics
) -> Figures:
    """Region features of every image of `images`; a unit is a shard. Regions in earlier shards are copied."""
    earlier = reusable(build.earlier(), detector, settings, numerics)
    plan = shard_plan(images.table(), settings.images_per_shard, earlier)
    make = partial(extract_shard, images, detector, settings, numerics, earlier)
    build.each(plan, make, lambda unit: len(unit.images))
    return gather(build.directory, build.unit_figures().values(), detector, settings)
