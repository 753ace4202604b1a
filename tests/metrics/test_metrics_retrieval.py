"""Retrieval: ranks with ties against the model, recalls, medians, sums and folds, beside a plain reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbert.metrics import retrieval


def plain(scores: np.ndarray, owners: list[int]) -> tuple[list[int], list[int], int]:
    """By sorting, the truth behind whatever is level with it."""
    images, texts, tied = [], [], 0
    for t, owner in enumerate(owners):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i, t], i == owner))
        texts.append(order.index(owner) + 1)
        tied += any(scores[i, t] == scores[owner, t] for i in range(len(scores)) if i != owner)
    for i, row in enumerate(scores):
        own = {t for t, owner in enumerate(owners) if owner == i}
        if own:
            order = sorted(range(len(owners)), key=lambda t: (-row[t], t in own))
            wrong = [t for t in order if t not in own]
            first = next(t for t in order if t in own)
            images.append(1 + sum(row[t] >= row[first] for t in wrong))
            tied += any(row[t] == row[first] for t in wrong)
    return texts, images, tied


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Few different scores, so that ties are common; images without a text, and one candidate alone."""
    images, texts = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    owners = draw(st.lists(st.integers(0, images - 1), min_size=texts, max_size=texts))
    values = draw(
        st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=images * texts, max_size=images * texts)
    )
    return np.array(values, np.float32).reshape(images, texts), owners


@given(matrices(), st.sampled_from([1, 7, retrieval.BLOCK]))
def test_ranks_are_those_of_sorting_with_ties_against_the_truth(case: tuple[np.ndarray, list[int]], block: int) -> None:
    scores, owners = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK", block)
        found = retrieval.ranks(scores, owners)
    assert (found.texts, found.images, found.tied) == plain(scores, owners)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_figures_are_those_of_numpy(places: list[int]) -> None:
    from_zero = np.array(places) - 1
    assert retrieval.figures(places) == {
        "r1": pytest.approx((from_zero < 1).mean()),
        "r5": pytest.approx((from_zero < 5).mean()),
        "r10": pytest.approx((from_zero < 10).mean()),
        "median": np.floor(np.median(from_zero)) + 1,
    }


def test_equal_scores_throughout_are_the_last_place() -> None:
    found = retrieval.ranks(np.zeros((3, 6)), [0, 0, 1, 1, 2, 2])
    assert (found.texts, found.images, found.tied) == ([3] * 6, [5] * 3, 9)


@pytest.mark.filterwarnings("error")
def test_whole_numbers_and_flags_are_compared_exactly() -> None:
    """Below zero, where the least of a small type counts, and beyond 2^53, where floats have no neighbours."""
    for kind in (np.int8, np.int16, np.int32, np.int64):
        last = np.array([[np.iinfo(kind).min, -3], [-2, -4]], kind)
        found = retrieval.ranks(last, [0, 1])
        assert (found.texts, found.images, found.tied) == ([2, 2], [2, 2], 0)
    for kind in (np.int64, np.uint64):
        close = np.array([[2**62, 2**62 + 1], [2**62 + 1, 2**62]], kind)
        assert retrieval.ranks(close, [0, 1]) == retrieval.Ranks([2, 2], [2, 2], 0)
    assert retrieval.ranks(np.array([[True, False], [True, True]]), [0, 1]).texts == [2, 1]


def test_a_truncated_ranking_has_no_median() -> None:
    assert retrieval.rank_in(["b", "c"], {"a"}) is None
    assert retrieval.rank_in(["b", "a", "c"], {"a", "c"}) == 2
    assert retrieval.figures([1, None, 3]) == {"r1": 1 / 3, "r5": 2 / 3, "r10": 2 / 3}


def test_nan_is_no_score() -> None:
    for place in ((0, 0), (1, 0)):
        scores = np.ones((2, 2))
        scores[place] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            retrieval.ranks(scores, [0, 1])


def test_folds_are_consecutive_and_their_figures_averaged() -> None:
    """As by hand: each part's own matrix."""
    rng = np.random.default_rng(0)
    scores, owners = rng.normal(size=(11, 30)), sorted(rng.integers(0, 11, 30).tolist())
    parts = retrieval.folds(owners, 11, 5)
    assert [i for rows, _ in parts for i in rows] == list(range(11))
    assert {len(rows) for rows, _ in parts} == {2, 3}
    each = []
    for rows, columns in parts:
        assert columns.tolist() == [t for t, owner in enumerate(owners) if owner in rows]
        own = [owners[t] - rows.start for t in columns]
        each.append(retrieval.figures(plain(scores[rows.start : rows.stop, columns], own)[0]))
    found = retrieval.averaged(each)
    assert found["r1"] == pytest.approx(np.mean([one["r1"] for one in each]))
    assert found["median"] == pytest.approx(np.mean([one["median"] for one in each]))
    assert retrieval.averaged([{"r1": 1.0, "median": 2.0}, {"r1": 0.0}]) == {"r1": 0.5}


def test_the_sum_is_of_six_recalls_in_percent() -> None:
    sides = {"r1": 0.5, "r5": 0.75, "r10": 1.0, "median": 1.0}, {"r1": 0.25, "r5": 0.5, "r10": 0.5, "median": 3.0}
    assert retrieval.rsum(*sides) == 350


def test_metrics_of_an_objective_are_the_same_figures() -> None:
    texts, images = {0: 1, 1: 7, 2: 2, 3: 12}, {0: 3, 2: 1}
    found = retrieval.metrics(texts, images, 5)
    sides = retrieval.figures(list(texts.values())), retrieval.figures(list(images.values()))
    for side, figures in zip(("text_to_image", "image_to_text"), sides, strict=True):
        for name, value in figures.items():
            assert found[f"{side}_{name}"].value() == value
    assert found["rsum"].value() == pytest.approx(retrieval.rsum(*sides))
    bounds = found["rsum"].interval(["a", "a", "b", "b", "c"], 200)
    assert bounds.low <= retrieval.rsum(*sides) <= bounds.high
    assert found["text_to_image_median"].interval(["a", "a", "b", "b", "c"], 50).method == "bootstrap"
    assert "text_to_image_median" not in retrieval.metrics({0: None, 1: 1}, images, 5)
    assert retrieval.metrics({}, {}, 2)["rsum"].value() is None
