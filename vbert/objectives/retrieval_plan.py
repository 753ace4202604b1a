"""What retrieval among the examples of a split compares: its texts and images, the short lists, and the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Blocks = Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]  # (first text, scores [texts, M]) of each block
SHORT = 128  # of each query's short list, where all pairs are scored
QUERIES = 256  # of which the similarities are in memory at once


@dataclass(frozen=True)
class ShortLists:
    """The dual encoder's best of the images `first` to `last` and their captions, for each of these: the order in which
    the cross-encoder's work is worth it.

    captions: int64 [C], those of the images. images: int64 [C, k] and texts: int64 [M, k'] (captions), the best first,
    of equal ones the first. image_ranks: [C], text_ranks: [M], 0-based ranks of the truth by the dual encoder alone,
    equal ones before it.
    """

    first: int
    last: int
    captions: Ints
    images: Ints
    texts: Ints
    image_ranks: Ints
    text_ranks: Ints


@dataclass(frozen=True)
class RetrievalPlan:
    """C captions of M images, and U different texts.

    text_of, image_of: int64 [C], the text and the image of each caption. lists: of all images first, then of each fold;
    empty without a dual encoder. folds: (first, last) images of each. exhaustive: whether all pairs are scored.
    """

    text_of: Ints
    image_of: Ints
    texts: int
    images: int
    folds: Sequence[tuple[int, int]]
    lists: Sequence[ShortLists]
    exhaustive: bool

    @cached_property
    def pairs(self) -> Ints:
        """int64 [P], sorted: text · M + image, of the pairs that are scored where not all are."""
        found = []
        for one in self.lists:
            wide = one.images.shape[1]
            found.append(np.repeat(self.text_of[one.captions], wide) * self.images + one.images.reshape(-1))
            owners = np.repeat(np.arange(one.first, one.last), one.texts.shape[1])
            found.append(self.text_of[one.texts.reshape(-1)] * self.images + owners)
        return np.unique(np.concatenate(found))

    @property
    def count(self) -> int:
        """Pairs that are scored."""
        return self.texts * self.images if self.exhaustive else len(self.pairs)

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """All of it, for a file."""
        lists = {
            f"{k}.{name}": getattr(one, name)
            for k, one in enumerate(self.lists)
            for name in ("captions", "images", "texts", "image_ranks", "text_ranks")
        }
        about = [self.texts, self.images, int(self.exhaustive), len(self.folds), len(self.lists)]
        return {"about": np.array(about), "text_of": self.text_of, "image_of": self.image_of, **lists}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.int64]]) -> RetrievalPlan:
        texts, images, exhaustive, folds, lists = arrays["about"].tolist()
        bounds = fold_bounds(images, folds)
        spans = [(0, images), *bounds][:lists]
        names = ("captions", "images", "texts", "image_ranks", "text_ranks")
        made = [ShortLists(*span, *(arrays[f"{k}.{name}"] for name in names)) for k, span in enumerate(spans)]
        return cls(arrays["text_of"], arrays["image_of"], texts, images, bounds, made, bool(exhaustive))


def fold_bounds(images: int, folds: int) -> list[tuple[int, int]]:
    """(first, last) image of each of the consecutive parts, as equal as can be."""
    ends = [images * k // max(1, folds) for k in range(folds + 1)]
    return list(pairwise(ends))


def short_lists(
    text_of: Ints,
    image_of: Ints,
    texts: NDArray[np.float32],
    images: NDArray[np.float32],
    span: tuple[int, int],
    size: int,
) -> ShortLists:
    """The short lists of `size` among the images of the span. texts: [U, d], images: [M, d], the unit vectors."""
    first, last = span
    captions = np.flatnonzero((image_of >= first) & (image_of < last))
    among = images[first:last]
    best_images, image_ranks, best_texts, text_ranks = [], [], [], []
    for part in _parts(captions):
        scores = texts[text_of[part]] @ among.T
        truth = image_of[part] - first
        best_images.append(_best(scores, size) + first)
        image_ranks.append((scores >= scores[np.arange(len(part)), truth][:, None]).sum(1) - 1)
    ours, theirs = texts[text_of[captions]], image_of[captions]
    for part in _parts(np.arange(first, last)):
        scores = images[part] @ ours.T
        own = theirs == part[:, None]
        truth = np.where(own, scores, -np.inf).max(1, keepdims=True)
        best_texts.append(captions[_best(scores, size)])
        text_ranks.append(((scores >= truth) & ~own).sum(1))
    joined = (np.concatenate(each).astype(np.int64) for each in (best_images, best_texts, image_ranks, text_ranks))
    found = dict(zip(("images", "texts", "image_ranks", "text_ranks"), joined, strict=True))
    return ShortLists(first, last, captions, **found)


def _parts(queries: Ints) -> list[Ints]:
    return np.split(queries, range(QUERIES, len(queries), QUERIES))


def _best(scores: NDArray[np.float32], size: int) -> Ints:
    """The places of the `size` highest in each row, of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :size]
