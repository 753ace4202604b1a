"""Intervals of a metric by resampling whole clusters of examples (all those of an image)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
FEW = 20  # fewest clusters that are not all right (or not all wrong) for resampling

Method = Literal["bootstrap", "clopper-pearson", "none"]


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % interval of a metric. `groups`: images that count as drawn; `effective`: how many independent examples
    theirs are worth (by the design effect; at 0 or 1, where nothing is seen of that, the number of images). `of`: what
    was resampled, images or the metric's own groups."""

    low: float
    high: float
    method: Method
    groups: int
    effective: float
    of: str = "images"

    @property
    def in_words(self) -> str:
        """The method in words."""
        if self.method == "bootstrap":
            return f"{self.groups:,} {self.of} resampled"
        if self.method == "clopper-pearson":
            return f"Clopper–Pearson for {self.effective:,.0f} independent examples from {self.groups:,} {self.of}"
        return f"one of the {self.of} alone says nothing" if self.of != "images" else "one image alone says nothing"


def interval(
    scores: Sequence[float], groups: Sequence[str], resamples: int, seed: int = 0, of: str = "images"
) -> ConfidenceInterval:
    """95 % interval of the mean of scores in [0, 1], where those of one group (an image's) go together.

    Groups are resampled, not examples: answers about one image stand or fall together, and taken as independent their
    interval is too narrow (simulated, ten answers an image with a correlation of 0.2: 75 % coverage, with 0.5: 57 %).

    - In general the percentile bootstrap over groups of the ratio Σ scores / Σ examples, its level widened for few
      groups (the expanded percentile interval, Hesterberg 2015, section 3.2).
    - Where fewer than 20 groups are not all right (or fewer than 20 not all wrong), Clopper–Pearson on the effective
      number of independent examples p (1 − p) / v, with v the variance between groups (Korn and Graubard 1998). At
      exactly 0 or 1 v is unknown: the effective number is then that of groups, (Σ n)² / Σ n² with n the
      examples of a group, so that the bound holds for answers of any correlation within an image.
    - One group alone: [0, 1].
    """
    import numpy as np

    sums, sizes = clustered(np.asarray(scores, np.float64), groups)
    mean, count = sums.sum() / sizes.sum(), len(sums)
    residual = sums - mean * sizes
    variance = count / max(1, count - 1) * float(np.square(residual / sizes.sum()).sum())
    wrong, right = int((sizes - sums > 0).sum()), int((sums > 0).sum())
    if count < 2:
        return ConfidenceInterval(0.0, 1.0, "none", count, float(count), of)
    if not wrong or not right:
        effective = float(sizes.sum() ** 2 / np.square(sizes).sum())
    else:
        effective = min(float(sizes.sum()), float(mean * (1 - mean) / variance)) if variance else float(sizes.sum())
    if min(wrong, right) < FEW:
        return ConfidenceInterval(*_clopper_pearson(float(mean), effective), "clopper-pearson", count, effective, of)
    return ConfidenceInterval(*_bootstrap(sums, sizes, resamples, seed), "bootstrap", count, effective, of)


def interval_of(
    metric: Callable[[NDArray[np.int64]], float | None],
    groups: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> ConfidenceInterval:
    """95 % interval of a function of how often each example counts, int64 [n], by the percentile bootstrap over groups,
    its level widened as in `interval`; draws in which it isn't defined are left out. groups: of each example."""
    import numpy as np

    _, places = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    count, rng = int(places.max(initial=-1)) + 1, np.random.default_rng(seed)
    if count < 2:
        return ConfidenceInterval(0.0, 1.0, "none", count, float(count))
    drawn = _counted(rng, count, resamples)
    values = [value for times in drawn if (value := metric(times[places])) is not None]
    if not values:
        return ConfidenceInterval(0.0, 1.0, "none", count, float(len(groups)))
    low, high = np.quantile(values, [tail := _tail(count), 1 - tail])
    return ConfidenceInterval(float(low), float(high), "bootstrap", count, float(len(groups)))


def clustered(values: NDArray[np.float64], groups: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sum of the values, number of values) of each group, in the order of their names."""
    import numpy as np

    _, places = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    return np.bincount(places, values).astype(np.float64), np.bincount(places).astype(np.float64)


def _bootstrap(sums: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    count, rng, before = len(sums), np.random.default_rng(seed), None
    if np.array_equal(sums, np.rint(sums)):  # then sums of them are exact in any order: drawn groups can be counted
        drawn = _counted(rng, count, resamples)
        before = _Drawn(np.array([float((times * sums).sum() / (times * sizes).sum()) for times in drawn]))
    tail = _tail(count)
    result = bootstrap(
        (sums, sizes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=0 if before else resamples,
        bootstrap_result=before,
        confidence_level=1 - 2 * tail,
        method="percentile",
        batch=max(1, 2_000_000 // count),
        rng=rng,
    ).confidence_interval
    return float(result.low), float(result.high)


@dataclass(frozen=True)
class _Drawn:
    """As scipy's `bootstrap` takes what was drawn before."""

    bootstrap_distribution: NDArray[np.float64]


def _counted(rng: np.random.Generator, count: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """For each resample how often each of `count` groups is drawn."""
    import numpy as np

    for _ in range(resamples):
        yield np.bincount(rng.integers(0, count, count), minlength=count)


def _tail(count: int) -> float:
    """The quantile of either end for `count` groups (the expanded percentile interval)."""
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(count / (count - 1)) * t.ppf((1 - CONFIDENCE) / 2, count - 1)))


def _clopper_pearson(mean: float, count: float) -> tuple[float, float]:
    """Of `mean · count` successes in `count`, which need not be whole numbers (by the beta distribution)."""
    from scipy.stats import beta

    tail, right = (1 - CONFIDENCE) / 2, mean * count
    low = 0.0 if mean <= 0 else float(beta.ppf(tail, right, count - right + 1))
    high = 1.0 if mean >= 1 else float(beta.ppf(1 - tail, right + 1, count - right))
    return low, high
