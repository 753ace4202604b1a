"""RoIAlign with adaptive sampling (as detectron2 calls it), as weighted sums of rows of channels-last maps.

torchvision's CPU kernel gathers channel by channel and takes a fifth of R50-FPN's forward. Here each bin is one bag of
an embedding sum over pixels with all their channels. Bilinear sampling is separable, and its samples lie at most a
pixel apart, so that g samples along an axis touch at most g + 1 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def roi_align(
    maps: Sequence[Tensor], scales: Sequence[float], boxes: Tensor, levels: Tensor, side: int, aligned: bool
) -> Tensor:
    """`torchvision.ops.roi_align(..., sampling_ratio=0)` for one image, with another order of axes.

    maps: [H, W, C] float32, contiguous, each with `scales` of its pixels a pixel of the input; boxes [n, 4] float32 in
    pixels of the input; levels int64 [n]: the map of each box; aligned: shifted by half a pixel (ROIAlignV2).
    Returns [n, side, side, C] float32. A box's bits are a function of that box and its map.
    """
    factors = torch.tensor(list(scales), device=boxes.device)[levels]
    corners = boxes * factors[:, None] - (0.5 if aligned else 0.0)
    sizes = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1)
    samples = (sizes / side).ceil().clamp(min=1).long()  # a bin, along x and y
    channels = maps[0].shape[2]
    out = boxes.new_empty(len(boxes), side * side, channels)
    groups, members = torch.unique(torch.cat([levels[:, None], samples], 1), dim=0, return_inverse=True)
    for group, (level, along_x, along_y) in enumerate(groups.tolist()):
        mine = (members == group).nonzero()[:, 0]
        height, width, _ = maps[level].shape
        x, x_weight = _axis(corners[mine, 0], sizes[mine, 0], side, along_x, width)
        y, y_weight = _axis(corners[mine, 1], sizes[mine, 1], side, along_y, height)
        pixels = (y * width)[:, :, None, :, None] + x[:, None, :, None, :]
        weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        bags = len(mine) * side * side
        rows = embedding_bag(
            pixels.reshape(bags, -1),
            maps[level].view(-1, channels),
            mode="sum",
            per_sample_weights=weights.reshape(bags, -1),
        )
        out[mine] = rows.view(len(mine), side * side, channels)
    return out.view(len(boxes), side, side, channels)


def _axis(start: Tensor, size: Tensor, side: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """The pixels (int32 [n, side, samples + 1]) that the bins of n boxes read along an axis, and their weights.

    A sample beyond the map by more than a pixel counts as zero, a nearer one as the border's pixel.
    """
    bins = (size / side)[:, None, None]
    along = torch.arange(side, device=start.device)[:, None]
    within = torch.arange(samples, device=start.device) + 0.5
    position = start[:, None, None] + along * bins + within * bins / samples
    counts = (position >= -1) & (position <= length) & (size > 0)[:, None, None]
    position = position.clamp(0, length - 1)
    pixel = position[:, :, :1].floor() + torch.arange(samples + 1, device=start.device)
    weight = (1 - (position[:, :, :, None] - pixel[:, :, None, :]).abs()).clamp(min=0)
    weight = (weight * counts[..., None]).sum(2) / samples
    return pixel.clamp(max=length - 1).int(), weight
