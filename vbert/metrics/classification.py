"""Classification: accuracy, F1 averaged over labels, and the area under the ROC curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vbert.metrics.means import mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def accuracy(truth: Sequence[str], predicted: Sequence[str | None]) -> float:
    """The share of equal labels. Of every function here: `truth` [n], `predicted` [n], None where there is none."""
    return mean([float(a == b) for a, b in zip(truth, predicted, strict=True)])


def f1(truth: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Label → F1 = 2 · right / (true ones + predicted ones), of every label that occurs among either."""
    support, named = Counter(truth), Counter(label for label in predicted if label is not None)
    right = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    return {label: 2 * right[label] / (support[label] + named[label]) for label in sorted({*support, *named})}


def macro_f1(truth: Sequence[str], predicted: Sequence[str | None]) -> float:
    """The mean of `f1` over its labels, as scikit-learn's `f1_score(average="macro", zero_division=0)`."""
    return mean(list(f1(truth, predicted).values()))


def weighted_f1(truth: Sequence[str], predicted: Sequence[str | None]) -> float:
    """The mean of `f1` over the examples, each with that of its true label: scikit-learn's `average="weighted"`."""
    each = f1(truth, predicted)
    return mean([each[label] for label in truth])


def auroc(positive: ArrayLike, scores: ArrayLike) -> float:
    """The probability that a positive example scores above a negative one, ties as half (Mann and Whitney 1947).

    positive: bool [n]; scores: float [n], infinite ones allowed. Raises ValueError where one class has no example.
    """
    import numpy as np

    chosen, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    positives, negatives = int(chosen.sum()), int((~chosen).sum())
    if not positives or not negatives:
        raise ValueError("the area under the ROC curve needs positive and negative examples")
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    twice = 2 * below[places] + counts[places] + 1  # 2 × the mean rank among equals: a whole number, hence exact
    ranks = int(twice[chosen].sum()) - positives * (positives + 1)
    return ranks / (2 * positives * negatives)
