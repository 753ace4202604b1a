"""Stage `explain`: explanations of a model's predictions by several methods, and how well each measures."""

from __future__ import annotations

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.examples import Examples
from vbert.explain.explanations import Explanations
from vbert.objectives.entry import ExplainSettings
from vbert.objectives.trained import Model
from vbert.regions.shards import Shards


@stage("explain", makes=Explanations, version=1, retries=1, gpus=1, cost=Cost(seconds_by=("settings.examples",)))
def explain(
    build: Build,
    model: Model,
    examples: Examples,
    shards: Shards,
    objective: Plugin,
    settings: ExplainSettings,
    methods: tuple[Plugin, ...],
    split: str,
    numerics: Numerics,
) -> Figures:
    """Over a sample of the labelled examples of `split`."""
    return build.process(_explain, model, examples, shards, objective, settings, methods, split, numerics)


def _explain(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    objective: Plugin,
    settings: ExplainSettings,
    methods: tuple[Plugin, ...],
    split: str,
    numerics: Numerics,
) -> Figures:
    from vbert.explain.measuring import run_explain

    return run_explain(job, model, examples, shards, objective, settings, methods, split, numerics)
