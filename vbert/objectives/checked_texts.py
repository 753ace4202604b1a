"""Figures of written texts that are checked against what their images are known to hold."""

from __future__ import annotations

from vbert.data.scene_checks import check
from vbert.metrics.metric import ExampleScores, Metric
from vbert.objectives.entry import Predictions, Rows


def checked(rows: Rows, predictions: Predictions) -> dict[str, Metric]:
    """Of predictions whose `answer` is a text about the one image of its row; empty where no row has a `scene`.

    faithful: the share of texts that say nothing false of the image. covered: the share of its things that a text
    names, a mean over images. understood: the share of texts that the check can read; others are neither faithful nor
    name anything.
    """
    found = [
        check("" if "quarantined" in p else p["answer"], row["scene"]) if row["scene"] is not None else None
        for row, p in zip(rows, predictions, strict=True)
    ]
    if not any(found):
        return {}
    return {
        "faithful": ExampleScores([None if one is None else float(one.true) for one in found]),
        "covered": ExampleScores([None if one is None or not one.things else one.named / one.things for one in found]),
        "understood": ExampleScores([None if one is None else float(one.says is not None) for one in found]),
    }
