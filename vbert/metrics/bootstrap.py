"""Intervals of a mean by resampling the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def interval(scores: Sequence[float], resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron). Equal scores give (mean, mean).

    scipy's default, BCa, is not defined for constant data.
    """
    import numpy as np
    from scipy.stats import bootstrap

    values = np.asarray(scores, np.float64)
    if len(values) < 2:
        mean = math.fsum(scores) / len(scores)
        return mean, mean
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=max(1, 2_000_000 // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
