"""VisualBERT (Li et al. 2019, arXiv:1908.03557), computed without padding.

Same parameters and numbers as `transformers.VisualBertModel`; `vbert.model.convert` maps one onto the other.
It computes differently: the tokens of a batch are concatenated, so linear layers and norms see real tokens
only; query, key and value are one product; see `vbert.model.attention` for the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbert.model.attention import LengthGroups, attend, attention_maps
from vbert.model.config import VisualBertConfig
from vbert.model.decoding import Cache, ContextGroup, context_groups
from vbert.model.dropout import dropout

__all__ = ["PackedBatch", "VisualBert", "VisualBertConfig", "append6"]


def append6(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """The six numbers that stand beside each feature: x1/W, y1/H, x2/W, y2/H, w/W, h/H.

    boxes: float [n, 4], xyxy in pixels of an image of `width` × `height` pixels. Returns float32 [n, 6].
    Source: VisualBERT's Flickr30k reader (features of 2054 dimensions).
    """
    xyxy = np.asarray(boxes, np.float32).reshape(-1, 4) / np.array([width, height, width, height], np.float32)
    return np.concatenate([xyxy, xyxy[:, 2:] - xyxy[:, :2]], axis=1)


@dataclass
class PackedBatch:
    """A batch without padding: B sequences, each its text tokens followed by its visual tokens.

    text_ids, text_types, text_positions: int64 [T_text], all sequences' text one after the other.
    visual: float32 [T_vis, visual_input]; visual_types: int64 [T_vis].
    order: int64 [T], the index of each packed token in cat(text, visual).
    lengths: int64 [B], tokens of each sequence; stays on the CPU, where attention is planned.
    at: int64 [A], the packed rows that a head reads, sequence after sequence; empty where it reads the pooled vector.
    causal: int64 [B] or None, on the CPU too: how many of each sequence's first tokens are causal, see `LengthGroups`.
    aligned: int64 [2, P], pairs of a row of `visual` and a row of `text_ids`: the pieces that name a region.
    """

    text_ids: Tensor
    text_types: Tensor
    text_positions: Tensor
    visual: Tensor
    visual_types: Tensor
    order: Tensor
    lengths: Tensor
    at: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    aligned: Tensor = field(default_factory=lambda: torch.zeros(2, 0, dtype=torch.int64))
    causal: Tensor | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]],
        visuals: Sequence[np.ndarray],
        visual_types: Sequence[Sequence[int] | np.ndarray] | None = None,
        at: Sequence[Sequence[int]] = (),
        aligned: Sequence[Sequence[tuple[int, int]]] = (),
        causal: Sequence[int] = (),
        positions: Sequence[Sequence[int] | None] = (),
    ) -> PackedBatch:
        """Packs B texts (ids with special tokens, segment types) and B visual inputs (float [n, visual_input]).

        Visual types are 0 unless given, as the original's. at: of each text, the places that are read. aligned: of
        each, (region, place of the text). causal: of each, how many tokens. positions: of each text its tokens'; they
        count from 0 otherwise. Row starts: `starts()`.
        """
        text_lengths = np.array([len(t) for t in texts], np.int64)
        visual_lengths = np.array([len(v) for v in visuals], np.int64)
        lengths = text_lengths + visual_lengths
        text_starts = np.cumsum(text_lengths) - text_lengths
        visual_starts = np.cumsum(visual_lengths) - visual_lengths + text_lengths.sum()
        starts = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        is_text = within < np.repeat(text_lengths, lengths)
        shift = np.where(is_text, np.repeat(text_starts, lengths), np.repeat(visual_starts - text_lengths, lengths))
        if visual_types is None:
            visual_types = [np.zeros(n, np.int64) for n in visual_lengths]
        read = [start + place for start, places in zip(starts.tolist(), at, strict=False) for place in places]
        first_region = visual_starts - text_lengths.sum()
        pairs = [
            (first_region[b] + region, text_starts[b] + place)
            for b, each in enumerate(aligned)
            for region, place in each
        ]
        place = np.arange(text_lengths.sum()) - np.repeat(text_starts, text_lengths)
        for start, length, given in zip(text_starts, text_lengths, positions, strict=False):
            if given is not None:
                place[start : start + length] = given
        return cls(
            text_ids=torch.from_numpy(np.concatenate([np.asarray(t, np.int64) for t in texts])),
            text_types=torch.from_numpy(np.concatenate([np.asarray(t, np.int64) for t in types])),
            text_positions=torch.from_numpy(place),
            visual=torch.from_numpy(np.concatenate([np.asarray(v) for v in visuals])),
            visual_types=torch.from_numpy(np.concatenate([np.asarray(t, np.int64) for t in visual_types])),
            order=torch.from_numpy(within + shift),
            lengths=torch.from_numpy(lengths),
            at=torch.tensor(read, dtype=torch.int64),
            aligned=torch.from_numpy(np.array(pairs, np.int64).reshape(-1, 2).T.copy()),
            causal=torch.tensor(causal, dtype=torch.int64) if any(causal) else None,
        )

    def starts(self) -> Tensor:
        """int64 [B], on the device of the tokens: the packed row of each sequence's first token ([CLS])."""
        return (self.lengths.cumsum(0) - self.lengths).to(self.order.device, non_blocking=True)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on `device`; `lengths` and `causal` stay on the CPU."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()}
        return replace(replace(self, **moved), lengths=self.lengths, causal=self.causal)

    def pin_memory(self) -> PackedBatch:
        """Called by a `DataLoader(pin_memory=True)`."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def layout(self, heads: int) -> LengthGroups:
        """Where attention of `heads` heads finds the tokens."""
        return LengthGroups(self.lengths, heads, self.order.device, self.causal)


class Embeddings(nn.Module):
    """Text: word + position + segment. Visual: projected feature + visual segment + visual position 0. LayerNorm.

    To a region that words of the text name (VCR), the mean of the text position embeddings of their pieces is added
    (`image_text_alignment` of the original and of transformers).
    """

    feature_mean: Tensor | None
    feature_std: Tensor | None

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, size)
        self.position = nn.Embedding(config.max_positions, size)
        self.token_type = nn.Embedding(config.type_vocab, size)
        # The original gives every region visual position 0; the whole table is kept for its checkpoints.
        self.visual_position = nn.Embedding(config.max_positions, size)
        self.visual_token_type = nn.Embedding(config.type_vocab, size)
        self.visual_projection = nn.Linear(config.visual_input, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout
        self.register_buffer("feature_mean", torch.zeros(config.visual_input) if config.standardise else None)
        self.register_buffer("feature_std", torch.ones(config.visual_input) if config.standardise else None)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embedded tokens [T, H] in packed order."""
        return dropout(self.tokens(batch), self.dropout, self.training)

    def tokens(self, batch: PackedBatch) -> Tensor:
        """Those before dropout: a token's depends on its own input alone, whatever it is combined with."""
        text = self.word(batch.text_ids) + self.position(batch.text_positions) + self.token_type(batch.text_types)
        visual = batch.visual
        if self.feature_mean is not None and self.feature_std is not None:
            visual = (visual - self.feature_mean) / self.feature_std
        regions = self.visual_projection(visual) + (
            self.visual_token_type(batch.visual_types) + self.visual_position.weight[0]
        )
        if batch.aligned.shape[1]:
            regions = regions + self._named_at(batch)
        return self.norm(torch.cat([text, regions.to(text.dtype)]).index_select(0, batch.order))  # type: ignore[no-any-return]

    def _named_at(self, batch: PackedBatch) -> Tensor:
        """For each region the mean of the position embeddings of the pieces that name it, [T_vis, H]; 0 for none."""
        region, place = batch.aligned
        positions = self.position(batch.text_positions.index_select(0, place))
        size = (len(batch.visual), positions.shape[1])
        sums = positions.new_zeros(size).index_add(0, region, positions)
        count = positions.new_zeros(size[0]).index_add(0, region, torch.ones_like(positions[:, 0]))
        return sums / count.clamp(min=1)[:, None]  # type: ignore[no-any-return]


