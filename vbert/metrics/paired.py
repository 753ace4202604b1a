"""Paired comparison: the difference of two means over the same examples and seeds, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbert.metrics.bootstrap import CONFIDENCE, clustered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 2_000_000  # images drawn at once


@dataclass(frozen=True)
class PairedDifference:
    """A difference of means with its 95 % interval. `by_seed`: the difference in each seed."""

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]


def paired_difference(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    groups: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> PairedDifference:
    """Mean of ours − theirs, scores [seeds][examples]: row s of both is of one seed, column i of one example, and the
    examples of a group (an image's) go together.

    Seeds and images are both resampled (the percentile bootstrap of crossed random effects, Owen 2007), each whole:
    a seed with all its images, an image with all its examples in all seeds. The deviations of n resampled seeds are
    widened by √(n / (n − 1)), the share of their variance that resampling so few of them misses. Simulated with three
    seeds it covers .92 to .99 while a difference varies by up to 2.5 points from seed to seed, .87 at 3.5 points; with
    five seeds .93 there. Of one seed images alone are resampled, and the interval says nothing of other seeds.

    Where no image differs in any seed, resampling sees nothing: the bound is then that of a share of images that differ
    of which none was seen (Clopper–Pearson on (Σ n)² / Σ n² images, n the examples of one), to either side.
    """
    import numpy as np

    apart = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    sums, sizes = zip(*(clustered(row, groups) for row in apart), strict=True)
    cells, size = np.stack(sums), sizes[0]  # [seeds, images], [images]
    seeds, images = cells.shape
    by_seed = cells.sum(1) / size.sum()
    if not cells.any():
        most = 1 - float(((1 - CONFIDENCE) / 2) ** (np.square(size).sum() / size.sum() ** 2))
        return PairedDifference(0.0, -most, most, tuple(by_seed.tolist()))
    rng, differences = np.random.default_rng(seed), []
    for start in range(0, resamples, batch := max(1, DRAWS // images)):
        drawn = min(batch, resamples - start)
        weights = _counts(rng.integers(0, images, (drawn, images)), images)
        means = weights @ cells.T / (weights @ size)[:, None]
        if seeds > 1:
            shares = _counts(rng.integers(0, seeds, (drawn, seeds)), seeds) / seeds
            shares = 1 / seeds + math.sqrt(seeds / (seeds - 1)) * (shares - 1 / seeds)
            means = (shares * means).sum(1, keepdims=True)
        differences.append(means[:, 0])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(differences), [tail, 1 - tail])
    return PairedDifference(float(by_seed.mean()), float(low), float(high), tuple(by_seed.tolist()))


def _counts(drawn: NDArray[np.int64], among: int) -> NDArray[np.float64]:
    """How often each of `among` was drawn in each row."""
    import numpy as np

    rows = np.arange(len(drawn))[:, None] * among
    counts = np.bincount((rows + drawn).ravel(), minlength=len(drawn) * among)
    return counts.reshape(len(drawn), among).astype(np.float64)
