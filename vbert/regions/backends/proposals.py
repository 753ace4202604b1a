"""Chooses the proposals among an RPN's anchors, for all images of a batch in the same operations.

Equal scores come in the order of their anchors: map, row, column, shape. torch's `topk` promises no order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vbert.regions.suppression import best, within_maps


@dataclass(frozen=True)
class ProposalRule:
    """The differences between detectors in the choice of proposals.

    decode: deltas [n, 4] and anchors [n, 4] to boxes [n, 4]; score: logits to scores; fit: boxes [B, K, 4] as decoded,
    the same clipped, and scores [B, K] to bool [B, K]; before, after: how many of a map go into suppression, how many
    of an image come out of it; iou: boxes of one map overlapping more suppress each other.
    """

    decode: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor], Tensor]
    fit: Callable[[Tensor, Tensor, Tensor], Tensor]
    before: int
    after: int
    iou: float


def proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    choice: ProposalRule,
) -> list[Tensor]:
    """Boxes [n, 4] of each image, best first, in pixels of the input; the whole image where there are none.

    Of each map logits [B', A, h, w], deltas [B', 4A, h, w] and anchors [h·w·A, 4], by row, column, shape; sizes: the
    (h, w) of the first B of the B' images, without padding. Only the best anchors are decoded.
    """
    count = len(sizes)
    boxes, objectness, lengths = [], [], []
    for level, all_anchors in enumerate(anchors):
        scores = logits[level][:count].permute(0, 2, 3, 1).flatten(1)
        at = best(scores, choice.before)
        height, width = logits[level].shape[2:]
        moves = deltas[level][:count].view(count, -1, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, 3)
        moves = moves.gather(1, at[:, :, None].expand(-1, -1, 4))
        decoded = choice.decode(moves.flatten(0, 1), all_anchors[at.flatten()])
        boxes.append(decoded.view(count, -1, 4))
        objectness.append(scores.gather(1, at))
        lengths.append(at.shape[1])
    decoded, scores = torch.cat(boxes, 1), choice.score(torch.cat(objectness, 1))
    limits = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=decoded.dtype).to(decoded.device)
    clipped = torch.minimum(decoded.clamp(min=0), limits[:, None])
    kept = within_maps(clipped, choice.fit(decoded, clipped, scores), lengths, choice.iou)
    order = scores.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : choice.after]
    chosen = clipped.gather(1, order[:, :, None].expand(-1, -1, 4))
    counts = kept.sum(1).clamp(max=choice.after).tolist()
    whole = limits * limits.new_tensor([0, 0, 1, 1])
    return [chosen[i, :n] if n else whole[i : i + 1] for i, n in enumerate(counts)]
