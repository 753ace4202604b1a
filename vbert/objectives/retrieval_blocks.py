"""Scores of all pairs of texts and images, or of those on short lists, in blocks that are made and kept one by one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbert.artifacts.steps.stage import Figures
from vbert.errors import UserError
from vbert.model.retrieval import PairScorer, RetrievalModel
from vbert.objectives.retrieval_data import RetrievalDataset
from vbert.objectives.retrieval_plan import SHORT, Blocks, RetrievalPlan, fold_bounds, short_lists

log = logging.getLogger("vbert.objectives")
BLOCK = 32_768  # pairs of a block, about: a block is of whole texts
TILE = 4_096  # pairs that are scored together, of few texts and images
PLAN = "plan.safetensors"
SUFFIX = ".pairs"


class PairBlocks:
    """The pairs of examples as blocks: block k is of consecutive texts with all images, or with those worth it.

    Texts that are equal are scored once. What is made is a function of the examples, the model and the settings.
    """

    suffix, unit = SUFFIX, "pairs"

    def __init__(self, model: RetrievalModel, side: RetrievalDataset, indices: Sequence[int], settings: Any) -> None:
        """settings: a `RetrievalEvaluateSettings`. Raises UserError for short lists without a dual encoder."""
        if model.dual is None and settings.rerank != "all":
            raise UserError(f"rerank: {settings.rerank} is of a dual encoder, and the model has none; write all")
        texts: dict[str, int] = {}
        images: dict[str, int] = {}
        text_of = np.array([texts.setdefault(side.texts[i], len(texts)) for i in indices], np.int64)
        image_of = np.array([images.setdefault(side.images[i], len(images)) for i in indices], np.int64)
        self.scorer = PairScorer(model, [side.tokens(text) for text in texts], side.bare, map(side.visual, images))
        folds, lists = fold_bounds(len(images), settings.folds), []
        if model.dual is not None:
            vectors = self.scorer.text_vectors(), self.scorer.image_vectors()
            size = SHORT if settings.rerank == "all" else settings.rerank
            lists = [short_lists(text_of, image_of, *vectors, span, size) for span in [(0, len(images)), *folds]]
        self.plan = RetrievalPlan(text_of, image_of, len(texts), len(images), folds, lists, settings.rerank == "all")
        self.pairs, self.seconds = 0, 0.0  # of the blocks made here

    def __len__(self) -> int:
        return -(-self.plan.texts // block_texts(self.plan))

    @property
    def total(self) -> int:
        """Pairs of all blocks."""
        return self.plan.count

    def done(self, k: int) -> int:
        """Pairs up to the end of block k."""
        return place_of(self.plan, min(self.plan.texts, (k + 1) * block_texts(self.plan)))

    def before(self) -> dict[str, bytes]:
        """File name → content: the plan, by which the blocks are read."""
        from safetensors.numpy import save

        return {PLAN: save(self.plan.arrays())}

    def make(self, k: int) -> bytes:
        """The scores of block k, fp32, by text and then by image."""
        began = time.monotonic()
        scores = self._scored(k)
        self.pairs += len(scores)
        self.seconds += time.monotonic() - began
        if self.pairs == len(scores):  # the first one
            self._tell_cost(k, self.pairs / self.seconds)
        return scores.tobytes()

    def figures(self) -> Figures:
        """Pairs, and how many a second a process scored."""
        rate = {"pairs_per_second": round(self.pairs / self.seconds, 1)} if self.pairs else {}
        return {"pairs": self.plan.count, **rate}

    def _scored(self, k: int) -> NDArray[np.float32]:
        width = block_texts(self.plan)
        first, last = k * width, min(self.plan.texts, (k + 1) * width)
        if not self.plan.exhaustive:
            keys = self.plan.pairs[place_of(self.plan, first) : place_of(self.plan, last)]
            parts = np.split(keys, range(TILE, len(keys), TILE))
            return np.concatenate([self.scorer.scores(*np.divmod(part, self.plan.images)) for part in parts])
        out = np.empty((last - first, self.plan.images), np.float32)
        tall = min(last - first, math.isqrt(TILE))
        for top in range(first, last, tall):
            texts = np.arange(top, min(last, top + tall))
            for left in range(0, self.plan.images, TILE // tall):
                images = np.arange(left, min(self.plan.images, left + TILE // tall))
                grid = np.repeat(texts, len(images)), np.tile(images, len(texts))
                out[texts - first, left : left + len(images)] = self.scorer.scores(*grid).reshape(len(texts), -1)
        return out.reshape(-1)

    def _tell_cost(self, k: int, rate: float) -> None:
        """What there is to do at the speed of the first block, and what a short list would take."""
        plan = self.plan
        log.info(
            "%s pairs of %s texts and %s images in %d blocks; %.0f pairs/s: %.1f hours to go on one process",
            f"{plan.count:,}", f"{plan.texts:,}", f"{plan.images:,}", len(self), rate,
            (plan.count - self.done(k)) / rate / 3600,
        )  # fmt: skip
        if plan.exhaustive:
            short = len(plan.pairs) if plan.lists else SHORT * (len(plan.text_of) + plan.images)
            if short < plan.count:
                log.info(
                    "rerank: %d would score %s of these pairs, in %.1f hours", SHORT, f"{short:,}", short / rate / 3600
                )


def block_texts(plan: RetrievalPlan) -> int:
    """Texts of a block."""
    return max(1, BLOCK * plan.texts // max(1, plan.count))


def place_of(plan: RetrievalPlan, text: int) -> int:
    """Pairs before those of a text."""
    return text * plan.images if plan.exhaustive else int(np.searchsorted(plan.pairs, text * plan.images))


def block_rows(plan: RetrievalPlan, k: int, content: bytes) -> tuple[int, NDArray[np.float32]]:
    """(the first text of block k, its scores [texts, images]; NaN where a pair isn't scored)."""
    width = block_texts(plan)
    first, last = k * width, min(plan.texts, (k + 1) * width)
    scores = np.frombuffer(content, np.float32)
    if plan.exhaustive:
        return first, scores.reshape(last - first, plan.images)
    rows = np.full((last - first) * plan.images, np.nan, np.float32)
    rows[plan.pairs[place_of(plan, first) : place_of(plan, last)] - first * plan.images] = scores
    return first, rows.reshape(last - first, plan.images)


def read_blocks(files: Mapping[str, Path]) -> tuple[RetrievalPlan, Blocks]:
    """The plan and the blocks of the files that `PairBlocks` made, one block in memory at a time."""
    from safetensors.numpy import load

    plan = RetrievalPlan.from_arrays(load(files[PLAN].read_bytes()))
    made = [path for name, path in sorted(files.items()) if name.endswith(SUFFIX)]
    return plan, lambda: (block_rows(plan, k, path.read_bytes()) for k, path in enumerate(made))
