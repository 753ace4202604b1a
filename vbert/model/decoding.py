"""Cached decoding: an image's keys and values are computed once, those of its texts piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vbert.model.attention import LengthGroups


class ContextGroup(NamedTuple):
    """A layer's keys and values of n images, [n, heads, L, d]. mask: float [n, 1, 1, L], −∞ at padding; None where all
    have the same length."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


@dataclass
class Cache:
    """Keys and values of every layer, of images and of texts that grow beside them: several beams an image, which share
    its part.

    images: int64 [images], the image at each place. Texts are in this order, the beams of an image one after the other.
    context: of each layer, its groups of images. texts: of each layer, keys and values [beams, heads, pieces, d].
    """

    images: NDArray[np.int64]
    context: list[list[ContextGroup]]
    texts: list[tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        """The pieces of every text."""
        return self.texts[0][0].shape[2]

    def reorder(self, rows: Tensor) -> None:
        """Continues the texts `rows` (int64 [beams], of the same image each, as many beams for all images)."""
        self.texts = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.texts]

    def attend(self, layer: int, qkv: Tensor, kept: int) -> Tensor:
        """softmax(q kᵀ / √d) v of the next n pieces of every text, which see the image, the text before them and, of
        each other, themselves and those before. qkv: [beams, n, 3H]. `kept` of them join the text. Returns
        [beams, n, H]."""
        beams, more, _ = qkv.shape
        known, known_values = self.texts[layer]
        heads, before = known.shape[1], known.shape[2]
        q, k, v = qkv.view(beams, more, 3, heads, -1).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat([known, k], 2), torch.cat([known_values, v], 2)
        later = torch.full((more, more), float("-inf"), device=q.device, dtype=q.dtype).triu(1)
        text = q @ keys.mT + F.pad(later, (before, 0))
        self.texts[layer] = keys[:, :, : before + kept], values[:, :, : before + kept]
        out, first = [], 0
        width = beams // len(self.images)
        for group in self.context[layer]:
            count = len(group.keys)
            last = first + count * width
            # The beams of an image as further queries of it.
            queries = q[first:last].unflatten(0, (count, width)).transpose(1, 2).flatten(2, 3)
            image = queries @ group.keys.mT
            image = image if group.mask is None else image + group.mask
            image = image.unflatten(2, (width, more)).transpose(1, 2).flatten(0, 1)
            scores = torch.cat([image, text[first:last]], -1) / q.shape[-1] ** 0.5
            of_image, of_text = scores.softmax(-1).split([image.shape[-1], before + more], -1)
            shared = of_image.unflatten(0, (count, width)).transpose(1, 2).flatten(2, 3) @ group.values
            shared = shared.unflatten(2, (width, more)).transpose(1, 2).flatten(0, 1)
            out.append(shared + of_text @ values[first:last])
            first = last
        return torch.cat(out).transpose(1, 2).flatten(2)


def context_groups(qkv: Tensor, layout: LengthGroups, padded: bool) -> list[ContextGroup]:
    """Keys and values of the sequences of `layout`, qkv [T, 3H]: a group for each length, or all in one, padded."""
    size = qkv.shape[1] // 3 // layout.heads
    if not padded:
        rows = qkv.view(-1, size).index_select(0, layout.parts[0])
        groups = []
        for part, (count, length) in zip(layout.batches(rows, 3), layout.groups, strict=True):
            _, keys, values = part.view(3, count, layout.heads, length, size)
            groups.append(ContextGroup(keys, values, None))
        return groups
    place, seen, longest = layout.padding
    rows = qkv.new_zeros(len(layout.lengths) * longest, qkv.shape[1]).index_copy(0, place, qkv)
    _, k, v = rows.view(-1, longest, 3, layout.heads, size).permute(2, 0, 3, 1, 4)
    return [ContextGroup(k, v, torch.zeros_like(seen, dtype=qkv.dtype).masked_fill(~seen, float("-inf")))]
