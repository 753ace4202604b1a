"""Paired differences over seeds and images: exact cases, and their coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vbert.metrics.paired import paired_difference

IMAGES, EACH = 100, 10
GROUPS = [f"{i}" for i in range(IMAGES) for _ in range(EACH)]
GAIN = 0.05


def one_world(rng: np.random.Generator, seeds: int, spread: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores [seeds, examples] of two ways: ours is better by GAIN in the mean, by another `spread` in each seed, and
    images are more or less difficult for both."""
    hard = np.repeat(0.1 * rng.standard_normal(IMAGES), EACH)
    apart = np.repeat(0.1 * rng.standard_normal((seeds, IMAGES)), EACH, axis=1)
    chance = 0.7 + hard
    gain = GAIN + spread * rng.standard_normal((seeds, 1))
    ours = rng.random((seeds, IMAGES * EACH)) < np.clip(chance + gain + apart, 0, 1)
    theirs = rng.random((seeds, IMAGES * EACH)) < np.clip(chance, 0, 1)
    return ours.astype(float), theirs.astype(float)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.02), (5, 0.03)])
def test_intervals_cover_with_seeds_and_images_drawn(seeds: int, spread: float) -> None:
    rng, hit = np.random.default_rng(seeds), 0
    for _ in range(200):
        found = paired_difference(*one_world(rng, seeds, spread), GROUPS, 200)
        hit += found.low <= GAIN - 0.001 <= found.high  # clipping costs a thousandth
    assert 0.91 <= hit / 200 <= 0.995


def test_what_is_the_same_in_both_cancels() -> None:
    """However much images and seeds vary, a constant gain has no spread; the same in every order of examples."""
    theirs = np.random.default_rng(0).random((3, IMAGES * EACH))
    found = paired_difference(theirs + 0.25, theirs, GROUPS, 100)
    assert (found.value, found.low, found.high) == (pytest.approx(0.25),) * 3
    assert found.by_seed == (pytest.approx(0.25),) * 3


def test_equal_answers_everywhere_have_a_bound_that_holds() -> None:
    """None of 100 images differs: up to 3.6 % of images may, as for no success in 100."""
    same = np.ones((3, IMAGES * EACH))
    found = paired_difference(same, same, GROUPS, 100)
    assert (found.value, found.high) == (0, pytest.approx(1 - 0.025 ** (1 / 100)))
    assert found.low == -found.high


def test_seeds_that_disagree_widen_it() -> None:
    theirs = np.zeros((3, IMAGES * EACH))
    ours = theirs + np.array([[0.02], [0.05], [0.11]])
    found = paired_difference(ours, theirs, GROUPS, 2000)
    assert found.value == pytest.approx(0.06)
    assert found.by_seed == (pytest.approx(0.02), pytest.approx(0.05), pytest.approx(0.11))
    # The outermost resamples are one seed three times, widened by √1.5; each has a chance of 1/27, more than 2.5 %.
    assert found.low == pytest.approx(0.06 - 0.04 * 1.5**0.5)
    assert found.high == pytest.approx(0.06 + 0.05 * 1.5**0.5)
    assert paired_difference(ours, theirs, GROUPS, 2000) == found
