"""A model for transformers: the folder that `VisualBertFor….from_pretrained` loads there, with the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vbert.errors import UserError
from vbert.export.folder import check_detector, close_export, copy_detector, exported_to
from vbert.model.convert import ARCHITECTURES, AnyModel, Conventions, save_pretrained
from vbert.model.int8 import refuse_int8
from vbert.model.vocabulary import CONFIG, write_json
from vbert.objectives.trained import Model
from vbert.regions.contract import NAME as CONTRACT
from vbert.regions.detector import DetectorWeights

# Why transformers computes no such model, by the kind that head.json states.
NONE_SUCH = {
    "retrieval": "has no VisualBERT with a dual encoder, and its pre-training class would need a masked language head",
    "captions": "has no VisualBERT whose texts see only what stands before them: a caption can't be written with one",
}


def network_for_transformers(model: Model) -> AnyModel:
    """The model's network, of which `vbert.model.convert.architecture_of` names the class. Raises UserError, with what
    there is in its place, where transformers has none."""
    head = model.head()
    instead = "export without --format: vbert's own folder holds the model whole"
    if why := NONE_SUCH.get(head.get("kind", "")):
        raise UserError(f"{head['objective']}: transformers {why}; {instead}")
    network = model.load()
    refuse_int8(network, model.title if model.step else str(model.path), "export for transformers")
    if not isinstance(network, AnyModel):
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{head['objective']}: transformers has no class for a {type(network).__name__}, only {known}; {instead}"
        )
    return network


def write_hugging_face(
    out: Path,
    model: Model,
    network: AnyModel,
    detector: DetectorWeights | None,
    *,
    conventions: Conventions,
    title: str,
    card: str,
    made_from: Mapping[str, Any],
) -> None:
    """Make `out` the folder of a class of transformers: `network_for_transformers(model)` with the statistics of the
    visual input folded into its projection, tokenizer files, and beside them contract.json, head.json and the detector.

    Raises UserError where `out` holds other things than an export.
    """
    if detector is not None:
        check_detector(model, detector)
    with exported_to(out) as making:
        save_pretrained(network, making, conventions, model.vocabulary(), model.labels())
        tokenizer = making / CONFIG
        write_json(tokenizer, json.loads(tokenizer.read_bytes()) | {"model_max_length": model.config().max_positions})
        for name in (CONTRACT, "head.json"):
            shutil.copyfile(model.file(name), making / name)
        copy_detector(detector, making)
        objective = model.head()["objective"]
        close_export(making, title=title, objective=objective, card=card, made_from=made_from, layout="transformers")
