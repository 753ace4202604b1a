"""Stage `import_features`: region features of another system, as WebDataset shards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.raw import RawFiles
from vbert.regions.interop.importing import ImportSettings, gather, import_plan, import_shard, paths
from vbert.regions.shards import Shards


@stage(
    "import_features",
    makes=Shards,
    version=2,
    retries=2,
    cost=Cost(seconds_by=("files.*.bytes",), bytes_by=("files.*.bytes",)),
)
def import_features(
    build: Build, files: Mapping[str, RawFiles], format: Plugin, settings: ImportSettings, sizes: RawFiles | None = None
) -> Figures:
    """The features in `files` (by role, see `vbert.regions.interop`); a unit is a shard.

    `sizes`: the images, or a table of their sizes, where the format records none or other ones.
    """
    plan = import_plan(files, format, settings, sizes)
    build.each(plan.units, partial(import_shard, files, format, settings, sizes))
    figures = gather(build.directory, build.unit_figures().values(), plan, settings)
    paths(files)  # all shards are made from the state of the files that was planned
    return {**figures, "dim": plan.expected.dim}
