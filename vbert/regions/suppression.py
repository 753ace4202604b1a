"""Greedy suppression of overlapping boxes, exact and over all classes at once.

Greedy: by falling score, equal ones by index, a box is kept unless one kept before it overlaps it too much. Classes do
not see each other: where all have the same boxes, all take their r-th best box in one step, so that instead of 1,600
runs over the boxes there is one over the ranks; where each has its own, their overlaps are solved side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

Widths = Literal["continuous", "plus_one"]

_BITS = 32  # overlap flags in a word; an int64 with room to spare, so that no shift reaches the sign
_CELLS = 1 << 22  # of an overlap matrix in memory at once
_LONGEST = 2048  # boxes of a map that a GPU suppresses by one matrix; more of them take torchvision's `nms`


def best(scores: Tensor, count: int) -> Tensor:
    """Indices int64 [..., min(n, count)] of the best of scores [..., n], best first, equal ones by index."""
    if scores.device.type != "cpu" or count >= scores.shape[-1]:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    if scores.ndim > 1:
        return torch.stack([best(row, count) for row in scores])
    among = (scores >= scores.topk(count).values[-1]).nonzero()[:, 0]
    return among[scores[among].sort(descending=True, stable=True).indices][:count]


def overlaps(boxes: Tensor, widths: Widths = "continuous") -> Tensor:
    """Intersection over union [..., n, n] of boxes [..., n, 4], x1 y1 x2 y2, in the operations of torchvision's `nms`.

    `plus_one`: a box from pixel 3 to pixel 5 is 3 wide, as in Fast R-CNN's code (lib/nms/py_cpu_nms.py); else 2.
    """
    more = 1.0 if widths == "plus_one" else 0.0
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = (x2 - x1 + more) * (y2 - y1 + more)
    across = torch.minimum(x2[..., :, None], x2[..., None, :]) - torch.maximum(x1[..., :, None], x1[..., None, :])
    down = torch.minimum(y2[..., :, None], y2[..., None, :]) - torch.maximum(y1[..., :, None], y1[..., None, :])
    shared = (across + more).clamp_(min=0) * (down + more).clamp_(min=0)
    return shared / (areas[..., :, None] + areas[..., None, :] - shared)


def above(values: Tensor, threshold: float) -> Tensor:
    """values > threshold as real numbers: torch would round the threshold to float32 first, and 0.3 upwards."""
    return values > _largest(threshold)


def at_least(values: Tensor, threshold: float) -> Tensor:
    """values ≥ threshold as real numbers."""
    largest = _largest(threshold)
    return values >= largest if largest == threshold else values > largest


def _largest(threshold: float) -> float:
    """The largest float32 that is not above `threshold`."""
    near = torch.tensor(threshold, dtype=torch.float32)
    if near.item() > threshold:
        near = torch.nextafter(near, torch.tensor(-torch.inf))
    return float(near.item())


def shared_boxes(overlapping: Tensor, scores: Tensor, least: float) -> Tensor:
    """Suppression in each class apart where all classes have the same boxes.

    overlapping bool [n, n]: which pairs suppress each other; scores float [n, C]. Only pairs (box, class) that score
    `least` or more take part, which changes nothing for them: only better ones can suppress. Returns bool [n, C]: kept.
    """
    n = len(scores)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    taking_part = at_least(scores, least)
    classes = taking_part.any(0).nonzero()[:, 0]
    if not len(classes):
        return kept
    # The pairs that take part come first in their class: they score more than all others.
    order = scores[:, classes].sort(dim=0, descending=True, stable=True).indices
    counts = taking_part[:, classes].sum(0)
    words = _packed(overlapping)
    dead = torch.zeros(len(classes), words.shape[1], dtype=torch.int64, device=scores.device)
    alive = torch.zeros(n, len(classes), dtype=torch.bool, device=scores.device)
    word, bit = order // _BITS, order % _BITS
    for rank in range(int(counts.max())):
        flags = dead.gather(1, word[rank][:, None])[:, 0] >> bit[rank]
        alive[rank] = ((flags & 1) == 0) & (counts > rank)
        dead |= words[order[rank]] * alive[rank][:, None]
    kept[:, classes] = torch.zeros_like(alive).scatter_(0, order, alive)
    return kept


def _packed(flags: Tensor) -> Tensor:
    """bool [n, m] as int64 [n, ⌈m/32⌉], 32 flags a word."""
    n, m = flags.shape
    padded = torch.nn.functional.pad(flags, (0, -m % _BITS)).view(n, -1, _BITS).long()
    return (padded << torch.arange(_BITS, device=flags.device)).sum(2)


def grouped(boxes: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Suppression within each group of boxes of its own: boxes float [n, 4] and groups int64 [n], best first.

    Boxes that overlap by more than `iou` suppress each other, as in torchvision's `nms`. (Its `batched_nms` shifts
    boxes by group, which rounds their coordinates.) Returns bool [n]: kept.
    """
    if len(boxes) ** 2 <= _CELLS // 4:
        return _greedy((above(overlaps(boxes), iou) & (groups[:, None] == groups))[None])[0]
    _, number, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    members = number.sort(stable=True).indices
    starts = counts.cumsum(0) - counts
    # Groups of about the same size go together, so that few places stay empty.
    by_size = counts.sort(stable=True).indices
    at = int((counts <= 1).sum())
    while at < len(by_size):
        longest = int(counts[by_size[min(at + 255, len(by_size) - 1)]])
        part = by_size[at : at + max(1, min(256, _CELLS // longest**2))]
        longest = int(counts[part].max())
        place = torch.arange(longest, device=boxes.device)
        filled = place < counts[part][:, None]
        table = members[(starts[part][:, None] + place).clamp_(max=len(boxes) - 1)]
        kept[table[filled]] = _greedy(above(overlaps(boxes[table]), iou))[filled]
        at += len(part)
    return kept


def within_maps(boxes: Tensor, fit: Tensor, lengths: Sequence[int], iou: float) -> Tensor:
    """Suppression within each feature map: boxes float [B, K, 4], of each image `lengths` boxes a map, best first; bool
    [B, K]: which take part. Returns bool [B, K]: kept.

    Not torchvision's `batched_nms`, which for few boxes shifts them by map, and so rounds their coordinates.
    """
    kept = torch.zeros_like(fit)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        start += length
        if _by_matrix(boxes.device, length):
            taking_part = fit[:, part, None] & fit[:, None, part]
            kept[:, part] = _greedy(above(overlaps(boxes[:, part]), iou) & taking_part) & fit[:, part]
            continue
        for i in range(len(boxes)):
            mine = part.start + fit[i, part].nonzero()[:, 0]
            ranks = torch.arange(len(mine), 0, -1, dtype=boxes.dtype, device=boxes.device)
            kept[i, mine[nms(boxes[i, mine], ranks, iou)]] = True
    return kept


def _by_matrix(device: torch.device, length: int) -> bool:
    """Whether all images' overlaps are solved at once: a GPU waits for launches, not for products."""
    return device.type != "cpu" and length <= _LONGEST


def _greedy(overlapping: Tensor) -> Tensor:
    """bool [g, m]: kept, of g groups of m boxes, best first; overlapping bool [g, m, m].

    A box is kept if no kept one before it overlaps it: true of one answer only, to which repeated asking leads, because
    after n rounds the first n boxes are right. Rounds are as many as a chain of boxes that free each other is long.
    """
    before = overlapping.triu(1)
    kept = torch.ones(overlapping.shape[:2], dtype=torch.bool, device=overlapping.device)
    while True:
        again = ~(before & kept[:, :, None]).any(1)
        if torch.equal(again, kept):
            return kept
        kept = again
