"""A model and its detector, found by the path that somebody gives."""

from __future__ import annotations

from pathlib import Path

from vbert.artifacts.steps.artifact import Artifact, files_of
from vbert.errors import BuildError, UserError
from vbert.objectives.trained import Model
from vbert.regions.detector import DetectorWeights


def found(where: Path) -> tuple[Model, DetectorWeights | None]:
    """The model in a folder and the detector that made its features, where that is known."""
    if not where.is_dir():
        raise UserError(
            f"{where}: no such folder; give an exported model, or an artifact (`vbert path RECIPE 'finetune[ENTRY]'`)"
        )
    if not (files_of(where) / "head.json").is_file():
        raise UserError(f"{where}: no model of vbert's (there is no head.json in it)")
    model = Model.at(where)
    beside = where / "detector"
    if (beside / "detector.json").is_file():
        return model, DetectorWeights.at(beside)
    try:
        return model, _detector_behind(model._made())
    except BuildError:
        return model, None


def _detector_behind(artifact: Artifact) -> DetectorWeights | None:
    """The detector among all that an artifact is made from, the nearest first."""
    waiting = [artifact]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, DetectorWeights):
            return one
        waiting += one.inputs()
    return None
