"""Stage `finetune`: a downstream task, from a pre-trained model, an earlier one of the same task, or none."""

from __future__ import annotations

from vbert.artifacts.making.build import Build
from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Cost, Figures, stage
from vbert.data.examples import Examples
from vbert.model.start import Initialization
from vbert.model.trained import Model
from vbert.objectives import DownstreamEntry
from vbert.regions.shards import Shards


@stage(
    "finetune",
    makes=Model,
    version=2,
    retries=1,
    gpus=1,
    cost=Cost(seconds_by=("settings.steps", "settings.batch_size")),
)
def finetune(
    build: Build,
    examples: Examples,
    shards: Shards,
    start: Model | Initialization,
    objective: Plugin,
    settings: DownstreamEntry,
    numerics: Numerics,
    seed: int,
) -> Figures:
    """`settings.steps: 0` keeps the start's weights, and its head where it has one."""
    arguments = (examples, shards, start, objective, settings, numerics, seed)
    return build.process(_finetune, *arguments, processes=numerics.processes)


def _finetune(*arguments: object) -> Figures:
    from vbert.objectives.downstream import run_finetune

    return run_finetune(*arguments)  # type: ignore[arg-type]
