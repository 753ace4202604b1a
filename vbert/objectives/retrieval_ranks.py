"""From scores of pairs, block by block, to the rank of the truth and the best of each query."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbert.objectives.entry import Prediction
from vbert.objectives.retrieval_plan import Blocks, Ints, RetrievalPlan, ShortLists

TOP = 100  # published of each query
SHORTER = (16, 32, 64, 128)  # of short lists, those whose recall is told
KEPT = 512  # captions whose scores wait to be merged with the best of each image


@dataclass
class Ranks:
    """Of Q queries, texts or images: the 0-based rank of the truth, with equal ones before it (int64 [Q]); how many are
    equal; the best, most [Q, 100], and their scores; by length of a shorter list the rank that it would give; how many
    candidates the cross-encoder ranked. fold: the rank within the query's fold; fold_tied likewise."""

    rank: Ints
    tied: Ints
    best: Ints
    scores: NDArray[np.float32]
    shorter: dict[int, Ints] = field(default_factory=dict)
    among: int = 0
    fold: Ints | None = None
    fold_tied: Ints | None = None


def ranks(plan: RetrievalPlan, blocks: Blocks) -> tuple[Ranks, Ranks]:
    """Of the captions as queries, among images; of the images, among captions."""
    lists = [_Listed(plan, one) for one in plan.lists]
    if lists:
        for first, rows in blocks():
            for one in lists:
                one.read(first, rows)
    short = [(one.ranks(), one.ranks(of_images=True)) for one in lists]
    if plan.exhaustive:
        found = _AllPairs(plan, blocks).both()
        for whole, listed in zip(found, short[0] if short else (), strict=False):
            whole.shorter = listed.shorter
        return found
    for at, whole in enumerate(short[0]):
        if len(short) > 1:  # folds follow each other, and so do their images
            whole.fold, whole.fold_tied = np.zeros_like(whole.rank), np.zeros_like(whole.rank)
            for one, each in zip(lists[1:], (pair[at] for pair in short[1:]), strict=True):
                queries = np.arange(one.lists.first, one.lists.last) if at else one.lists.captions
                whole.fold[queries], whole.fold_tied[queries] = each.rank, each.tied
    return short[0]


class _Listed:
    """Short lists with the cross-encoder's scores of their pairs."""

    def __init__(self, plan: RetrievalPlan, lists: ShortLists) -> None:
        self.plan, self.lists = plan, lists
        self.of_images = np.full(lists.images.shape, np.nan, np.float32)
        self.of_texts = np.full(lists.texts.shape, np.nan, np.float32)
        self.text_of_caption = plan.text_of[lists.captions]
        self.text_of_listed = plan.text_of[lists.texts]

    def read(self, first: int, rows: NDArray[np.float32]) -> None:
        last = first + len(rows)
        here = np.flatnonzero((self.text_of_caption >= first) & (self.text_of_caption < last))
        self.of_images[here] = rows[(self.text_of_caption[here] - first)[:, None], self.lists.images[here]]
        image, place = np.nonzero((self.text_of_listed >= first) & (self.text_of_listed < last))
        listed = self.text_of_listed[image, place] - first
        self.of_texts[image, place] = rows[listed, self.lists.first + image]

    def ranks(self, of_images: bool = False) -> Ranks:
        """Of the captions as queries, or of the images."""
        lists, image_of = self.lists, self.plan.image_of
        if of_images:
            listed, scores, alone = lists.texts, self.of_texts, lists.text_ranks
            right = image_of[listed] == np.arange(lists.first, lists.last)[:, None]
        else:
            listed, scores, alone = lists.images, self.of_images, lists.image_ranks
            right = listed == image_of[lists.captions][:, None]
        rank, tied = _reranked(scores, right, alone)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        best, its = np.take_along_axis(listed, order, 1), np.take_along_axis(scores, order, 1)
        shorter = {
            size: _reranked(scores[:, :size], right[:, :size], alone)[0] for size in SHORTER if size <= listed.shape[1]
        }
        return Ranks(rank, tied, best, its, shorter, listed.shape[1])


def _reranked(scores: NDArray[np.float32], right: NDArray[np.bool_], alone: Ints) -> tuple[Ints, Ints]:
    """(rank, number of equal ones) of the best right candidate by its score; by the dual encoder alone where the list
    has none: the others stand behind the list in its order. scores, right: [Q, k]."""
    truth = np.where(right, scores, -np.inf).max(1, keepdims=True)
    there = right.any(1)
    rank = np.where(there, ((scores >= truth) & ~right).sum(1), np.maximum(alone, scores.shape[1]))
    return rank, np.where(there, ((scores == truth) & ~right).sum(1), 0)


