"""Image–text retrieval: a cross-encoder that scores pairs, and a dual encoder that is the same encoder.

Texts and images are embedded once each and combined by index, and the last layer is computed at [CLS] alone, the only
state that is read: the numbers are those of a `PackedBatch` of every pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbert.model.attention import LengthGroups, attend
from vbert.model.dropout import dropout
from vbert.model.heads import MATCH, MatchingHead
from vbert.model.visualbert import PackedBatch, TransformerLayer, VisualBert, VisualBertConfig, initialise

TEMPERATURE = 0.07, 0.001, 0.5  # at first, and its bounds (ALBEF, `models/model_retrieval.py`)
TOKENS = {"cpu": 8192}  # tokens of pairs that go through the layers at once, by kind of device
TOKENS_ELSEWHERE = 1 << 18
EMBEDDED = 512  # texts or images that are embedded at once, before any pair

TextTokens = tuple[Sequence[int], Sequence[int]]  # ids with special tokens, their segments


@dataclass(frozen=True)
class ItemPlaces:
    """Where the tokens of N texts, then of M images, stand one behind the other. text_lengths: int64 [N];
    image_lengths: int64 [M]. The last text is `[CLS] [SEP]`, which stands beside an image alone."""

    text_lengths: np.ndarray
    image_lengths: np.ndarray

    @property
    def bare(self) -> int:
        """The text that an image alone stands beside."""
        return len(self.text_lengths) - 1

    def lengths(self, texts: np.ndarray, images: np.ndarray) -> np.ndarray:
        """int64 [P]: tokens of the sequences text + image, a pair of indices each; image -1 is none."""
        return self.text_lengths[texts] + np.append(self.image_lengths, 0)[images]  # type: ignore[no-any-return]

    def combined(self, texts: np.ndarray, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """(places of their tokens, int64 [T]; `lengths`)."""
        text_starts, image_starts = np.split(self.starts, [len(self.text_lengths)])
        before, lengths = self.text_lengths[texts], self.lengths(texts, images)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_text = within < np.repeat(before, lengths)
        shift = np.where(
            is_text, np.repeat(text_starts[texts], lengths), np.repeat(image_starts[images] - before, lengths)
        )
        return torch.from_numpy(within + shift), torch.from_numpy(lengths)

    def of(self, texts: np.ndarray, images: np.ndarray) -> tuple[ItemPlaces, np.ndarray]:
        """Those of some texts and images alone, and where their tokens stand now, int64 [T]."""
        rows = np.concatenate([texts, len(self.text_lengths) + images])
        counts = np.concatenate([self.text_lengths, self.image_lengths])[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return ItemPlaces(self.text_lengths[texts], self.image_lengths[images]), within + np.repeat(
            self.starts[rows], counts
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [N + M + 1]; the last is the number of tokens."""
        return np.cumsum([0, *self.text_lengths, *self.image_lengths])


@dataclass
class TextsAndImages:
    """Texts and images, each once, and no pairs of them yet. tokens: the text of all texts, then the regions of all
    images, in that order (`order` is 0, 1, …)."""

    tokens: PackedBatch
    places: ItemPlaces

    @classmethod
    def of(cls, texts: Sequence[TextTokens], visuals: Sequence[np.ndarray], width: int) -> TextsAndImages:
        """texts: (ids with special tokens, their segments) each, the last one `[CLS] [SEP]`; visuals: float [n, width]
        an image."""
        none = np.zeros((0, width), np.float32)
        nothing: list[list[int]] = [[] for _ in visuals]
        ids, types = ([text[k] for text in texts] for k in (0, 1))
        packed = PackedBatch.of([*ids, *nothing], [*types, *nothing], [*(none for _ in texts), *visuals])
        lengths = (np.array([len(one) for one in part], np.int64) for part in (ids, visuals))
        return cls(replace(packed, order=torch.arange(len(packed.order))), ItemPlaces(*lengths))

    def to(self, device: torch.device | str) -> TextsAndImages:
        return replace(self, tokens=self.tokens.to(device))

    def pin_memory(self) -> TextsAndImages:
        return replace(self, tokens=self.tokens.pin_memory())


