"""Whether a model of phrases is accepted, by the share of them for which the regions have a right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.data.acceptance import whole


def too_low(figures: Mapping[str, Any], settings: Any) -> str | None:
    """Why bounds below `settings.floor` are refused; None where none is. figures: `upper_bound/train` and the like."""
    name = "upper_bound_merged" if settings.protocol == "merged" else "upper_bound"
    for split in ("train", "val"):
        bound = figures.get(f"{name}/{split}")
        if bound is not None and bound < settings.floor:
            return (
                f"only {100 * bound:.3g} % of the phrases (split {split}) have a right region ({name}), and no "
                f"training reaches more; accepted are {100 * settings.floor:g} % (`floor`). Change the box rule, "
                "`regions.boxes` of the recipe (more boxes: a larger `minimum`, a lower `score`), or lower `floor`"
            )
    return None


def objection(model: Artifact) -> str | None:
    """Why a finished model is refused: its figures, and a floor that was raised since."""
    settings = model.step.arguments.get("settings") if model.step else None
    if not hasattr(settings, "floor") or model.store is None or (made := whole(model, model.store)) is None:
        return None
    why = too_low(made.figures, settings)
    return None if why is None else f"{model.title}: {why}"
