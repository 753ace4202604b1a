from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from vbert.metrics.detection import Boxes, attribute_accuracy, average_precision, coco, iou


def scenes(seed: int, images: int = 30) -> tuple[list[Boxes], list[Boxes]]:
    """True boxes, and detections near some of them, with false ones between."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        n = int(rng.integers(0, 6))
        corners = rng.random((n, 2)) * 60
        boxes = np.concatenate([corners, corners + 8 + rng.random((n, 2)) * 30], 1).astype(np.float32)
        classes = rng.integers(0, 3, n)
        truth.append(Boxes(boxes, classes, [["red"]] * n))
        near = boxes + rng.normal(scale=2, size=boxes.shape).astype(np.float32)
        corners = rng.random((2, 2)) * 60
        false = np.concatenate([corners, corners + 10], 1).astype(np.float32)
        kept = rng.random(n) < 0.8
        found.append(
            Boxes(
                np.concatenate([near[kept], false]),
                np.concatenate([classes[kept], [0, 1]]),
                [["red"]] * (int(kept.sum()) + 2),
                rng.random(int(kept.sum()) + 2).astype(np.float32),
            )
        )
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = scenes(seed)
    annotations, results = coco(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = annotations
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = average_precision(truth, found)
    assert 0.1 < ours["map"] < 0.9
    assert ours["map"] == pytest.approx(evaluation.stats[0], abs=1e-9)
    assert ours["map50"] == pytest.approx(evaluation.stats[1], abs=1e-9)


def test_perfect_and_absent_detections() -> None:
    truth, _ = scenes(0)
    perfect = [Boxes(t.boxes, t.classes, t.attributes, np.ones(len(t.boxes), np.float32)) for t in truth]
    assert average_precision(truth, perfect) == pytest.approx({"map": 1.0, "map50": 1.0})
    nothing = [Boxes(np.zeros((0, 4), np.float32), np.zeros(0, int), [], np.zeros(0, np.float32)) for _ in truth]
    assert average_precision(truth, nothing) == {"map": 0.0, "map50": 0.0}


def test_attribute_accuracy_asks_the_best_detection_of_each_true_box_found() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70]], np.float32)
    truth = [Boxes(boxes, np.zeros(4, int), [["red", "small"], ["blue"], ["green"], ["huge"]])]
    near = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 70, 70], [0, 0, 4, 4]], np.float32)
    told = [["blue"], ["red"], ["red"], ["red"], ["blue"]]
    found = [Boxes(near, np.zeros(5, int), told, np.array([0.9, 0.95, 0.5, 0.5, 0.99], np.float32))]
    # red is right; blue was told red; green was not found; huge is no attribute of the detector's.
    assert attribute_accuracy(truth, found, ["red", "blue", "green"]) == 0.5
    assert attribute_accuracy(truth, found, ["other"]) is None


def test_iou_by_hand() -> None:
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], np.float32)
    assert iou(a, b)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0])
