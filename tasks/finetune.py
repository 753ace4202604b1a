"""Stage `finetune`: a downstream task, from a pre-trained model, a model fine-tuned before, or none."""

from __future__ import annotations

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.examples import Examples
from vbert.model.start import Initialization
from vbert.objectives import DownstreamEntry
from vbert.objectives.trained import Model
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
    processes = numerics.processes
    return build.process(_finetune, examples, shards, start, objective, settings, numerics, seed, processes=processes)


def _finetune(
    job: Job,
    examples: Examples,
    shards: Shards,
    start: Model | Initialization,
    objective: Plugin,
    settings: DownstreamEntry,
    numerics: Numerics,
    seed: int,
) -> Figures:
    from vbert.objectives.downstream import run_finetune

    return run_finetune(job, examples, shards, start, objective, settings, numerics, seed)