@dataclass
class RetrievalBatch:
    """A training batch of B examples, each a text and an image, and what they are compared with.

    items: texts and images; the first B of both are the examples' own.
    pairs: int64 [2, B, G], (text, image) of each group: the right pair, then wrong ones. G is 1 where these are drawn
    from the batch by the model.
    alike: bool [B, B], where text b is one of image b' or isn't to be told from one.
    """

    items: TextsAndImages
    pairs: Tensor
    alike: Tensor

    def to(self, device: torch.device | str) -> RetrievalBatch:
        """The batch on `device`; `pairs` stay on the CPU, where sequences are planned."""
        return RetrievalBatch(self.items.to(device), self.pairs, self.alike.to(device, non_blocking=True))

    def pin_memory(self) -> RetrievalBatch:
        return RetrievalBatch(self.items.pin_memory(), self.pairs, self.alike.pin_memory())


@dataclass
class RetrievalOutputs:
    """scores: [B, G], the right pair's first; valid: bool [B, G], whether a pair was found. similarities: [B, B] of the
    dual encoder, over its temperature; None without one."""

    scores: Tensor
    valid: Tensor
    similarities: Tensor | None


class DualHead(nn.Module):
    """Projections of the [CLS] states of a text alone and of an image alone into one space; a learnt temperature."""

    def __init__(self, config: VisualBertConfig, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, size)
        self.image = nn.Linear(config.hidden_size, size)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE[0])))
        initialise(self, config.initializer_range, generator)

    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(*TEMPERATURE[1:])


class RetrievalModel(nn.Module):
    """Encoder, matching head, and a dual head of vectors of `size` numbers (0: none)."""

    def __init__(
        self, config: VisualBertConfig, size: int, wrong: int = 0, generator: torch.Generator | None = None
    ) -> None:
        """wrong: images and texts each that are drawn from the batch beside a right pair."""
        super().__init__()
        self.encoder = VisualBert(config, generator)
        self.matching = MatchingHead(config, generator)
        self.dual = DualHead(config, size, generator) if size else None
        self.wrong = wrong

    def forward(self, batch: RetrievalBatch) -> RetrievalOutputs:
        """Scores of each group, and similarities of all texts and images of the examples."""
        places, tokens = batch.items.places, self.embed(batch.items)
        similarities = None
        if self.dual is not None:
            own = np.arange(len(batch.alike))
            texts, images = self.text_vectors(places, tokens, own), self.image_vectors(places, tokens, own)
            with torch.autocast(tokens.device.type, enabled=False):
                similarities = texts @ images.mT / self.dual.temperature()
        pairs, valid = batch.pairs, batch.pairs.new_ones(batch.pairs.shape[1:], dtype=torch.bool)
        if self.wrong:
            assert similarities is not None
            drawn, found = draw_negatives(similarities.detach(), batch.alike, self.wrong)
            pairs, valid = torch.cat([pairs, drawn.cpu()], 2), torch.cat([valid, found.cpu()], 1)
        scores = self.scores(places, tokens, *pairs.flatten(1).numpy())
        return RetrievalOutputs(scores.view(valid.shape), valid.to(scores.device), similarities)

    def embed(self, items: TextsAndImages) -> Tensor:
        """The tokens of all texts and regions, [T, H], before dropout."""
        return self.encoder.embeddings.tokens(items.tokens)

    def scores(
        self, places: ItemPlaces, tokens: Tensor, texts: np.ndarray, images: np.ndarray, first: Tensor | None = None
    ) -> Tensor:
        """Match minus mismatch logit of pairs (int64 [P] each), fp32 [P]: a probability saturates into ties.

        tokens: of `embed`. first: their queries, keys and values in the first layer, where these are made before (in
        evaluation), [T, 3H].
        """
        pooled = torch.tanh(self.encoder.pooler(self.first_states(places, tokens, texts, images, first)))
        logits = self.matching(pooled).float()
        return logits[:, MATCH] - logits[:, 1 - MATCH]  # type: ignore[no-any-return]

    def text_vectors(self, places: ItemPlaces, tokens: Tensor, texts: np.ndarray) -> Tensor:
        """Unit vectors of texts alone, fp32 [P, size]."""
        assert self.dual is not None
        states = self.first_states(places, tokens, texts, np.full(len(texts), -1))
        return F.normalize(self.dual.text(states).float(), dim=-1)

    def image_vectors(self, places: ItemPlaces, tokens: Tensor, images: np.ndarray) -> Tensor:
        """Unit vectors of images alone, beside the text `[CLS] [SEP]`; fp32 [P, size]."""
        assert self.dual is not None
        states = self.first_states(places, tokens, np.full(len(images), places.bare), images)
        return F.normalize(self.dual.image(states).float(), dim=-1)

    def first_states(
        self, places: ItemPlaces, tokens: Tensor, texts: np.ndarray, images: np.ndarray, first: Tensor | None = None
    ) -> Tensor:
        """The [CLS] states of the last layer, [P, H], of the sequences that `combined` makes."""
        by_length = np.argsort(places.lengths(texts, images), kind="stable")
        rows, lengths = places.combined(texts[by_length], images[by_length])
        rows = rows.to(tokens.device, non_blocking=True)
        config = self.encoder.config
        hidden = dropout(tokens.index_select(0, rows), config.hidden_dropout, self.training)
        layout = LengthGroups(lengths, config.heads, tokens.device)
        share = config.attention_dropout if self.training else 0.0
        *lower, last = self.encoder.layers
        for k, layer in enumerate(lower):
            assert isinstance(layer, TransformerLayer)
            parts = layer.qkv(hidden) if k or first is None else first.index_select(0, rows)
            hidden = layer.behind(hidden, attend(parts, layout, share))
        assert isinstance(last, TransformerLayer)
        states = _last_layer(last, hidden, layout, share)
        back = torch.from_numpy(np.argsort(by_length, kind="stable")).to(states.device, non_blocking=True)
        return states.index_select(0, back)


