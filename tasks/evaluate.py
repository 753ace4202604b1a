"""Stage `evaluate`: predictions of one split, their metrics with intervals, and the official submission file."""

from __future__ import annotations

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.examples import Examples
from vbert.metrics.evaluation import Evaluation
from vbert.objectives import EvaluateEntry
from vbert.objectives.trained import Model
from vbert.regions.shards import Shards


@stage(
    "evaluate",
    makes=Evaluation,
    version=2,
    retries=1,
    gpus=1,
    cost=Cost(seconds_by=("shards.images",), bytes_by=("shards.images",)),
)
def evaluate(
    build: Build,
    model: Model,
    examples: Examples,
    shards: Shards,
    objective: Plugin,
    settings: EvaluateEntry,
    split: str,
    numerics: Numerics,
) -> Figures:
    """A split without labels gives predictions and no metrics. An example whose image is in quarantine has an empty
    answer and counts as wrong."""
    processes = numerics.processes
    work = build.process(_predict, model, examples, shards, objective, settings, split, numerics, processes=processes)
    return {**build.process(_score, model, examples, shards, objective, settings, split), **work}


def _predict(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    objective: Plugin,
    settings: EvaluateEntry,
    split: str,
    numerics: Numerics,
) -> Figures:
    from vbert.objectives.downstream import run_predict

    return run_predict(job, model, examples, shards, objective, settings, split, numerics)


def _score(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    objective: Plugin,
    settings: EvaluateEntry,
    split: str,
) -> Figures:
    from vbert.objectives.downstream import run_score

    return run_score(job, model, examples, shards, objective, settings, split)
