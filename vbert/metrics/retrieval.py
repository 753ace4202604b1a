"""Retrieval: ranks of the truth among images and among texts, recalls, median ranks, their sum, and folds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vbert.metrics.means import mean
from vbert.metrics.metric import ExampleScores, Metric, SetMetric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

AT = (1, 5, 10)  # of the recalls
BLOCK = 1 << 24  # scores compared at once

Rank = int | None  # of the truth, from 1; None: behind the end of a truncated ranking


@dataclass(frozen=True)
class Ranks:
    """texts: of each text that of its image among the images. images: of each image with a text that of the best of its
    texts among the texts. tied: queries of either side whose truth is level with a wrong candidate, which then counts
    as better."""

    texts: list[int]
    images: list[int]
    tied: int


def ranks(scores: ArrayLike, owners: Sequence[int]) -> Ranks:
    """Of a matrix of scores [images, texts]; owners: the row of each text's image. Higher is better.

    A rank is 1 + the wrong candidates that score at least as much as the truth: ties count against the model, whatever
    the order of the rows (published code sorts, and leaves them to chance). Of an image's texts the others are no wrong
    candidates (fartashf/vsepp `evaluation.py`, i2t and t2i). Whole numbers are compared as they are, beyond 2^53 too.
    Raises ValueError for NaN.
    """
    import numpy as np

    values, rows = np.asarray(scores), np.asarray(owners, np.int64)
    values = values.view(np.uint8) if values.dtype == np.bool_ else values
    least = -np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).min
    images, texts = values.shape
    true = values[rows, np.arange(texts)]
    if np.isnan(true).any():
        raise ValueError("a score is NaN")
    best = np.full(images, least, true.dtype)
    np.maximum.at(best, rows, true)
    own = np.bincount(rows[true == best[rows]], minlength=images)  # an image's own texts as good as its best
    above, level = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    wrong, beside = np.empty(images, np.int64), np.empty(images, np.int64)
    step = max(1, BLOCK // max(1, texts))
    for start in range(0, images, step):
        block = values[start : start + step]
        if np.isnan(block).any():
            raise ValueError("a score is NaN")
        above += (block >= true).sum(0)
        level += (block == true).sum(0)
        top = best[start : start + step, None]
        wrong[start : start + step] = (block >= top).sum(1)
        beside[start : start + step] = (block == top).sum(1)
    asked = np.bincount(rows, minlength=images) > 0
    tied = int((level > 1).sum()) + int((beside - own > 0)[asked].sum())
    return Ranks(above.tolist(), (wrong - own + 1)[asked].tolist(), tied)


def rank_in(ranking: Sequence[str], right: Collection[str]) -> Rank:
    """The place, from 1, of the first of `right` in a ranking, best first; None where it holds none of them."""
    return next((place for place, name in enumerate(ranking, 1) if name in right), None)


def recall(ranks: Sequence[Rank], k: int) -> float:
    """The share of ranks of at most `k`."""
    return mean([float(rank is not None and rank <= k) for rank in ranks])


def median(ranks: Sequence[Rank]) -> float | None:
    """floor(median of the ranks from 0) + 1 (fartashf/vsepp); None of none, and where one is behind the end of its
    ranking."""
    known = sorted(rank for rank in ranks if rank is not None)
    if len(known) < len(ranks):
        return None
    count = len(known)
    if not count:
        return None
    return float(math.floor((known[(count - 1) // 2] + known[count // 2] - 2) / 2) + 1)


def figures(ranks: Sequence[Rank]) -> dict[str, float]:
    """r1, r5, r10 in [0, 1], and the median rank, where it is known."""
    found = {f"r{k}": recall(ranks, k) for k in AT}
    middle = median(ranks)
    return found if middle is None else found | {"median": middle}


def rsum(text_to_image: Mapping[str, float], image_to_text: Mapping[str, float]) -> float:
    """The sum of the six recalls in percent, 0 to 600, as published."""
    return math.fsum(100 * side[f"r{k}"] for side in (text_to_image, image_to_text) for k in AT)


def averaged(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over folds of each figure that all of them have, medians too, as published."""
    return {name: mean([fold[name] for fold in folds]) for name in folds[0] if all(name in fold for fold in folds)}


def folds(owners: Sequence[int], images: int, count: int) -> list[tuple[range, NDArray[np.int64]]]:
    """(rows of images, columns of their texts) of `count` consecutive parts of the images, in their order: COCO's 1K
    figures are those of the fifths of its 5,000 images, averaged. Parts differ by one image at most."""
    import numpy as np

    rows = np.asarray(owners, np.int64)
    edges = [images * k // count for k in range(count + 1)]
    return [(range(low, high), np.flatnonzero((rows >= low) & (rows < high))) for low, high in pairwise(edges)]


def metrics(texts: Mapping[int, Rank], images: Mapping[int, Rank], examples: int) -> dict[str, Metric]:
    """text_to_image_r1, …, image_to_text_r10, the median ranks (where known) and rsum, each with its interval.

    texts and images: ranks of the queries of either side by their example; an image's query is that of one of its
    texts' examples. examples: how many there are.
    """
    found: dict[str, Metric] = {}
    sides = {"text_to_image": texts, "image_to_text": images}
    for side, places in sides.items():
        for k in AT:
            hits: list[float | None] = [None] * examples
            for i, rank in places.items():
                hits[i] = float(rank is not None and rank <= k)
            found[f"{side}_r{k}"] = ExampleScores(hits)
        if places and median(list(places.values())) is not None:
            found[f"{side}_median"] = _median(places)
    found["rsum"] = SetMetric(lambda times: _rsum(sides, times), range(examples))
    return found


def _median(places: Mapping[int, Rank]) -> SetMetric:
    """Of `times` each query counts."""
    known = list(places.values())
    return SetMetric(
        lambda times: median([rank for rank, n in zip(known, times.tolist(), strict=True) for _ in range(n)]),
        list(places),
    )


def _rsum(sides: Mapping[str, Mapping[int, Rank]], times: NDArray[np.int64]) -> float | None:
    """None where a side has no query."""
    total = 0.0
    for places in sides.values():
        counts = times[list(places)]
        if not counts.sum():
            return None
        for k in AT:
            hit = [rank is not None and rank <= k for rank in places.values()]
            total += 100 * float(counts[hit].sum()) / float(counts.sum())
    return total
