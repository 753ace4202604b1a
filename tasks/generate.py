"""Stage `generate`: the built-in scenes of shapes, from settings alone."""

from __future__ import annotations

from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.raw import RawFiles
from vbert.data.shapes.scenes import ShapesSettings


@stage(
    "generate",
    makes=RawFiles,
    version=3,
    retries=1,
    cost=Cost(seconds_by=("settings.images",), bytes_by=("settings.images", "settings.size", "settings.size")),
)
def generate(build: Build, settings: ShapesSettings) -> Figures:
    """Images, scene graphs, texts and oracles of `settings`."""
    return build.process(_generate, settings)


def _generate(job: Job, settings: ShapesSettings) -> Figures:
    from vbert.data.shapes.write import write

    return write(job.directory, settings, job.progress)
