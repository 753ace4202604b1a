"""Grounding: overlaps, ranks under both protocols, recalls by type, and RefCOCO's accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbert.metrics import grounding
from vbert.metrics.bootstrap import interval
from vbert.metrics.metric import PartScores

corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


def plain_iou(a: list[int], b: list[int]) -> float:
    """By counting pixels."""
    cells = [{(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])} for c in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def published_iou(a: list[int], b: list[int]) -> float:
    """RefCOCO's rule, of x y w h."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = ([c[0], c[1], c[2] - c[0], c[3] - c[1]] for c in (a, b))
    x1, y1, x2, y2 = max(ax, bx), max(ay, by), min(ax + aw - 1, bx + bw - 1), min(ay + ah - 1, by + bh - 1)
    inside = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
    return inside / (aw * ah + bw * bh - inside)


def plain_rank(candidates: list[list[int]], boxes: list[list[int]], protocol: str) -> int | None:
    if protocol == "merged":
        boxes = [
            [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
        ]
    for place, candidate in enumerate(candidates, 1):
        if any(plain_iou(candidate, true) >= 0.5 for true in boxes):
            return place
    return None


@given(st.lists(box, max_size=5), st.lists(box, min_size=1, max_size=4))
def test_overlaps_and_ranks_are_those_of_counted_pixels(candidates: list[list[int]], boxes: list[list[int]]) -> None:
    for one, values, ours in zip(
        candidates, grounding.iou(candidates, boxes), grounding.inclusive_iou(candidates, boxes), strict=True
    ):
        assert values == pytest.approx([plain_iou(one, other) for other in boxes])
        assert ours == pytest.approx([published_iou(one, other) for other in boxes])
        for true in boxes:
            assert grounding.expression(one, true) == (published_iou(one, true) > 0.5)
            assert grounding.expression(one, true, "exact") == (plain_iou(one, true) > 0.5)
    assert grounding.rank(candidates, boxes) == plain_rank(candidates, boxes, "any")
    assert grounding.rank(candidates, boxes, "merged") == plain_rank(candidates, boxes, "merged")


def test_half_is_right_of_a_phrase_and_wrong_of_an_expression() -> None:
    true, half = [0, 0, 10, 10], [0, 0, 10, 5]
    assert grounding.rank([half], [true]) == 1
    assert grounding.expression(half, true) == grounding.expression(half, true, "exact") == 0
    assert grounding.expression([0, 0, 10, 6], true) == 1


def test_a_pixel_s_width_counts_exactly_but_not_inclusively() -> None:
    thin = [0, 0, 1, 50]
    assert grounding.expression(thin, thin, "exact") == 1
    assert grounding.expression(thin, thin) == 0
    assert grounding.iou([[3, 3, 3, 3]], [[3, 3, 3, 3]]).tolist() == [[0]]


@pytest.mark.filterwarnings("error")
def test_boxes_beyond_any_photo_overlap_little() -> None:
    far = [-1e308, -1e308, 1e308, math.inf]
    for measure in (grounding.iou, grounding.inclusive_iou):
        found = measure([far, [0, 0, 2, 2]], [[0, 0, 2, 2], far])
        assert found == pytest.approx(np.array([[0, 1], [1, 0]]), abs=1e-9)
    assert grounding.rank([far, [0, 0, 2, 2]], [[0, 0, 2, 2]], "merged") == 2


def test_the_protocols_differ_on_a_chain_of_several_boxes() -> None:
    """Each of two people is right under `any`; the two together under `merged`."""
    people, both = [[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0, 30, 10]
    assert [grounding.rank([one], people) for one in (*people, both)] == [1, 1, None]
    assert [grounding.rank([one], people, "merged") for one in (*people, both)] == [None, None, 1]
    assert grounding.rank([both, people[0]], people) == 2


def test_recalls_are_over_phrases_and_a_phrase_of_two_types_counts_in_both() -> None:
    ranks = [[1, 6, None], [], [5]]
    types: Any = [[["people"], ["people", "clothing"], ["other"]], [], [[]]]
    found = {name: metric.value() for name, metric in grounding.recalls(ranks, types, "_merged").items()}
    assert found == {
        "r1_merged": 1 / 4, "r5_merged": 2 / 4, "r10_merged": 3 / 4, "upper_bound_merged": 3 / 4,
        "r1_merged/people": 1 / 2, "r5_merged/people": 1 / 2, "r10_merged/people": 1, "upper_bound_merged/people": 1,
        "r1_merged/clothing": 0, "r5_merged/clothing": 0, "r10_merged/clothing": 1, "upper_bound_merged/clothing": 1,
        "r1_merged/other": 0, "r5_merged/other": 0, "r10_merged/other": 0, "upper_bound_merged/other": 0,
    }  # fmt: skip


def test_recalls_of_no_phrase_have_no_value() -> None:
    assert grounding.recalls([[], []], [[], []])["r1"].value() is None


def test_parts_count_each_and_are_resampled_with_their_image() -> None:
    rng = np.random.default_rng(0)
    scores = [[float(rng.random() < 0.6) for _ in range(int(rng.integers(0, 4)))] for _ in range(200)]
    images = [f"{i // 5}" for i in range(200)]
    metric = PartScores(scores)
    flat = [(score, image) for its, image in zip(scores, images, strict=True) for score in its]
    assert metric.value() == math.fsum(score for score, _ in flat) / len(flat)
    assert len(metric.counted()) == len(flat)
    assert metric.interval(images, 200) == interval([s for s, _ in flat], [image for _, image in flat], 200)
