"""Stage `heads`: how often each attention head of a model, not trained for it, looks at the region a word means."""

from __future__ import annotations

from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.examples import Examples
from vbert.objectives.grounding_protocols import ZeroShotSettings
from vbert.objectives.trained import Model
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.regions.shards import Shards


@stage("heads", makes=HeadAnalysis, version=2, retries=1, gpus=1, cost=Cost(seconds_by=("shards.images",)))
def heads(
    build: Build,
    model: Model,
    examples: Examples,
    shards: Shards,
    settings: ZeroShotSettings,
    split: str,
    numerics: Numerics,
) -> Figures:
    """Over the phrases of `split` that have boxes, and the nouns, colours and relations among their words."""
    return build.process(_heads, model, examples, shards, settings, split, numerics)


def _heads(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    settings: ZeroShotSettings,
    split: str,
    numerics: Numerics,
) -> Figures:
    from vbert.objectives.zero_shot import run_zero_shot

    return run_zero_shot(job, model, examples, shards, settings, split, numerics)
