"""What is right of a phrase or an expression: targets, the bound that regions set, metrics, submission files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from vbert.artifacts.steps.settings import Acceptance, Settings
from vbert.objectives.entry import Head, Prediction, Predictions, Row, Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vbert.metrics.metric import Metric
    from vbert.objectives.batches import ExampleRows

Protocol = Literal["any", "merged", "refcoco"]
CONTESTED = "contested"  # the type of phrases for which a region of the right one's detected class is wrong


class ZeroShotSettings(Settings):
    """What is right of a phrase, and where it stands, as of `GroundingSettings`."""

    protocol: Protocol = "any"
    iou: Literal["inclusive", "exact"] = "inclusive"
    as_original: bool = False
    types: tuple[str, ...] | None = None
    accept_contract: Annotated[tuple[str, ...], Acceptance()] = ()
    random: int = Field(1000, ge=1, description="random heads of each kind, of which the best is told")
    batch_size: int = Field(64, ge=1, description="examples at once")


def target(true: Sequence[Sequence[float]], regions: NDArray[np.float32], head: Head) -> NDArray[np.float32]:
    """Each region's share for a phrase with the boxes `true`, float32 [n]: 1/n for n right ones (IoU ≥ 0.5), or with
    `loss: cross_entropy` 1 for the best of them; 0 where none is right."""
    import numpy as np

    from vbert.metrics.grounding import RIGHT, iou, merged

    if not true or not len(regions):
        return np.zeros(len(regions), np.float32)
    overlap = iou(regions, merged(true) if head["protocol"] == "merged" else true).max(1)
    hits = overlap >= RIGHT
    if head["loss"] == "cross_entropy":
        hits = hits & (np.arange(len(hits)) == overlap.argmax())
    return np.asarray(hits / max(1, hits.sum()), np.float32)


def bound(rows: ExampleRows, head: Head) -> dict[str, float]:
    """upper_bound, the share of phrases with boxes that have a right region, and upper_bound_merged; of expressions
    upper_bound alone. Empty where no phrase has a box."""
    phrases, hits = 0, {"upper_bound": 0, "upper_bound_merged": 0}
    for row in rows:
        regions, _ = rows.candidates(row["image_ids"][0])
        for phrase in row["phrases"]:
            if phrase["boxes"]:
                right, around = _right(regions, phrase["boxes"], head)
                phrases += 1
                hits["upper_bound"] += bool(right.any())
                hits["upper_bound_merged"] += bool(around.any())
    names = ["upper_bound"] if head["protocol"] == "refcoco" else list(hits)
    return {name: hits[name] / phrases for name in names} if phrases else {}


def _right(
    regions: NDArray[Any] | Sequence[Sequence[float]], true: Sequence[Sequence[float]], head: Head
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which regions are right of a phrase, with any box and with the one around all; of an expression both the same."""
    from vbert.metrics import grounding

    if head["protocol"] == "refcoco":
        overlap = grounding.inclusive_iou if head["iou"] == "inclusive" else grounding.iou
        right = overlap(regions, true)[:, 0] > grounding.RIGHT
        return right, right
    right = grounding.right(regions, true)
    return right, grounding.right(regions, true, "merged") if len(true) > 1 else right


def right_of(regions: NDArray[Any], true: Sequence[Sequence[float]], head: Head) -> NDArray[np.bool_]:
    """Which regions are right of a phrase, bool [n], under the protocol of `head`."""
    right, around = _right(regions, true, head)
    return around if head["protocol"] == "merged" else right


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """Of phrases r1, r5, r10 and upper_bound, then `_merged` under the other protocol, overall and by type; of
    expressions accuracy and upper_bound, by part of the split too. random_region: what regions drawn at random give.
    Phrases without boxes don't count; those of an image in quarantine are wrong."""
    from vbert.metrics.grounding import recalls
    from vbert.metrics.metric import PartScores, by_part

    each = [judged(row, p, head) for row, p in zip(rows, predictions, strict=True)]
    if not any(each):
        return {}
    if head["protocol"] == "refcoco":
        parts = [row["part"] for row in rows]
        found = by_part("accuracy", [float(one[0].any == 1) if one else None for one in each], part=parts)
        found |= by_part("upper_bound", [float(one[0].any is not None) if one else None for one in each], part=parts)
        return found | {"random_region": PartScores([[phrase.random for phrase in one] for one in each])}
    types = [[phrase.types for phrase in one] for one in each]
    found = recalls([[phrase.any for phrase in one] for one in each], types)
    found |= recalls([[phrase.merged for phrase in one] for one in each], types, "_merged")
    for kind in ("", CONTESTED):
        scores = [[phrase.random for phrase in one if not kind or kind in phrase.types] for one in each]
        if any(scores):
            found["random_region" + (f"/{kind}" if kind else "")] = PartScores(scores)
    return found


class Judged(NamedTuple):
    """A phrase with boxes: its number in the example; the places of its first right region under either protocol, None
    for none; the share of right ones among all regions; its types."""

    number: int
    any: int | None
    merged: int | None
    random: float
    types: Sequence[str]


def judged(row: Row, p: Prediction, head: Head) -> list[Judged]:
    """The phrases of an example that have boxes, with its prediction."""
    import numpy as np

    regions = np.array(p.get("regions", ()), np.float64).reshape(-1, 4)
    classes = np.array(p.get("classes", [-1] * len(regions)), np.int64)
    made = []
    for k, phrase in enumerate(row["phrases"]):
        if not phrase["boxes"]:
            continue
        hits = _right(regions, phrase["boxes"], head)
        order = np.array(p["ranked"][k] if "ranked" in p else (), np.int64)
        places = [int(its[order].argmax()) + 1 if its[order].any() else None for its in hits]
        types = list(phrase["types"] or ())
        right, known = hits[0], classes >= 0
        if np.isin(classes[~right & known], classes[right & known]).any():
            types.append(CONTESTED)
        made.append(Judged(k, places[0], places[1], float(right.mean()) if len(right) else 0.0, types))
    return made


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """results.json, as `vbert score grounding` and `vbert score refcoco` read it; of an image in quarantine no box for
    a phrase, and one without area for an expression. Numbers are the trailing digits of the official names."""
    made: list[dict[str, Any]] = []
    for row, p in zip(rows, predictions, strict=True):
        regions, none = p.get("regions", ()), [()] * len(row["phrases"])
        ranked = [[regions[k] for k in order] for order in p.get("ranked", none)]
        if head["protocol"] == "refcoco":
            x1, y1, x2, y2 = ranked[0][0] if ranked and ranked[0] else (0, 0, 0, 0)
            made.append({"sent_id": int(_digits(row["example_id"])), "pred_box": [x1, y1, x2 - x1, y2 - y1]})
            continue
        boxes = [its for its, phrase in zip(ranked, row["phrases"], strict=True) if phrase["boxes"]]
        if boxes:
            image = _digits(PurePosixPath(row["image_ids"][0]).stem)
            made.append({"image_id": image, "sentence_id": int(_digits(row["example_id"])), "boxes": boxes})
    return {"results.json": json.dumps(made).encode()} if made else {}


def _digits(name: str) -> str:
    """The digits at the end of a name; 0 for none."""
    found = re.search(r"[0-9]+$", name)
    return found[0] if found else "0"
