"""Metrics: means over examples and over groups, functions of a set, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vbert.metrics.bootstrap import interval
from vbert.metrics.classification import Confusion
from vbert.metrics.metric import ExampleScores, SetMetric, by_part


def test_a_group_counts_once_as_its_smallest_score() -> None:
    metric = ExampleScores([1.0, 1.0, 0.0, 1.0, None, 1.0], ["a", "a", "b", "b", "b", "c"])
    assert metric.value() == pytest.approx(2 / 3)
    assert metric.counted() == [0, 1, 2, 3, 5]
    found = metric.interval(["x"] * 6, 100)
    assert (found.groups, found.of) == (3, "groups")
    assert "3 groups" in found.in_words


def test_nothing_that_counts_has_no_value() -> None:
    assert ExampleScores([None, None]).value() is None
    assert SetMetric(lambda _: 1.0, []).value() is None


def test_parts_are_over_their_examples_alone() -> None:
    found = by_part("accuracy", [1.0, 0.0, None, 1.0], kind=["a", "b", "a", None], color=["x", "x", "y", "b"])
    assert {name: metric.value() for name, metric in found.items()} == {
        "accuracy": pytest.approx(2 / 3), "accuracy/a": 1.0, "accuracy/b": 0.0,
        "accuracy/x": 0.5, "accuracy/y": None, "accuracy/color b": 1.0,
    }  # fmt: skip


def drawn(images: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Labels, guesses and images of three examples an image: all right or all wrong, at 0.7."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, 3 * images)
    right = np.repeat(rng.random(images) < 0.7, 3)
    names = np.array(["no", "yes"])
    return (
        names[true].tolist(),
        names[np.where(right, true, 1 - true)].tolist(),
        [f"{i // 3}" for i in range(3 * images)],
    )


def test_a_set_metric_s_interval_resamples_images() -> None:
    """Of a mean it is that of the mean; macro-F1's covers the true value about as often as it says."""
    true, guess, images = drawn(150, 0)
    right = [float(a == b) for a, b in zip(true, guess, strict=True)]
    values = np.array(right)
    mean = SetMetric(lambda times: float((times * values).sum() / times.sum()), range(len(right)))
    found, wanted = mean.interval(images, 2000), interval(right, images, 2000)
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=0.012), pytest.approx(wanted.high, abs=0.012))
    covered = 0
    for seed in range(60):
        labels, guesses, images = drawn(60, seed)
        metric = SetMetric(Confusion(labels, guesses).macro_f1, range(len(labels)))
        assert metric.value() == pytest.approx(f1_score(labels, guesses, average="macro"))
        bounds = metric.interval(images, 100)
        covered += bounds.low <= 0.7 <= bounds.high
    assert covered >= 51  # of 57 expected


def test_one_image_alone_says_nothing_of_a_set() -> None:
    found = SetMetric(lambda _: 0.5, range(3)).interval(["a"] * 3, 10)
    assert (found.low, found.high, found.method) == (0, 1, "none")