def _last_layer(layer: TransformerLayer, hidden: Tensor, layout: LengthGroups, share: float) -> Tensor:
    """The layer's output at the first token of each sequence, [B, H]; sequences ordered by length."""
    size = hidden.shape[1]
    starts = (layout.lengths.cumsum(0) - layout.lengths).to(hidden.device, non_blocking=True)
    first = hidden.index_select(0, starts)
    weight, bias = layer.qkv.weight, layer.qkv.bias
    query = F.linear(first, weight[:size], bias[:size])
    others = F.linear(hidden, weight[size:], bias[size:])
    return layer.behind(first, _attend_first(query, others, layout, share))


def _attend_first(query: Tensor, others: Tensor, layout: LengthGroups, share: float) -> Tensor:
    """softmax(q kᵀ / √d) v of one query a sequence. query: [B, H]; others: [T, 2H], keys and values; sequences ordered
    by length. Returns [B, H]."""
    heads = layout.heads
    if query.is_cuda:  # a kernel for each length starves the device
        place, mask, longest = layout.padding
        count = len(layout.lengths)
        rows = others.new_zeros(count * longest, others.shape[1]).index_copy(0, place, others)
        keys, values = rows.view(count, longest, 2, heads, -1).permute(2, 0, 3, 1, 4)
        asked = query.view(count, 1, heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(asked, keys, values, attn_mask=mask, dropout_p=share)
        return out.transpose(1, 2).reshape(count, -1)
    results, at, row = [], 0, 0
    for count, length in layout.groups:
        part = others[row : row + count * length].view(count, length, 2, heads, -1)
        keys, values = part.permute(2, 0, 3, 1, 4)
        asked = query[at : at + count].view(count, 1, heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(asked, keys, values, dropout_p=share)
        results.append(out.transpose(1, 2).reshape(count, -1))
        at, row = at + count, row + count * length
    return torch.cat(results)


def draw_negatives(similarities: Tensor, alike: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Wrong images of each text, then wrong texts of each image, `count` of either, drawn in proportion to the softmax
    of the similarities (ALBEF), without replacement, from torch's global generator.

    similarities: [B, B], texts by images. alike: bool [B, B], pairs that are none. Returns (pairs, int64 [2, B, 2 ·
    count]; whether there was one, bool [B, 2 · count]).
    """
    size = len(alike)
    own = torch.arange(size, device=similarities.device)[:, None].expand(-1, count)
    drawn, found = [], []
    for scores, barred in ((similarities, alike), (similarities.mT, alike.mT)):
        # The largest of log-probabilities with Gumbel noise: draws without replacement (Vieira 2014).
        noise = -torch.log(-torch.log(torch.rand_like(scores).clamp(1e-20, 1 - 1e-7)))
        keys = (scores.log_softmax(-1) + noise).masked_fill(barred, -torch.inf)
        keys = F.pad(keys, (0, max(0, count - size)), value=-torch.inf)
        best, places = keys.topk(count, dim=-1)
        there = best > -torch.inf
        drawn.append(torch.where(there, places, own))
        found.append(there)
    wrong_images, wrong_texts = drawn
    pairs = torch.stack([torch.cat([own, wrong_texts], 1), torch.cat([wrong_images, own], 1)])
    return pairs, torch.cat(found, 1)


class PairScorer:
    """Scores and vectors of texts and images that are embedded once, in evaluation.

    texts: (ids with special tokens, segments) each; bare: the ids of `[CLS] [SEP]`; visuals: float [n, visual_input] an
    image, read once, a part of them in memory.
    """

    @torch.no_grad()
    def __init__(
        self, model: RetrievalModel, texts: Sequence[TextTokens], bare: Sequence[int], visuals: Iterable[np.ndarray]
    ) -> None:
        self.model = model
        device = next(model.parameters()).device
        self.budget = TOKENS.get(device.type, TOKENS_ELSEWHERE)
        every, width = [*texts, (bare, [0] * len(bare))], model.encoder.config.visual_input
        parts = [TextsAndImages.of(every[k : k + EMBEDDED], [], width) for k in range(0, len(every), EMBEDDED)]
        tokens = [model.embed(part.to(device)) for part in parts]
        lengths = [part.places.image_lengths for part in parts]
        waiting = iter(visuals)
        while some := list(islice(waiting, EMBEDDED)):
            images = TextsAndImages.of([], some, width)
            lengths.append(images.places.image_lengths)
            tokens.append(model.embed(images.to(device)))
        self.places = ItemPlaces(np.array([len(ids) for ids, _ in every], np.int64), np.concatenate(lengths))
        self.tokens = torch.cat(tokens)

    @torch.no_grad()
    def scores(self, texts: np.ndarray, images: np.ndarray) -> np.ndarray:
        """fp32 [P], match minus mismatch of pairs, int64 [P] each. The first layer's products of a token are made once
        a call: best is one for some thousand pairs of few texts and images."""
        (ours, text_at), (theirs, image_at) = (np.unique(part, return_inverse=True) for part in (texts, images))
        places, rows = self.places.of(ours, theirs)
        tokens = self.tokens.index_select(0, torch.from_numpy(rows).to(self.tokens.device))
        first = self.model.encoder.layers[0].qkv(tokens)  # type: ignore[operator]
        return self._in_parts(
            places.lengths(text_at, image_at),
            lambda part: self.model.scores(places, tokens, text_at[part], image_at[part], first),
        )

    @torch.no_grad()
    def text_vectors(self) -> np.ndarray:
        """Unit vectors of all texts, fp32 [N, size]."""
        return self._in_parts(
            self.places.text_lengths[:-1], lambda part: self.model.text_vectors(self.places, self.tokens, part)
        )

    @torch.no_grad()
    def image_vectors(self) -> np.ndarray:
        """Unit vectors of all images, fp32 [M, size]."""
        return self._in_parts(
            self.places.image_lengths + 2, lambda part: self.model.image_vectors(self.places, self.tokens, part)
        )

    def _in_parts(self, lengths: np.ndarray, compute: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """What `compute` gives of all places, called with those of about equal length, as many as the budget holds."""
        order = np.argsort(lengths, kind="stable")
        part_of = np.cumsum(lengths[order]) // self.budget
        parts = np.split(order, np.flatnonzero(np.diff(part_of)) + 1)
        made = np.concatenate([compute(part).float().cpu().numpy() for part in parts if len(part)])
        out = np.empty_like(made)
        out[order] = made
        return out
