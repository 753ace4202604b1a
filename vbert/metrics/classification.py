"""Classification: accuracy, F1 averaged over labels, and the area under the ROC curve."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vbert.metrics.means import mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

EXACT = 80  # bits behind the point of an F1 of up to 2^26 examples, as float64


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


class Confusion:
    """The same figures of examples that count several times, for resampling: in milliseconds, and to the last digit
    those of the functions above on the examples, each as often as it counts.

    times: int64 [n], how often each example counts.
    """

    def __init__(self, truth: Sequence[str], predicted: Sequence[str | None]) -> None:
        import numpy as np

        labels = sorted({*truth, *(label for label in predicted if label is not None)})
        number = {label: k for k, label in enumerate(labels)}
        self._labels = len(labels)
        self._true = np.array([number[label] for label in truth], np.int64)
        guess = np.array([-1 if label is None else number[label] for label in predicted], np.int64)
        self._named, self._right = np.flatnonzero(guess >= 0), np.flatnonzero(guess == self._true)
        self._guess = guess[self._named]

    def macro_f1(self, times: NDArray[np.int64]) -> float:
        """As `macro_f1`."""
        return mean(self._f1(times)[0])

    def weighted_f1(self, times: NDArray[np.int64]) -> float:
        """As `weighted_f1`: a sum of whole multiples of 2^-80, so that it is rounded as `math.fsum` rounds."""
        f1, support = self._f1(times)
        total = sum(int(math.ldexp(value, EXACT)) * int(n) for value, n in zip(f1, support, strict=True))
        return total / (1 << EXACT) / sum(support)

    def _f1(self, times: NDArray[np.int64]) -> tuple[list[float], list[float]]:
        """F1 and number of true ones of each label that occurs."""
        import numpy as np

        support = np.bincount(self._true, times, self._labels)
        named = np.bincount(self._guess, times[self._named], self._labels)
        right = np.bincount(self._true[self._right], times[self._right], self._labels)
        there = support + named > 0
        f1 = 2 * right[there] / (support + named)[there]
        return f1.tolist(), support[there].tolist()


class Ranking:
    """As `auroc`, of examples that count several times; None where one class has no example."""

    def __init__(self, positive: ArrayLike, scores: ArrayLike) -> None:
        import numpy as np

        chosen, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
        distinct, self._places = np.unique(values, return_inverse=True)
        self._values, self._chosen = len(distinct), np.flatnonzero(chosen)

    def auroc(self, times: NDArray[np.int64]) -> float | None:
        """times: int64 [n], how often each example counts."""
        import numpy as np

        every = np.bincount(self._places, times, self._values)
        positive = np.bincount(self._places[self._chosen], times[self._chosen], self._values)
        negative = every - positive
        pairs = 2 * int(positive.sum()) * int(negative.sum())
        twice = 2 * np.cumsum(negative) - negative  # negatives below, and half of the equal ones, doubled
        return int((positive * twice).sum()) / pairs if pairs else None
