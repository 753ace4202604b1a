"""Stage `finetune`: a downstream task, from a pre-trained model, a model fine-tuned before, or none."""

from __future__ import annotations

from typing import Annotated

from vbert.artifacts.steps.settings import Numerics, Plugin, Since
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.examples import Examples
from vbert.data.raw import RawFiles
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
    answers: Annotated[RawFiles | None, Since(None)] = None,
    teacher: Annotated[Model | None, Since(None)] = None,
) -> Figures:
    """`settings.steps: 0` keeps the start's weights, and its head where it has one. answers: the file of the labels; by
    default they are those of the training examples. teacher: the model whose probabilities are learnt too."""
    arguments = (examples, shards, start, objective, settings, numerics, seed, answers, teacher)
    return build.process(_finetune, *arguments, processes=numerics.processes)


def _finetune(
    job: Job,
    examples: Examples,
    shards: Shards,
    start: Model | Initialization,
    objective: Plugin,
    settings: DownstreamEntry,
    numerics: Numerics,
    seed: int,
    answers: RawFiles | None,
    teacher: Model | None,
) -> Figures:
    from vbert.objectives.downstream import run_finetune

    return run_finetune(job, examples, shards, start, objective, settings, numerics, seed, answers, teacher)
