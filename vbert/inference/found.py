"""A model and its detector, found by the path that somebody gives."""

from __future__ import annotations

from pathlib import Path

from vbert.artifacts.steps.artifact import files_of
from vbert.errors import BuildError, UserError
from vbert.export.folder import detector_behind, is_export, read_export, refuse_without_record
from vbert.objectives.trained import Model
from vbert.regions.detector import DetectorWeights


def found(where: Path) -> tuple[Model, DetectorWeights | None]:
    """The model in a folder, exported or an artifact of a store, and the detector that made its features, where that is
    known. Raises UserError for a folder that holds none."""
    if not where.is_dir():
        raise UserError(
            f"{where}: no such folder; give an exported model (`vbert export` writes one) or an artifact (`vbert path "
            "RECIPE 'finetune[ENTRY]'` names one)"
        )
    if is_export(where):
        return read_export(where)
    refuse_without_record(where)
    if not (files_of(where) / "head.json").is_file():
        raise UserError(
            f"{where}: no model of vbert's (there is no head.json in it); `vbert export RECIPE 'finetune[ENTRY]' --out "
            "DIR` writes one"
        )
    model = Model.at(where)
    try:
        return model, detector_behind(model)
    except BuildError:  # said where images are given, and regions aren't
        return model, None
