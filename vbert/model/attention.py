"""Attention over concatenated sequences of different lengths, with no work on padding.

Sequences are sorted by length; those of one length are neighbours and form one batch that needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How the sequences of a batch lie: sorted by length, `groups` of (sequences, length) one after the other.

    permutation: int64 [T] or None where the batch is sorted already; row i of the sorted tokens is row
    `permutation[i]` of the packed ones. inverse: its inverse. lengths: of the sorted sequences.
    sequence: for each given sequence, its place among the sorted ones.
    """

    groups: tuple[tuple[int, int], ...]
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
    """softmax(q kᵀ / √d) v within each sequence. qkv: [T, 3H] in the order of `layout`. Returns [T, H]."""
    out = []
    for rows, (count, length) in zip(
        torch.split_with_sizes(qkv, [n * m for n, m in layout.groups]), layout.groups, strict=True
    ):
        q, k, v = rows.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out.append(context.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(out)


def attention_maps(qkv: Tensor, layout: Layout, heads: int) -> list[Tensor]:
    """The attention probabilities of each sequence, in the order they were given: [heads, L, L] each."""
    maps: list[Tensor] = []
    for rows, (count, length) in zip(
        torch.split_with_sizes(qkv, [n * m for n, m in layout.groups]), layout.groups, strict=True
    ):
        q, k, _ = rows.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        maps.extend(((q @ k.transpose(-1, -2)) / (q.shape[-1] ** 0.5)).softmax(-1))
    return [maps[i] for i in layout.sequence.tolist()]
