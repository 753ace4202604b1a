"""The methods: of each input the relevance of its tokens, words before regions. A function a method, of its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbert.explain.passes import Score, Watched, attention_of, embedded, repeated, watch
from vbert.explain.removal import Gone, every_other, without, words_of
from vbert.model.independent import IndependentRows
from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import WordPieceEncoder
from vbert.objectives.batches import Input
from vbert.objectives.examined import Examined
from vbert.training.sampler import generator

VARIANTS = 128  # of an input in a pass
STEPS = 32  # points of the path of integrated gradients (Gauss–Legendre)

Relevance = NDArray[np.float64]  # [L], of the tokens of a sequence
Method = Callable[["Asked"], list[Relevance]]


@dataclass
class Asked:
    """Inputs whose scores are explained, as one batch; pack: makes batches of others like them.

    score: of the model, see `Score`. names: of each input, what its random numbers are drawn by. boxes: of each, float
    [n, 4] of its regions, xyxy in pixels, or None; scores: of each, the detector's, none where they aren't known.
    layer, head: of `attention`, from 0; None: the last layer, the mean of its heads.
    """

    encoder: Any
    score: Score
    pieces: WordPieceEncoder
    pack: Callable[[Sequence[Input]], PackedBatch]
    examined: Sequence[Examined]
    names: Sequence[str]
    boxes: Sequence[NDArray[np.float32] | None]
    scores: Sequence[Sequence[float]]
    layer: int | None = None
    head: int | None = None

    @cached_property
    def batch(self) -> PackedBatch:
        return self.pack([one.input for one in self.examined])

    @property
    def targets(self) -> Tensor:
        return torch.tensor([one.target for one in self.examined], device=self.batch.order.device)

    def scored(self, one: Examined, words: list[list[int]], variants: Sequence[Gone], count: int) -> list[float]:
        """The scores of an input of which something is gone; count: its regions."""
        mask = self.pieces.mask
        # A score that is read from a region needs it there: it has no feature of its own then.
        kept = [gone._replace(regions=frozenset()) if one.also else gone for gone in variants]
        inputs = [without([one.input], one.input, words, gone, count, mask)[0] for gone in kept]
        batch = self.pack(inputs)
        if one.also:
            rows = [k * count + region for k, gone in enumerate(variants) for region in gone.regions]
            visual = batch.visual.clone()
            visual[rows] = mean_visual(self.encoder, batch)
            batch = replace(batch, visual=visual)
        targets = torch.full((len(inputs),), one.target, device=batch.order.device)
        with torch.no_grad(), IndependentRows():
            return [float(score) for score in self.score(batch, targets).tolist()]

    @cached_property
    def maps(self) -> list[Tensor]:
        """The attention of each sequence, [layers, heads, L, L]."""
        return attention_of(self.encoder, self.batch, lambda: self.score(self.batch, self.targets))

    @cached_property
    def watched(self) -> Watched:
        return watch(self.encoder, self.batch, lambda: self.score(self.batch, self.targets))

    @cached_property
    def lengths(self) -> list[int]:
        return [int(length) for length in self.batch.lengths.tolist()]


def removal(asked: Asked) -> list[Relevance]:
    """What the score loses when the word or region alone is gone, and half of what it gains when that alone is there.

    A word that is gone is [MASK], a region is left out (where the score is read from a region, as in grounding: it has
    the mean feature and box): what the perturbation curves do too. The first term alone misses what stands in the text
    twice, the second alone what matters beside something else. The half was chosen on validation examples of both sets
    that it is measured on.

    The default, as it measures best: the area under the accuracy while words and regions go, least relevant first less
    most relevant first, is 0.564 (95 % interval 0.532 to 0.596) on 300 test questions of easy-VQA and 0.624 (0.600 to
    0.647) on those of `shapes`; of raw attention 0.345 (0.305 to 0.386) and 0.425 (0.393 to 0.456), of random order
    −0.016 and 0.009.
    """
    return [_removed(asked, k) for k in range(len(asked.examined))]


def _removed(asked: Asked, k: int) -> Relevance:
    one, length = asked.examined[k], asked.lengths[k]
    words, text = words_of(one), len(one.input.text.ids)
    count, regions = len(words), length - text
    variants = [Gone.of(units, count) for units in every_other(count + regions)]
    scores: list[float] = []
    for start in range(0, len(variants), VARIANTS):
        scores += asked.scored(one, words, variants[start : start + VARIANTS], regions)
    whole, nothing, each = scores[0], scores[1], np.array(scores[2:], float).reshape(2, -1)
    units = (whole - each[0]) + (each[1] - nothing) / 2
    return _by_token(one, units[:count], units[count:])


def mean_visual(encoder: Any, batch: PackedBatch) -> Tensor:
    """The mean feature and box of the regions that the model was trained on, [1, d]; zeros where it has none."""
    mean = encoder.embeddings.feature_mean
    return torch.zeros_like(batch.visual[:1]) if mean is None else mean[None]


def attention(asked: Asked) -> list[Relevance]:
    """How much the tokens that the score is read from attend to each: of one layer, its mean over heads or one head."""
    found = []
    for maps, one in zip(asked.maps, asked.examined, strict=True):
        its = maps[-1 if asked.layer is None else asked.layer]
        its = its.mean(0) if asked.head is None else its[asked.head]
        found.append(its[list(one.read)].double().mean(0).numpy())
    return found


def rollout(asked: Asked) -> list[Relevance]:
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, section 3): the product over layers of (A + I) / 2,
    A the mean over heads."""
    found = []
    for maps, one in zip(asked.maps, asked.examined, strict=True):
        rows = torch.eye(maps.shape[-1], dtype=torch.float64)
        for layer in maps.double().mean(1):
            rows = (layer @ rows + rows) / 2
        found.append(rows[list(one.read)].mean(0).numpy())
    return found


