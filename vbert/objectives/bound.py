"""Whether a model is accepted: of phrases by the share that has a right region, of others by their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.data.acceptance import whole

NOTE = "contract overridden: "  # the beginning of a manifest's note of features that were accepted


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
    """Why a finished model is refused: its figures and notes, and a floor that was raised, or a contract that is
    accepted no more, since."""
    settings = model.step.arguments.get("settings") if model.step else None
    if settings is None or model.store is None or (made := whole(model, model.store)) is None:
        return None
    why = too_low(made.figures, settings) if hasattr(settings, "floor") else None
    why = why or not_accepted(made.figures.get("notes", ()), getattr(settings, "accept_contract", None))
    return None if why is None else f"{model.title}: {why}"


def not_accepted(notes: Sequence[str], accepted: Sequence[str] | None) -> str | None:
    """Why a model is refused whose manifest notes features that `accepted` (None: not a model's) doesn't have."""
    for note in notes if accepted is not None else ():
        field = note.removeprefix(NOTE).partition(" ")[0]
        if note.startswith(NOTE) and not any(field == one or field.startswith(f"{one}.") for one in accepted or ()):
            return (
                f"{note.removeprefix(NOTE)}, which was accepted before; write `accept_contract: [{field}]` again, or "
                "extract both with the same detector and `regions` settings"
            )
    return None
