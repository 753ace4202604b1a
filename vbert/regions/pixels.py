"""From a decoded image to a detector's input, as the contract's preprocessing says."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vbert.regions.contract import Preprocessing
from vbert.regions.detector import Prepared


def target_size(width: int, height: int, rule: Preprocessing) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side to `short_side`, unless the longer one gets above `long_side`.

    Rounded down as torchvision's GeneralizedRCNNTransform does, and at least 1.
    """
    if rule.resize == "none" or rule.short_side is None:
        return width, height
    scale = rule.short_side / min(width, height)
    if rule.long_side is not None:
        scale = min(scale, rule.long_side / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def prepare(image: Image.Image, rule: Preprocessing) -> Prepared:
    """An RGB image as float32 [3, h, w]: resized and scaled.

    `pillow` is its bilinear filter, `torch` an antialiased bilinear one on uint8, `bilinear` one without antialias on
    the scaled float values, as torchvision's GeneralizedRCNNTransform has it.
    """
    size = target_size(*image.size, rule)
    if rule.resize == "bilinear":
        return Prepared(_bilinear(image, size, rule), *image.size)
    if rule.resize == "pillow" and size != image.size:
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
    else:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if size != image.size:
            from torchvision.transforms.v2.functional import resize

            pixels = resize(pixels, [size[1], size[0]], antialias=True)
    return Prepared(normalised(pixels, rule), *image.size)


def _bilinear(image: Image.Image, size: tuple[int, int], rule: Preprocessing) -> Tensor:
    pixels = normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1), rule)
    return pixels if size == image.size else interpolate(pixels[None], size=size[::-1], mode="bilinear")[0]


def normalised(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """uint8 RGB [..., 3, h, w] to the detector's float32 channels."""
    if rule.colours == "BGR":
        pixels = pixels.flip(-3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (rule.mean, rule.std))
    return (pixels.float() * rule.scale - mean) / std
