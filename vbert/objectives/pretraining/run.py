"""Pre-training: from data sets and a start to a model on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Figures, Job
from vbert.errors import UserError
from vbert.model.int8 import refuse_int8
from vbert.model.start import Initialization
from vbert.objectives.accepted import accepted_contract, notes
from vbert.objectives.downstream import last_figures
from vbert.objectives.pretraining import OBJECTIVE
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.mlm_itm import Pretraining
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model, write_model
from vbert.regions.contract import check
from vbert.training.loop import run_training


def run_pretrain(
    job: Job,
    data: Mapping[str, PretrainData],
    start: Model | Initialization,
    settings: PretrainSettings,
    numerics: Numerics,
    seed: int,
) -> Figures:
    """Trains on the splits `train`, validates on `val`, writes a `Model` with both pre-training heads."""
    torch.set_num_threads(numerics.threads)
    names = sorted(data)
    contracts = {name: data[name].shards.contract() for name in names}
    for name in names[1:]:
        check(contracts[names[0]], contracts[name], (f"the regions of {names[0]}", f"those of {name}"))
    model: Any
    contract = contracts[names[0]]
    noted: dict[str, Any] = {}
    if isinstance(start, Model):
        if (kind := start.head().get("objective")) != OBJECTIVE.name:
            raise UserError(
                f"{start.title}: a model of objective {kind}: pre-training goes on from a pre-trained one, with the "
                "heads for masked words and matching; name such a one"
            )
        contract, noted = accepted_contract(start, contracts[names[0]], settings.accept_contract)
        model, vocabulary = start.load(), start.vocabulary()
        refuse_int8(model, start.title, "train from")
    else:
        model, vocabulary = start.build(contracts[names[0]].dim, seed), start.vocabulary
    config = model.encoder.config
    trainable = Pretraining(data, vocabulary.encoder(), model, settings, seed)
    if config.standardise and isinstance(start, Initialization):
        model.encoder.set_statistics(*trainable.statistics())
    curves = run_training(job, trainable, settings, numerics, seed)
    if job.rank == 0:
        write_model(
            job.directory,
            model=model,
            config=config,
            vocabulary=vocabulary,
            contract=contract.with_box_input(config.box_input),
            head={"kind": "pretraining", "objective": OBJECTIVE.name, **noted},
            curves=curves,
        )
    figures = {name: value for name, value in last_figures(curves).items() if not name.startswith("match/")}
    return {"examples": trainable.size(), "dropped": trainable.dropped, **figures, **notes(start, contracts[names[0]])}
