"""Attention over concatenated sequences of different lengths, with no work on padding.

Sequences are sorted by length; those of one length are neighbours and form one batch that needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vbert.model.dropout import drop_mask

Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """How the sequences of a batch lie: sorted by length, `groups` of (sequences, length) one after the other.

    permutation: int64 [T] or None where the batch is sorted already; row i of the sorted tokens is row
    `permutation[i]` of the packed ones. inverse: its inverse. lengths: of the sorted sequences.
    sequence: for each given sequence, its place among the sorted ones.
    """

    groups: Groups
    lengths: Tensor
    sequence: Tensor
    permutation: Tensor | None
    inverse: Tensor | None

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Layout:
        """The layout of sequences of `lengths` (int64 [B], CPU); index tensors are put on `device`."""
        ordered, by_length = torch.sort(lengths, stable=True)
        values, counts = torch.unique_consecutive(ordered, return_counts=True)
        groups = tuple((int(n), int(length)) for n, length in zip(counts, values, strict=True))
        place = torch.empty_like(by_length)
        place[by_length] = torch.arange(len(by_length))
        if bool((by_length == torch.arange(len(by_length))).all()):
            return cls(groups, ordered, place, None, None)
        starts = (lengths.cumsum(0) - lengths)[by_length]
        total = int(lengths.sum())
        shift = starts - (ordered.cumsum(0) - ordered)
        permutation = torch.arange(total) + torch.repeat_interleave(shift, ordered, output_size=total)
        inverse = torch.empty_like(permutation)
        inverse[permutation] = torch.arange(total)
        to = {"device": device, "non_blocking": True}
        return cls(groups, ordered, place, permutation.to(**to), inverse.to(**to))  # type: ignore[call-overload]

    def sorted(self, rows: Tensor) -> Tensor:
        """Rows given in packed order, in sorted order."""
        return rows if self.permutation is None else rows.index_select(0, self.permutation)

    def restored(self, rows: Tensor) -> Tensor:
        """Rows given in sorted order, in packed order."""
        return rows if self.inverse is None else rows.index_select(0, self.inverse)


def attend(qkv: Tensor, layout: Layout, heads: int, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence. qkv: [T, 3H] in the order of `layout`. Returns [T, H].

    On CUDA the variable-length kernel, which knows neither fp32 nor dropout; for those SDPA, a group at a time.
    """
    if not qkv.is_cuda:
        return _Grouped.apply(qkv, layout.groups, heads, dropout)  # type: ignore[no-any-return]
    if not dropout and qkv.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        bounds = F.pad(layout.lengths.cumsum(0), (1, 0)).to(qkv.device, torch.int32, non_blocking=True)
        longest = layout.groups[-1][1]
        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        return varlen_attn(q, k, v, bounds, bounds, longest, longest).flatten(1)  # type: ignore[union-attr]
    out = []
    for rows, (count, length) in zip(_split(qkv, layout), layout.groups, strict=True):
        q, k, v = rows.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out.append(context.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(out)


class _Grouped(torch.autograd.Function):
    """Attention on a CPU: three products a group, written in place, no graph of small operators.

    Measured against SDPA on the same groups, forward and backward: 1.35 times as fast in fp32. Products of this size
    are slower in bf16 than in fp32 (and SDPA slower still), so it computes in fp32 whatever the inputs' dtype.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Groups, heads: int, dropout: float) -> Tensor:
        size = qkv.shape[1] // 3 // heads
        out = qkv.new_empty(len(qkv), heads * size)
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        saved, end = [], 0
        with torch.autocast("cpu", enabled=False):
            for count, length in groups:
                start, end = end, end + count * length
                rows = qkv[start:end].view(count, length, 3, heads, size).permute(2, 0, 3, 1, 4)
                parts = torch.empty(rows.shape, dtype=dtype).copy_(rows).view(3, count * heads, length, size)
                scores = torch.baddbmm(parts.new_empty(()), parts[0], parts[1].mT, beta=0, alpha=size**-0.5)
                weights = torch.softmax(scores, -1)
                kept = drop_mask(weights.shape, dropout, weights.dtype) if dropout else None
                context = torch.bmm(weights if kept is None else weights * kept, parts[2])
                _by_token(out[start:end], count, heads).copy_(context.view(count, heads, length, size))
                saved += [parts, weights, kept]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.heads = groups, heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        heads, saved = ctx.heads, ctx.saved_tensors
        size = gradient.shape[1] // heads
        out = gradient.new_empty(len(gradient), 3 * heads * size)
        end = 0
        with torch.autocast("cpu", enabled=False):
            for i, (count, length) in enumerate(ctx.groups):
                start, end = end, end + count * length
                (q, k, v), weights, kept = saved[3 * i : 3 * i + 3]
                given = _by_token(gradient[start:end], count, heads)
                given = torch.empty(given.shape, dtype=q.dtype).copy_(given).view(count * heads, length, size)
                parts = q.new_empty(3, count * heads, length, size)
                torch.bmm((weights if kept is None else weights * kept).mT, given, out=parts[2])
                slope = torch.bmm(given, v.mT)
                slope = torch._softmax_backward_data(slope if kept is None else slope * kept, weights, -1, q.dtype)
                torch.baddbmm(parts[0], slope, k, beta=0, alpha=size**-0.5, out=parts[0])
                torch.baddbmm(parts[1], slope.mT, q, beta=0, alpha=size**-0.5, out=parts[1])
                rows = out[start:end].view(count, length, 3, heads, size)
                rows.copy_(parts.view(3, count, heads, length, size).permute(1, 3, 0, 2, 4))
        return out, None, None, None


def _by_token(rows: Tensor, count: int, heads: int) -> Tensor:
    """[count · L, H] as [count, heads, L, d], a view."""
    return rows.view(count, len(rows) // count, heads, -1).transpose(1, 2)


def _split(qkv: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(qkv, [count * length for count, length in layout.groups])


def attention_maps(qkv: Tensor, layout: Layout, heads: int) -> list[Tensor]:
    """The attention probabilities of each sequence, in the order they were given: [heads, L, L] each."""
    maps: list[Tensor] = []
    for rows, (count, length) in zip(
        torch.split_with_sizes(qkv, [n * m for n, m in layout.groups]), layout.groups, strict=True
    ):
        q, k, _ = rows.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        maps.extend(((q @ k.transpose(-1, -2)) / (q.shape[-1] ** 0.5)).softmax(-1))
    return [maps[i] for i in layout.sequence.tolist()]
