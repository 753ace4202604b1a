"""A metric of an evaluation: scores of examples or of their parts, or a function of a set; each has an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vbert.metrics.bootstrap import ConfidenceInterval, interval, interval_of
from vbert.metrics.means import mean, smallest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ExampleScores:
    """Each example's score in [0, 1], None where it doesn't count; the metric is their mean.

    most: the largest score where that isn't 1 (CIDEr: 10). group: the name of each example's group. A group then counts
    once, as the smallest score in it: consistency (all statements about a pair right), Q→AR (answer and rationale
    right).
    """

    scores: Sequence[float | None]
    group: Sequence[str] | None = None
    most: float = 1.0

    def counted(self) -> list[int]:
        """The examples that count."""
        return [i for i, score in enumerate(self.scores) if score is not None]

    def terms(self) -> Mapping[str, float] | Mapping[int, float]:
        """The terms of the mean: by example, or by group."""
        if self.group is None:
            return {i: score for i, score in enumerate(self.scores) if score is not None}
        counted = self.counted()
        return smallest([float(self.scores[i] or 0) for i in counted], [self.group[i] for i in counted])

    def value(self) -> float | None:
        """None where no example counts."""
        terms = self.terms()
        return mean(list(terms.values())) if terms else None

    def interval(self, images: Sequence[str], resamples: int) -> ConfidenceInterval:
        """images: each example's, whose examples are resampled together; of a grouped metric its groups are."""
        terms = self.terms()
        shares = [term / self.most for term in terms.values()]
        if self.group is None:
            found = interval(shares, [images[int(i)] for i in terms], resamples)
        else:
            found = interval(shares, [str(name) for name in terms], resamples, of="groups")
        return replace(found, low=self.most * found.low, high=self.most * found.high)


@dataclass(frozen=True)
class PartScores:
    """The scores in [0, 1] of each example's parts (a sentence's phrases); the metric is their mean, over all parts."""

    scores: Sequence[Sequence[float]]

    def counted(self) -> list[int]:
        """The example of each part."""
        return [i for i, scores in enumerate(self.scores) for _ in scores]

    def value(self) -> float | None:
        """None where no example has a part."""
        every = [score for scores in self.scores for score in scores]
        return mean(every) if every else None

    def interval(self, images: Sequence[str], resamples: int) -> ConfidenceInterval:
        """images: each example's, whose parts are resampled together."""
        every = [score for scores in self.scores for score in scores]
        return interval(every, [images[i] for i in self.counted()], resamples)


@dataclass(frozen=True)
class SetMetric:
    """A function of a set of examples that is no mean over them: macro-F1, AUROC.

    of: how often each of `examples` counts, int64 [n] → the metric in [0, 1], None where it isn't defined. examples:
    indices of those that count.
    """

    of: Callable[[NDArray[np.int64]], float | None]
    examples: Sequence[int]

    def counted(self) -> list[int]:
        return list(self.examples)

    def value(self) -> float | None:
        import numpy as np

        return self.of(np.ones(len(self.examples), np.int64)) if self.examples else None

    def interval(self, images: Sequence[str], resamples: int) -> ConfidenceInterval:
        return interval_of(self.of, [images[i] for i in self.examples], resamples)


Metric = ExampleScores | PartScores | SetMetric


def by_part(name: str, scores: Sequence[float | None], **divisions: Sequence[str | None]) -> dict[str, Metric]:
    """`name` over all examples, then `name/part` for each part of them. divisions: each example's part by question
    type, answer type, …; a part of a later one that an earlier one has too is `name/answer_type part`."""
    metrics: dict[str, Metric] = {name: ExampleScores(scores)}
    for division, parts in divisions.items():
        taken = set(metrics)
        for part in sorted({part for part in parts if part}):
            chosen = [score if its == part else None for score, its in zip(scores, parts, strict=True)]
            called = f"{name}/{part}"
            metrics[called if called not in taken else f"{name}/{division} {part}"] = ExampleScores(chosen)
    return metrics