class FusedLinear(nn.Linear):
    """Several linear layers of one input, computed as one: the original's weights and biases, one after the other."""

    def __init__(self, inputs: int, outputs: int, parts: int) -> None:
        super().__init__(inputs, outputs * parts)
        self.parts = parts


class TransformerLayer(nn.Module):
    """One post-norm transformer layer (Devlin et al. 2019)."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.qkv = FusedLinear(size, size, 3)
        self.out = nn.Linear(size, size)
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.activation = config.activation
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

    def forward(self, hidden: Tensor, layout: LengthGroups) -> Tensor:
        """hidden: [T, H]. Returns the same shape."""
        return self.behind(hidden, attend(self.qkv(hidden), layout, self.attention_dropout if self.training else 0.0))

    def behind(self, hidden: Tensor, context: Tensor) -> Tensor:
        """The layer's output, of its input and what attention gives for it; of any leading shape."""
        hidden = self.norm1(hidden + dropout(self.out(context), self.hidden_dropout, self.training))
        inner = activate(self.up(hidden), self.activation)
        return self.norm2(hidden + dropout(self.down(inner), self.hidden_dropout, self.training))  # type: ignore[no-any-return]


class VisualBert(nn.Module):
    """The encoder: `PackedBatch` -> hidden states [T, H] in packed order, and the pooled [CLS] vectors."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        """Weights are drawn from N(0, initializer_range²) with `generator`; visual tables copy the text ones."""
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        initialise(self, config.initializer_range, generator)
        self.copy_text_tables()

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states of the last layer [T, H], tokens in the order of `batch`."""
        layout = batch.layout(self.config.heads)
        hidden = self.embeddings(batch)
        for layer in self.layers:
            hidden = layer(hidden, layout)
        return hidden  # type: ignore[no-any-return]

    def first(self, batch: PackedBatch) -> Tensor:
        """int64 [B]: the row of each sequence's [CLS]."""
        return batch.starts()

    def pool(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """tanh(dense([CLS])) of each sequence, [B, H], as BERT's pooler."""
        return torch.tanh(self.pooler(hidden.index_select(0, self.first(batch))))

    @torch.no_grad()
    def begin(self, batch: PackedBatch, padded: bool | None = None) -> Cache:
        """The cache of the images of `batch` for causal texts: its sequences are what stands behind those, a second
        text (or none, of no tokens) and the regions. padded: keys of all images in one tensor, by default on CUDA,
        where a product for each length starves the device."""
        layout, config = batch.layout(self.config.heads), self.config
        padded = batch.visual.is_cuda if padded is None else padded
        order = np.arange(len(batch.lengths)) if padded else layout.order
        hidden = self.embeddings(batch)
        nothing = hidden.new_zeros(len(order), config.heads, 0, config.hidden_size // config.heads)
        cache = Cache(order, [], [(nothing, nothing)] * config.layers)
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            if not len(hidden):  # no image has regions or a second text
                cache.context.append([ContextGroup(nothing, nothing, None)])
                continue
            qkv = layer.qkv(hidden)
            cache.context.append(context_groups(qkv, layout, padded))
            hidden = layer.behind(hidden, attend(qkv, layout, 0.0))
        return cache

    @torch.no_grad()
    def step(self, cache: Cache, tokens: Tensor, rows: Tensor | None = None, kept: int | None = None) -> Tensor:
        """Hidden states of the next pieces of every text, [beams, n, H], as a causal text of segment 0 has them.

        tokens: int64 [beams, n]. rows: int64 [beams], the text of the cache that each continues; several may continue
        one, of its image alone; None: each its own. kept: how many of the n pieces join the texts, all by default (the
        [MASK] that the next word is read from does not).
        """
        if rows is not None:
            cache.reorder(rows)
        table, more = self.embeddings, tokens.shape[1]
        places = torch.arange(cache.length, cache.length + more, device=tokens.device)
        hidden = table.norm(table.word(tokens) + table.position(places) + table.token_type.weight[0])
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)
            hidden = layer.behind(hidden, cache.attend(index, layer.qkv(hidden), more if kept is None else kept))
        return hidden  # type: ignore[no-any-return]

    @torch.no_grad()
    def trace(self, batch: PackedBatch) -> tuple[list[Tensor], list[Tensor]]:
        """For inspection: (hidden states after the embeddings and each layer, each [T, H] in packed order;
        attention probabilities of each sequence, each [layers, heads, L, L]). Use in eval mode.
        """
        layout = batch.layout(self.config.heads)
        hidden = self.embeddings(batch)
        states, maps = [hidden], []
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            maps.append(attention_maps(layer.qkv(hidden), layout))
            hidden = layer(hidden, layout)
            states.append(hidden)
        return states, [torch.stack(layers) for layers in zip(*maps, strict=True)]

    @torch.no_grad()
    def copy_text_tables(self) -> None:
        """Visual position and segment tables start as copies of the text ones (the original's initialisation)."""
        table = self.embeddings
        table.visual_position.weight.copy_(table.position.weight)
        table.visual_token_type.weight.copy_(table.token_type.weight)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets the standardisation of the visual input, the box numbers' gain included; both [visual_input], a std of 0
        counts as 1."""
        table = self.embeddings
        if table.feature_mean is None or table.feature_std is None:
            raise ValueError("this model does not standardise its visual input: set `standardise: true`")
        table.feature_mean.copy_(mean)
        table.feature_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))
        table.feature_std[self.config.visual_dim :] /= self.config.box_gain


def activate(hidden: Tensor, name: str) -> Tensor:
    """BERT's `hidden_act` by name: gelu is the exact (erf) one, gelu_new its tanh approximation."""
    if name == "relu":
        return F.relu(hidden)
    return F.gelu(hidden, approximate="none" if name == "gelu" else "tanh")


@torch.no_grad()
def initialise(module: nn.Module, std: float, generator: torch.Generator | None) -> None:
    """BERT's initialisation: weights of linear layers and tables N(0, std²), biases 0, norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std, generator=generator)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