class _AllPairs:
    """The ranks where every pair has a score, in two passes over the blocks: the rank of an image's best caption needs
    that caption's score first."""

    def __init__(self, plan: RetrievalPlan, blocks: Blocks) -> None:
        self.plan, self.blocks = plan, blocks
        self.by_text = np.argsort(plan.text_of, kind="stable")
        self.sorted_texts = plan.text_of[self.by_text]
        self.fold_of = np.zeros(plan.images, np.int64)
        for k, (first, last) in enumerate(plan.folds):
            self.fold_of[first:last] = k

    def both(self) -> tuple[Ranks, Ranks]:
        ours, truth = self._of_captions()
        return ours, self._of_images(truth)

    def _captions(self) -> Iterator[tuple[Ints, NDArray[np.float32]]]:
        """The captions of each block, with their scores [c, M]."""
        for first, rows in self.blocks():
            here = self.by_text[slice(*np.searchsorted(self.sorted_texts, (first, first + len(rows))))]
            yield here, rows[self.plan.text_of[here] - first]

    def _empty(self, queries: int, candidates: int) -> Ranks:
        def zeros() -> Ints:
            return np.zeros(queries, np.int64)

        best = np.zeros((queries, top := min(TOP, candidates)), np.int64), np.full((queries, top), -np.inf, np.float32)
        folds = (zeros(), zeros()) if self.plan.folds else (None, None)
        return Ranks(zeros(), zeros(), *best, {}, candidates, *folds)

    def _of_captions(self) -> tuple[Ranks, NDArray[np.float32]]:
        """The captions' ranks; the score of each image's best caption."""
        out = self._empty(len(self.plan.text_of), self.plan.images)
        truth = np.full(self.plan.images, -np.inf, np.float32)
        for here, scores in self._captions():
            own = self.plan.image_of[here]
            right = scores[np.arange(len(here)), own]
            np.maximum.at(truth, own, right)
            above, equal = scores >= right[:, None], scores == right[:, None]
            out.rank[here], out.tied[here] = above.sum(1) - 1, equal.sum(1) - 1
            if out.fold is not None and out.fold_tied is not None:
                same = self.fold_of[own][:, None] == self.fold_of
                out.fold[here], out.fold_tied[here] = (above & same).sum(1) - 1, (equal & same).sum(1) - 1
            order = np.argsort(-scores, axis=1, kind="stable")[:, : out.best.shape[1]]
            out.best[here], out.scores[here] = order, np.take_along_axis(scores, order, 1)
        return out, truth

    def _of_images(self, truth: NDArray[np.float32]) -> Ranks:
        plan = self.plan
        out = self._empty(plan.images, len(plan.text_of))
        filled = 0  # captions among the best so far
        waiting: list[tuple[Ints, NDArray[np.float32]]] = []
        for here, scores in self._captions():
            others = plan.image_of[here][:, None] != np.arange(plan.images)
            above, equal = (scores >= truth) & others, (scores == truth) & others
            out.rank += above.sum(0)
            out.tied += equal.sum(0)
            if out.fold is not None and out.fold_tied is not None:
                same = self.fold_of[plan.image_of[here]][:, None] == self.fold_of
                out.fold += (above & same).sum(0)
                out.fold_tied += (equal & same).sum(0)
            waiting.append((here, scores))
            filled += len(here)
            if sum(len(each) for each, _ in waiting) >= KEPT or filled == len(plan.text_of):
                self._merge(out, waiting)
                waiting = []
        return out

    def _merge(self, out: Ranks, waiting: Sequence[tuple[Ints, NDArray[np.float32]]]) -> None:
        """The best captions of each image, with more captions; of equal ones the first."""
        here = np.concatenate([each for each, _ in waiting])
        scores = np.concatenate([out.scores, *(each.T for _, each in waiting)], axis=1)
        captions = np.concatenate([out.best, np.broadcast_to(here, (len(out.best), len(here)))], axis=1)
        order = np.lexsort((captions, -scores))[:, : out.best.shape[1]]
        out.scores, out.best = np.take_along_axis(scores, order, 1), np.take_along_axis(captions, order, 1)


def predictions(
    plan: RetrievalPlan, blocks: Blocks, examples: Sequence[str], images: Sequence[str]
) -> list[Prediction]:
    """One a caption; the first of each image has that of the image too. examples: [C]; images: [M], their names.

    `text_to_image`: `rank` of the image, from 1, `tied` with how many others, all of which stand before it; `among` how
    many the cross-encoder ranked; `top`, the best images; `shorter`, by length of a short list the rank that it would
    give; `fold`, its number and the rank within. `image_to_text` likewise, the rank of the best of the image's captions
    among all.
    """
    ours, theirs = ranks(plan, blocks)
    found, seen = [], set()
    for c, image in enumerate(plan.image_of.tolist()):
        fold = sum(image >= first for first, _ in plan.folds) - 1
        one: Prediction = {
            "example_id": examples[c],
            "answer": images[int(ours.best[c, 0])],
            "score": round(1 / (1 + math.exp(-float(ours.scores[c, 0]))), 6),
            "text_to_image": _query(ours, c, images, fold),
        }
        if image not in seen:
            seen.add(image)
            one["image_to_text"] = _query(theirs, image, examples, fold)
        found.append(one)
    return found


def _query(of: Ranks, q: int, names: Sequence[str], fold: int) -> dict[str, Any]:
    top = of.best[q, :TOP].tolist()
    out: dict[str, Any] = {"rank": int(of.rank[q]) + 1, "tied": int(of.tied[q]), "among": of.among}
    out["top"] = [names[k] for k in top]
    if of.shorter:
        out["shorter"] = {str(size): int(each[q]) + 1 for size, each in of.shorter.items()}
    if of.fold is not None and of.fold_tied is not None:
        out["fold"] = {"number": fold, "rank": int(of.fold[q]) + 1, "tied": int(of.fold_tied[q])}
    return out
