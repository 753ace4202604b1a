"""Attention over concatenated sequences of different lengths, with no work on padding.

Sequences of equal length form a group: one batch of products without a mask. One gather collects the rows of all
groups, and another returns their results. Causal sequences, whose first tokens see no later one of them, form groups of
equal length and equal number of these tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from vbert.model.dropout import drop_mask


class Block(NamedTuple):
    """Queries `rows` of a group that see the keys `columns`, but for those where `mask` (float, added) is −∞."""

    rows: slice
    columns: slice
    mask: Tensor | None


@dataclass(frozen=True)
class LengthGroups:
    """The positions of the tokens of B sequences (lengths: int64 [B], on the CPU), grouped by equal length.

    causal: int64 [B], on the CPU: the number of first tokens of a sequence that are causal. These see themselves, those
    before them and all tokens behind the last of them; the others see the others alone. None: no sequence has any.

    Groups follow each other by length. A group of n sequences of length L holds its queries as [n · heads, L, d], its
    keys and its values likewise: 3 · n · heads · L rows of d numbers; its results are n · heads · L rows.
    """

    lengths: Tensor
    heads: int
    device: torch.device
    causal: Tensor | None = None

    @cached_property
    def _grouped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(length and causal tokens of each group, [G, 2]; the group of each sequence; the sequences of each group)."""
        lengths = self.lengths.numpy()
        causal = np.zeros_like(lengths) if self.causal is None else self.causal.numpy()
        # As one number: sorting rows takes several times as long.
        width = int(causal.max(initial=0)) + 1
        values, group, counts = np.unique(lengths * width + causal, return_inverse=True, return_counts=True)
        return np.stack(np.divmod(values, width), 1), group, counts

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(number of sequences, their length), by length."""
        values, _, counts = self._grouped
        return tuple(zip(counts.tolist(), values[:, 0].tolist(), strict=True))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The sequences in the order of their groups, int64 [B]."""
        return np.argsort(self._grouped[1], kind="stable")

    @cached_property
    def blocks(self) -> tuple[tuple[Block, ...], ...]:
        """Of each group, which queries see which keys; a first block has all keys."""
        return tuple(self._blocks(length, causal) for length, causal in self._grouped[0].tolist())

    def _blocks(self, length: int, causal: int) -> tuple[Block, ...]:
        if not causal:
            return (Block(slice(0, length), slice(0, length), None),)
        later = torch.full((causal, causal), float("-inf"), device=self.device).triu(1)
        blocks = (
            Block(slice(0, causal), slice(0, length), F.pad(later, (0, length - causal))),
            Block(slice(causal, length), slice(causal, length), None),
        )
        return blocks[: 1 + (causal < length)]

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Queries, keys and values, int64 [T · 3 · heads]: (row of qkv of each grouped row, the inverse)."""
        (start, count, length, within), step = self._places, np.arange(3)[:, None]
        place = 3 * start[:, None] + step * (count * self.heads * length)[:, None] + within[:, None]
        return self._both_ways(place)

    @cached_property
    def results(self) -> tuple[Tensor, Tensor]:
        """Results, int64 [T · heads]: (row of the output of each grouped row, the inverse)."""
        start, _, _, within = self._places
        return self._both_ways(start + within)

    @cached_property
    def _places(self) -> tuple[np.ndarray, ...]:
        """Of each token, [T, 1]: rows before its group, sequences in the group, their length; [T, heads]: the row
        within the group for each head."""
        lengths = self.lengths.numpy()
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(lengths))
        both, group, counts = self._grouped
        values = both[:, 0]
        first = (np.cumsum(counts) - counts)[group]  # place of the first sequence of each sequence's group
        area = counts * values * self.heads
        sequences = ((np.cumsum(area) - area)[group], counts[group], lengths, place - first)
        start, count, length, index = (np.repeat(part, lengths)[:, None] for part in sequences)
        token = np.arange(len(start))[:, None] - np.repeat(np.cumsum(lengths) - lengths, lengths)[:, None]
        return start, count, length, (index * self.heads + np.arange(self.heads)) * length + token

    def _both_ways(self, place: np.ndarray) -> tuple[Tensor, Tensor]:
        there = torch.from_numpy(place.reshape(-1))
        back = torch.empty_like(there)
        back[there] = torch.arange(len(there))
        return back.to(self.device, non_blocking=True), there.to(self.device, non_blocking=True)

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor, int]:
        """Over [B · L, …]: (int64 [T], each token's row; bool [B, 1, 1 or L, L], true at keys that are seen; L, a
        multiple of 8)."""
        longest = -(-self.groups[-1][1] // 8) * 8  # the fused kernels want aligned masks
        lengths = self.lengths.numpy()
        first = np.repeat(np.cumsum(lengths) - lengths - np.arange(len(lengths)) * longest, lengths)
        place = torch.from_numpy(np.arange(len(first)) - first).to(self.device, non_blocking=True)
        seen = (np.arange(longest) < lengths[:, None])[:, None]
        if self.causal is not None:
            key = np.arange(longest)
            query, causal = key[:, None], self.causal.numpy()[:, None, None]
            padding = query >= lengths[:, None, None]  # sees something, or its softmax would be NaN
            seen = seen & ((key >= causal) | (query < causal) & (key <= query) | padding)
        return place, torch.from_numpy(seen[:, None]).to(self.device, non_blocking=True), longest

    def batches(self, rows: Tensor, parts: int = 1) -> list[Tensor]:
        """Grouped rows, `parts` · T · heads of them, as views [parts, n · heads, L, d], one a group."""
        sizes = [parts * count * self.heads * length for count, length in self.groups]
        split = torch.split_with_sizes(rows, sizes)
        return [
            part.view(parts, count * self.heads, length, rows.shape[1])
            for part, (count, length) in zip(split, self.groups, strict=True)
        ]


def attend(qkv: Tensor, layout: LengthGroups, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence. qkv: [T, 3H], queries, keys, values. Returns [T, H].

    On CUDA the variable-length kernel, which knows neither fp32 nor dropout; for those one padded SDPA, as a kernel for
    each length starves the device (measured on an H200, BERT base in bf16: 0.65 of transformers' speed).
    """
    if not qkv.is_cuda:
        return _GroupedAttention.apply(qkv, layout, dropout)  # type: ignore[no-any-return]
    if dropout or layout.causal is not None or qkv.dtype not in (torch.float16, torch.bfloat16):
        return attend_padded(qkv, layout, dropout)
    from torch.nn.attention.varlen import varlen_attn

    bounds = F.pad(layout.lengths.cumsum(0), (1, 0)).to(qkv.device, torch.int32, non_blocking=True)
    longest = layout.groups[-1][1]
    q, k, v = qkv.view(len(qkv), 3, layout.heads, -1).unbind(1)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest).flatten(1)  # type: ignore[union-attr]