def gradient_attention(asked: Asked) -> list[Relevance]:
    """Chefer, Gur and Wolf (2021, arXiv:2103.15679), their rule for self-attention: R ← R + Ā R, layer by layer from
    R = I, Ā the mean over heads of the positive part of ∇A ⊙ A (their equations 5 and 6); of the rows of R those of the
    tokens that the score is read from."""
    found = []
    for maps, slopes, one in zip(asked.watched.maps, asked.watched.slopes, asked.examined, strict=True):
        rows = torch.eye(maps.shape[-1], dtype=torch.float64)
        for layer in (maps.double() * slopes.double()).clamp(min=0).mean(1):
            rows = rows + layer @ rows
        read = rows[list(one.read)]
        found.append((read - torch.eye(maps.shape[-1], dtype=torch.float64)[list(one.read)]).mean(0).numpy())
    return found


def integrated_gradients(asked: Asked) -> list[Relevance]:
    """Integrated gradients (Sundararajan, Taly and Yan 2017) by captum, over the embeddings that the first layer reads.

    The path begins where every word is [MASK] and every region has the mean feature and box of the training images (of
    a model without that, zeros); special tokens stay as they are. The relevances of a sequence sum to its score less
    that of the beginning.
    """
    from captum.attr import IntegratedGradients

    batch, table = asked.batch, asked.encoder.embeddings
    hidden = torch.cat([torch.tensor([word >= 0 for word in one.input.text.words]) for one in asked.examined])
    ids = batch.text_ids.masked_fill(hidden.to(batch.text_ids.device), asked.pieces.mask)
    mean = mean_visual(asked.encoder, batch)
    with torch.no_grad():
        tokens = table.tokens(batch)
        begin = table.tokens(replace(batch, text_ids=ids, visual=mean.expand_as(batch.visual)))

    def scores(given: Tensor) -> Tensor:
        times = len(given) // len(tokens)
        with embedded(asked.encoder, given):
            return asked.score(repeated(batch, times), asked.targets.repeat(times))

    with torch.inference_mode(False), torch.enable_grad():
        found = IntegratedGradients(scores).attribute(tokens, begin, n_steps=STEPS)
    by_token = found.detach().double().sum(-1).cpu().numpy()
    return np.split(by_token, np.cumsum(asked.lengths)[:-1])


def random(asked: Asked) -> list[Relevance]:
    """A control: drawn at random."""
    found = []
    for one, name, length in zip(asked.examined, asked.names, asked.lengths, strict=True):
        drawn, words = generator("relevance", name), words_of(one)
        regions = length - len(one.input.text.ids)
        found.append(_by_token(one, drawn.random(len(words)), drawn.random(regions)))
    return found


def size(asked: Asked) -> list[Relevance]:
    """A control: regions by the area of their boxes, words by their letters; words before regions."""
    found = []
    for one, boxes, length in zip(asked.examined, asked.boxes, asked.lengths, strict=True):
        tokens = [asked.pieces.tokens[piece].removeprefix("##") for piece in one.input.text.ids]
        letters = np.array([sum(len(tokens[place]) for place in places) for places in words_of(one)], float)
        areas = np.zeros(length - len(tokens)) if boxes is None else np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        found.append(_by_token(one, letters, areas / (1 + areas.max(initial=0))))
    return found


def detector(asked: Asked) -> list[Relevance]:
    """A control: regions by the detector's scores, words by their order, the first first; regions before words."""
    found = []
    for one, scores, length in zip(asked.examined, asked.scores, asked.lengths, strict=True):
        regions = length - len(one.input.text.ids)
        known = np.array(scores if len(scores) == regions else [0.0] * regions, float)
        found.append(_by_token(one, -np.arange(1.0, len(words_of(one)) + 1), known))
    return found


def _by_token(one: Examined, words: NDArray[np.float64], regions: NDArray[np.float64]) -> Relevance:
    """By token: a word's at its first piece."""
    tokens = np.zeros(len(one.input.text.ids))
    tokens[[places[0] for places in words_of(one)]] = words
    return np.concatenate([tokens, regions])
