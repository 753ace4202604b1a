"""Detection metrics: COCO's average precision, and the accuracy of attributes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MATCH_IOU = 0.5  # least IoU of a detection with the true box, for attributes


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: x1 y1 x2 y2 [n, 4], class indices [n]; of detections also scores [n].

    `attributes`: per box its known names (truth) or the likeliest one (detections).
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    attributes: Sequence[Sequence[str]]
    scores: NDArray[np.float32] | None = None


def coco(truth: Sequence[Boxes], detections: Sequence[Boxes]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth as a COCO annotation file, detections as a COCO result list; image and category ids from 1."""
    images = [{"id": i} for i in range(1, len(truth) + 1)]
    names = sorted({int(c) for one in (*truth, *detections) for c in one.classes})
    rows: list[dict[str, Any]] = []
    for kind in (truth, detections):
        for i, one in enumerate(kind, 1):
            for at, (x1, y1, x2, y2) in enumerate(one.boxes.astype(float).tolist()):
                box = {"image_id": i, "category_id": int(one.classes[at]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                if one.scores is not None:
                    rows.append(box | {"score": float(one.scores[at])})
                else:
                    rows.append(box | {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "id": len(rows) + 1})
    categories = [{"id": c + 1, "name": str(c)} for c in names]
    annotations = [row for row in rows if "id" in row]
    return {"images": images, "categories": categories, "annotations": annotations}, [r for r in rows if "score" in r]


def average_precision(truth: Sequence[Boxes], detections: Sequence[Boxes]) -> dict[str, float]:
    """`map` (mean over IoU 0.50:0.05:0.95) and `map50`, over the classes that occur in the truth; 0 without truth.

    COCO's definition (101 recall points, 100 detections an image), computed by faster-coco-eval, which agrees with
    pycocotools to the last digits and is several times as fast.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotations, results = coco(truth, detections)
    if not annotations["annotations"] or not results:
        return {"map": 0.0, "map50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(annotations)
        evaluation = COCOeval_faster(known, known.loadRes(results), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": float(evaluation.stats[0]), "map50": float(evaluation.stats[1])}


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, 4] and [m, 4] to [n, m]."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    other = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(other - corner, 0, None).prod(2)
    one, two = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = one[:, None] + two[None] - both
    overlap: NDArray[np.float32] = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return overlap


def attribute_accuracy(truth: Sequence[Boxes], detections: Sequence[Boxes], known: Sequence[str]) -> float | None:
    """Share of detected true boxes with a known attribute whose attribute is predicted right.

    A true box's detection is the highest-scoring one of at least IoU 0.5 with it; right is an attribute among the
    box's own. None where there is no such box.
    """
    right = seen = 0
    vocabulary = set(known)
    for true, one in zip(truth, detections, strict=True):
        if not len(one.boxes):
            continue
        assert one.scores is not None
        overlaps = iou(true.boxes, one.boxes)
        for names, row in zip(true.attributes, overlaps, strict=True):
            matching = np.flatnonzero(row >= MATCH_IOU)
            if not len(matching) or not vocabulary.intersection(names):
                continue
            best = matching[np.argmax(one.scores[matching])]
            seen += 1
            right += bool(set(one.attributes[best]) & set(names))
    return right / seen if seen else None
