"""Stage `pretrain`: masked language modelling and image–text matching over one or several data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from vbert.artifacts.steps.settings import Numerics, Plugin, Since
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.errors import UserError
from vbert.model.bert import BertWeights
from vbert.model.config import ModelSettings
from vbert.model.start import Initialization
from vbert.model.vocabulary import Vocabulary
from vbert.objectives.pretraining import OBJECTIVE
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model

FIRST = Plugin(name="mlm_itm", version=1)  # of steps from before their objective was a parameter


@stage(
    "pretrain",
    makes=Model,
    version=3,
    retries=1,
    gpus=1,
    cost=Cost(seconds_by=("settings.steps", "settings.batch_size")),
)
def pretrain(
    build: Build,
    data: Mapping[str, PretrainData],
    vocabulary: Vocabulary | None,
    start: BertWeights | Model | None,
    model: ModelSettings,
    settings: PretrainSettings,
    numerics: Numerics,
    seed: int,
    objective: Annotated[Plugin, Since(FIRST)] = FIRST,
) -> Figures:
    """From weights drawn from `seed`, a BERT's, or a model pre-trained before, which brings vocabulary, sizes and the
    statistics of its visual input (one from elsewhere: `vocabulary` is None). All regions, those that it was trained on
    among them, must have one contract."""
    if objective != OBJECTIVE:
        raise UserError(
            f"objective {objective.name!r}: the step wants version {objective.version}, this checkout has "
            f"{OBJECTIVE.version}; check out the commit it was made with"
        )
    initialization: Model | Initialization
    if isinstance(start, Model):
        initialization = start
    elif vocabulary is None:
        raise UserError("vocabulary: only a published model brings its own")
    else:
        initialization = Initialization(vocabulary, model, start)
    return build.process(_pretrain, data, initialization, settings, numerics, seed, processes=numerics.processes)


def _pretrain(
    job: Job,
    data: Mapping[str, PretrainData],
    start: Model | Initialization,
    settings: PretrainSettings,
    numerics: Numerics,
    seed: int,
) -> Figures:
    from vbert.objectives.pretraining.run import run_pretrain

    return run_pretrain(job, data, start, settings, numerics, seed)
