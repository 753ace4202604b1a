"""The matching head of a pre-training, beside baselines that need no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbert.objectives.pretraining.matching import NEGATIVES, matching_warning
from vbert.objectives.trained import Model
from vbert.report import plots

PREFIX = "validation/match/"
SHOWN = {
    "own": "with the image’s own regions",
    "exchanged": "with another image’s regions",
    "none": "with no regions",
    "text": "a bag of words, text alone",
}
LINES = {
    "own/other": "texts of other images",
    "own/altered": "altered texts",
    "exchanged/other": "other image’s regions",
    "text/altered": "altered texts, text alone",
}


@dataclass(frozen=True)
class MatchingFigures:
    """Balanced accuracies at the end of a pre-training: `rows` by visible regions, for each of `kinds` of negatives;
    `changed` by the altered part of a text, hardest first; `chart` over steps; `doubt` where the images were hardly
    used."""

    title: str
    kinds: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    changed: Sequence[tuple[str, float]]
    chart: plots.Chart | None
    doubt: str | None


def matching(model: Model) -> MatchingFigures | None:
    """The matching figures in the curves of a pre-training; None where nothing was matched."""
    curves = [row for row in model.curves() if any(name.startswith(PREFIX) for name in row)]
    if not curves:
        return None
    last = {name.removeprefix(PREFIX): value for name, value in curves[-1].items()}
    kinds = [kind for kind in NEGATIVES if f"own/{kind}" in last]
    points = [
        plots.Point(called, row["step"], row[PREFIX + name])
        for row in curves
        for name, called in LINES.items()
        if PREFIX + name in row
    ]
    figures = {name.removeprefix("validation/"): value for name, value in curves[-1].items()}
    changed = [(name.removeprefix("own/altered/"), value) for name, value in last.items() if "own/altered/" in name]
    return MatchingFigures(
        title=f"Matching {model.label or ''}".strip(),
        kinds=kinds,
        rows=[(words, [last.get(f"{name}/{kind}") for kind in kinds]) for name, words in SHOWN.items()],
        changed=sorted(changed, key=lambda pair: pair[1]),
        chart=plots.line_chart("Held-out pairs (val) judged right", points, share=True),
        doubt=matching_warning(figures),
    )


def without_matching(points: Sequence[plots.Point]) -> list[plots.Point]:
    """The points of other charts."""
    return [point for point in points if not point.name.startswith("match/")]
