"""Grounding: recall of phrases among ranked boxes (Flickr30k Entities), accuracy of referring expressions (RefCOCO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vbert.metrics.metric import Metric, PartScores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

AT = (1, 5, 10)  # of the recalls
FAR = 1e150  # sides beyond count as this: an area is finite
RIGHT = 0.5  # IoU of a right box: at least this for a phrase, more than this for an expression

Protocol = Literal["any", "merged"]
Overlap = Literal["inclusive", "exact"]


def iou(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every pair, float64 [n, m], of boxes x1 y1 x2 y2 [n, 4] and [m, 4].

    x2 and y2 are exclusive: a width is x2 − x1, without + 1. 0 where two boxes without area meet.
    """
    a, b = _corners(boxes)[:, None], _corners(others)[None]
    overlap = _overlap(a, b)
    return _share(overlap[..., 0] * overlap[..., 1], _area(a) + _area(b))


def inclusive_iou(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """As `iou`, the way RefCOCO's users count pixels (`computeIoU` of lichengunc/MAttNet, UNITER `data/re.py`).

    There a box x y w h reaches up to the pixel x + w − 1 and an overlap is x2 − x1 + 1 wide. Of the same x y w h that
    is `iou`, but for overlaps of one pixel's width or height or less, which count as none.
    """
    import numpy as np

    a, b = _corners(boxes)[:, None], _corners(others)[None]
    overlap = _overlap(a, b)
    inside = np.where((overlap > 1).all(-1), overlap[..., 0] * overlap[..., 1], 0.0)
    return _share(inside, _area(a) + _area(b))


def merged(boxes: ArrayLike) -> NDArray[np.float64]:
    """The one box around `boxes` [n, 4], n ≥ 1, float64 [1, 4]."""
    import numpy as np

    corners = _corners(boxes)
    return np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])[None]


def right(candidates: ArrayLike, boxes: ArrayLike, protocol: Protocol = "any") -> NDArray[np.bool_]:
    """Which of `candidates` [n, 4] are right of a phrase with the true `boxes` [m, 4], m ≥ 1, bool [n].

    IoU ≥ 0.5 with any of them, or (merged) with the one box around all (ashkamath/mdetr `datasets/flickr_eval.py`).
    """
    import numpy as np

    found = iou(candidates, boxes if protocol == "any" else merged(boxes))
    return np.asarray((found >= RIGHT).any(1), np.bool_)


def rank(candidates: ArrayLike, boxes: ArrayLike, protocol: Protocol = "any") -> int | None:
    """The place, from 1, of the first right one of `candidates` [n, 4], best first; None where none is right."""
    hits = right(candidates, boxes, protocol)
    return int(hits.argmax()) + 1 if hits.any() else None


def recalls(
    ranks: Sequence[Sequence[int | None]], types: Sequence[Sequence[Sequence[str]]], under: str = ""
) -> dict[str, Metric]:
    """r1, r5, r10 and upper_bound (any place) over phrases that have a true box, then each by type, `r1/people`.

    ranks: of each example (a sentence) those of its phrases, as `rank` gives them. types: of each example and phrase
    its types; a phrase of two counts in both. under: ends the names before the type, `_merged`.
    """
    found: dict[str, Metric] = {}
    kinds = sorted({kind for example in types for phrase in example for kind in phrase})
    for kind in (None, *kinds):
        chosen = [
            [place for place, its in zip(places, its_types, strict=True) if kind is None or kind in its]
            for places, its_types in zip(ranks, types, strict=True)
        ]
        part = f"/{kind}" if kind is not None else ""
        for k in AT:
            hits = [[float(place is not None and place <= k) for place in places] for places in chosen]
            found[f"r{k}{under}{part}"] = PartScores(hits)
        bound = [[float(place is not None) for place in places] for places in chosen]
        found[f"upper_bound{under}{part}"] = PartScores(bound)
    return found


def expression(box: ArrayLike, true: ArrayLike, overlap: Overlap = "inclusive") -> float:
    """1 where the IoU of `box` and `true` (x1 y1 x2 y2 = x + w, y + h) is above 0.5, else 0: RefCOCO's accuracy is the
    mean of it over expressions (ChenRocks/UNITER `inf_re.py`). A phrase of Flickr30k Entities needs 0.5 alone."""
    measure = inclusive_iou if overlap == "inclusive" else iou
    return float(measure(box, true)[0, 0] > RIGHT)


def _corners(boxes: ArrayLike) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(boxes, np.float64).reshape(-1, 4).clip(-FAR, FAR)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width and height of the intersections, 0 where there is none."""
    import numpy as np

    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.asarray(sides.clip(min=0), np.float64)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1), np.float64)


def _share(inside: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    union = areas - inside
    return np.asarray(np.divide(inside, union, out=np.zeros_like(union), where=union > 0), np.float64)