def attend_padded(qkv: Tensor, layout: LengthGroups, dropout: float) -> Tensor:
    """`attend` by one SDPA over all sequences, padded to the longest."""
    place, mask, longest = layout.padding
    count = len(layout.lengths)
    rows = qkv.new_zeros(count * longest, qkv.shape[1]).index_copy(0, place, qkv)
    q, k, v = rows.view(count, longest, 3, layout.heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).reshape(count * longest, -1).index_select(0, place)


class _GroupedAttention(torch.autograd.Function):
    """Attention on a CPU: the products of a group written in place, no graph of small operators.

    Measured against SDPA on the same groups, forward and backward: about twice as fast. Products of this size are no
    faster in bf16 than in fp32 (and SDPA far slower), so it computes in fp32 whatever the inputs' dtype.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: LengthGroups, dropout: float) -> Tensor:
        size = qkv.shape[1] // 3 // layout.heads
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        weights: list[Tensor] = []
        masks: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            rows = qkv.view(-1, size).index_select(0, layout.parts[0]).to(dtype)
            out = rows.new_empty(len(rows) // 3, size)
            batches = layout.batches(rows, 3), layout.batches(out), layout.blocks
            for (q, k, v), (result,), blocks in zip(*batches, strict=True):
                for block in blocks:
                    queries, keys = q[:, block.rows], k[:, block.columns]
                    scores = torch.baddbmm(q.new_empty(()), queries, keys.mT, beta=0, alpha=size**-0.5)
                    scores = scores if block.mask is None else scores.add_(block.mask)
                    weights.append(torch.softmax(scores, -1))
                    masks.append(drop_mask(scores.shape, dropout, dtype) if dropout else None)
                    torch.bmm(_dropped(weights[-1], masks[-1]), v[:, block.columns], out=result[:, block.rows])
        ctx.save_for_backward(rows, *weights, *masks)
        ctx.layout = layout
        return out.index_select(0, layout.results[1]).view(len(qkv), -1).to(qkv.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        layout, size = ctx.layout, rows.shape[1]
        kept = iter(zip(saved[: len(saved) // 2], saved[len(saved) // 2 :], strict=True))
        with torch.autocast("cpu", enabled=False):
            given = gradient.reshape(-1, size).index_select(0, layout.results[0]).to(rows.dtype)
            out = torch.empty_like(rows)
            batches = layout.batches(rows, 3), layout.batches(given), layout.batches(out, 3), layout.blocks
            for (q, k, v), (above,), (to_q, to_k, to_v), blocks in zip(*batches, strict=True):
                for n, (block, (weights, mask)) in enumerate(zip(blocks, kept, strict=False)):
                    queries, keys = block.rows, block.columns
                    more = min(n, 1)  # the first block has all keys, the second adds to theirs
                    slope = above[:, queries]
                    torch.baddbmm(to_v[:, keys], _dropped(weights, mask).mT, slope, beta=more, out=to_v[:, keys])
                    slope = _dropped(torch.bmm(slope, v[:, keys].mT), mask)
                    slope = torch._softmax_backward_data(slope, weights, -1, rows.dtype)
                    scale = {"alpha": size**-0.5}
                    torch.baddbmm(to_q[:, queries], slope, k[:, keys], beta=0, out=to_q[:, queries], **scale)
                    torch.baddbmm(to_k[:, keys], slope.mT, q[:, queries], beta=more, out=to_k[:, keys], **scale)
        return out.index_select(0, layout.parts[1]).view(len(gradient), -1).to(gradient.dtype), None, None


def _dropped(weights: Tensor, mask: Tensor | None) -> Tensor:
    return weights if mask is None else weights * mask


def attention_maps(qkv: Tensor, layout: LengthGroups) -> list[Tensor]:
    """The attention probabilities of each sequence, in the order they were given: [heads, L, L] each."""
    size = qkv.shape[1] // 3 // layout.heads
    rows = qkv.view(-1, size).index_select(0, layout.parts[0])
    maps: list[Tensor] = []
    for (q, k, _), blocks in zip(layout.batches(rows, 3), layout.blocks, strict=True):
        map_ = q.new_zeros(len(q), q.shape[1], q.shape[1])
        for block in blocks:
            scores = (q[:, block.rows] @ k[:, block.columns].mT) / size**0.5
            scores = scores if block.mask is None else scores + block.mask
            map_[:, block.rows, block.columns] = scores.softmax(-1)
        maps.extend(map_.split(layout.heads))
    return [maps[i] for i in np.argsort(layout.order).tolist()]


def attention_slopes(qkv: Tensor, slope: Tensor, layout: LengthGroups) -> list[Tensor]:
    """The gradient of a score by the attention probabilities of each sequence, [heads, L, L] each, of its gradient by
    what attention gives, [T, H]: result = A v, so that dA = dresult vᵀ; 0 where a token doesn't see another."""
    size = slope.shape[1] // layout.heads
    rows = qkv.view(-1, size).index_select(0, layout.parts[0])
    given = slope.reshape(-1, size).index_select(0, layout.results[0])
    slopes: list[Tensor] = []
    for (_, _, v), (above,), blocks in zip(layout.batches(rows, 3), layout.batches(given), layout.blocks, strict=True):
        out = v.new_zeros(len(v), v.shape[1], v.shape[1])
        for block in blocks:
            its = above[:, block.rows] @ v[:, block.columns].mT
            out[:, block.rows, block.columns] = its if block.mask is None else its * block.mask.isfinite()
        slopes.extend(out.split(layout.heads))
    return [slopes[i] for i in np.argsort(layout.order).tolist()]
