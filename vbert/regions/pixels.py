"""From a decoded image to a detector's input, as the contract's preprocessing says."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vbert.regions.contract import Preprocessing
from vbert.regions.detector import Prepared


def target_size(width: int, height: int, rule: Preprocessing) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side to `short_side`, unless the longer one gets above `long_side`.

    Rounded down as torchvision's GeneralizedRCNNTransform does, or to the nearest as detectron2's ResizeShortestEdge
    does, in its order of operations; at least 1.
    """
    if rule.resize == "none" or rule.short_side is None:
        return width, height
    if rule.rounding == "nearest":
        return _nearest(width, height, rule.short_side, rule.long_side)
    scale = rule.short_side / min(width, height)
    if rule.long_side is not None:
        scale = min(scale, rule.long_side / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _nearest(width: int, height: int, short: int, long: int | None) -> tuple[int, int]:
    scale = short / min(width, height)
    w, h = (scale * width, float(short)) if height < width else (float(short), scale * height)
    if long is not None and max(w, h) > long:
        again = long / max(w, h)
        w, h = w * again, h * again
    return max(1, int(w + 0.5)), max(1, int(h + 0.5))


def prepare(image: Image.Image, rule: Preprocessing) -> Prepared:
    """An RGB image as float32 [3, h, w]: resized (`pillow`: bilinear; `torch`: bilinear, antialiased uint8), scaled."""
    size = target_size(*image.size, rule)
    if rule.resize == "pillow" and size != image.size:
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
    else:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if size != image.size:
            from torchvision.transforms.v2.functional import resize

            pixels = resize(pixels, [size[1], size[0]], antialias=True)
    return Prepared(normalised(pixels, rule), *image.size)


def normalised(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """uint8 RGB [..., 3, h, w] to the detector's float32 channels."""
    if rule.colours == "BGR":
        pixels = pixels.flip(-3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (rule.mean, rule.std))
    return (pixels.float() * rule.scale - mean) / std
