"""Mined negatives: of random wrong pairs those that the current weights score highest (UNITER's hard negatives)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from vbert.model.retrieval import PairScorer, RetrievalModel
from vbert.objectives.retrieval_data import RetrievalDataset
from vbert.training.ranks import Ranks
from vbert.training.sampler import generator

AT_ONCE = 16  # samples a process mines between two looks at whether to stop


def mined(model: RetrievalModel, side: RetrievalDataset, samples: Sequence[tuple[int, int]], ranks: Ranks) -> Tensor:
    """For each sample (index, epoch) the examples of its wrong pairs, int64 [samples, hard], the highest score first:
    of samples 0, 2, … their images, of the others their texts. Every process makes a share and returns all of it, the
    same whatever their number. model: in eval mode. Raises Stopped.
    """
    out = np.zeros((len(samples), side.head["hard"]), np.int64)
    for start in range(0, len(samples), AT_ONCE * ranks.world):
        part = range(start, min(len(samples), start + AT_ONCE * ranks.world))
        mine = part[ranks.rank * AT_ONCE : (ranks.rank + 1) * AT_ONCE]
        found = dict(zip(mine, _hardest(model, side, samples, mine), strict=True))
        for its in ranks.gather(found):
            for k, rows in its.items():
                out[k] = rows
    return torch.from_numpy(out)


def _hardest(
    model: RetrievalModel, side: RetrievalDataset, samples: Sequence[tuple[int, int]], chosen: Sequence[int]
) -> list[list[int]]:
    """Of the samples `chosen`."""
    if not chosen:
        return []
    count, hard = side.head["candidates"], side.head["hard"]
    candidates = []
    for k in chosen:
        i, epoch = samples[k]
        draw = generator(side.seed, "candidates", epoch, side.ids[i])
        drawn = (side.wrong_texts if k % 2 else side.wrong_images)(i, count, draw)
        candidates.append(list(dict.fromkeys(drawn)))  # where there are fewer, they are drawn again
    texts: dict[str, int] = {}
    images: dict[str, int] = {}
    pairs = []
    for k, others in zip(chosen, candidates, strict=True):
        i = samples[k][0]
        for j in others:
            text, image = (side.texts[j], side.images[i]) if k % 2 else (side.texts[i], side.images[j])
            pairs.append((texts.setdefault(text, len(texts)), images.setdefault(image, len(images))))
    scorer = PairScorer(model, [side.tokens(text) for text in texts], side.bare, map(side.visual, images))
    scores = np.split(scorer.scores(*np.array(pairs).T), np.cumsum([len(others) for others in candidates])[:-1])
    best = [np.argsort(-part, kind="stable").tolist() for part in scores]
    return [
        list(islice(cycle([others[place] for place in places]), hard))
        for others, places in zip(candidates, best, strict=True)
    ]
