"""From a decoded image to a detector's input, by the contract's preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vbert.regions.contract import Preprocessing
from vbert.regions.detector import DetectorInput


def target_size(width: int, height: int, rule: Preprocessing) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side to `short_side`, unless the longer one gets above `long_side`.

    Rounded down as torchvision's GeneralizedRCNNTransform does, or to the nearest as detectron2's ResizeShortestEdge
    does, in its order of operations (`opencv`: as Caffe's Fast R-CNN does); at least 1.
    """
    if rule.resize == "none" or rule.short_side is None:
        return width, height
    if rule.resize == "opencv":
        factor = resize_factor(width, height, rule)
        return max(1, round(width * factor)), max(1, round(height * factor))
    if rule.rounding == "nearest":
        return _nearest(width, height, rule.short_side, rule.long_side)
    scale = rule.short_side / min(width, height)
    if rule.long_side is not None:
        scale = min(scale, rule.long_side / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def resize_factor(width: int, height: int, rule: Preprocessing) -> float:
    """The one factor of `opencv`, as in Fast R-CNN's code (lib/fast_rcnn/test.py): the shorter side to `short_side`,
    unless the longer one, rounded, gets above `long_side`."""
    if rule.short_side is None:
        return 1.0
    factor = rule.short_side / min(width, height)
    if rule.long_side is not None and round(factor * max(width, height)) > rule.long_side:
        factor = rule.long_side / max(width, height)
    return factor


def _nearest(width: int, height: int, short: int, long: int | None) -> tuple[int, int]:
    scale = short / min(width, height)
    w, h = (scale * width, float(short)) if height < width else (float(short), scale * height)
    if long is not None and max(w, h) > long:
        again = long / max(w, h)
        w, h = w * again, h * again
    return max(1, int(w + 0.5)), max(1, int(h + 0.5))


def prepare(image: Image.Image, rule: Preprocessing) -> DetectorInput:
    """An RGB image as float32 [3, h, w]: resized and scaled, as `Preprocessing` says."""
    size = target_size(*image.size, rule)
    if rule.resize == "opencv":
        return DetectorInput(_by_factor(image, size, rule), *image.size)
    if rule.resize == "bilinear":
        return DetectorInput(_bilinear(image, size, rule), *image.size)
    if rule.resize == "pillow" and size != image.size:
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
    else:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if size != image.size:
            from torchvision.transforms.v2.functional import resize

            pixels = resize(pixels, [size[1], size[0]], antialias=True)
    return DetectorInput(normalised(pixels, rule), *image.size)


def _by_factor(image: Image.Image, size: tuple[int, int], rule: Preprocessing) -> Tensor:
    """Resizes the normalised floats as `cv2.resize(x, None, fx=f, fy=f)`: output pixel i lies at (i + ½) / f − ½.

    The factor is passed beside the size: one computed from the rounded size would move the far edge by up to half a
    pixel.
    """
    pixels = normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1), rule)
    factor = resize_factor(*image.size, rule)
    resized: Tensor = torch.ops.aten.upsample_bilinear2d(pixels[None], [size[1], size[0]], False, factor, factor)
    return resized[0]


def _bilinear(image: Image.Image, size: tuple[int, int], rule: Preprocessing) -> Tensor:
    pixels = normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1), rule)
    return pixels if size == image.size else interpolate(pixels[None], size=size[::-1], mode="bilinear")[0]


def normalised(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """uint8 RGB [..., 3, h, w] to the detector's float32 channels."""
    if rule.colours == "BGR":
        pixels = pixels.flip(-3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (rule.mean, rule.std))
    return (pixels.float() * rule.scale - mean) / std


def padded_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    """(width, height) rounded up to multiples."""
    return width + -width % multiple, height + -height % multiple


def stacked(batch: Sequence[DetectorInput], slots: int, multiple: int, device: torch.device | str) -> Tensor:
    """float32 [slots, 3, H, W], channels last: inputs with zeros below and to the right, then inputs of zeros."""
    width, height = padded_size(batch[0].pixels.shape[2], batch[0].pixels.shape[1], multiple)
    out = torch.zeros(max(slots, len(batch)), 3, height, width, device=device)
    out = out.contiguous(memory_format=torch.channels_last)
    for row, prepared in zip(out, batch, strict=False):  # on a GPU the layout is changed there
        row[:, : prepared.pixels.shape[1], : prepared.pixels.shape[2]].copy_(prepared.pixels, non_blocking=True)
    return out


def scales_of(batch: Sequence[DetectorInput], device: torch.device | str) -> Tensor:
    """float [B, 4]: the factors from pixels of each image to pixels of the input, x y x y."""
    return torch.tensor([prepared.scale * 2 for prepared in batch]).to(device)


def limits_of(batch: Sequence[DetectorInput], device: torch.device | str) -> Tensor:
    """[B, 4] float32: width, height, width, height of each input."""
    return torch.tensor([(*prepared.pixels.shape[:0:-1],) * 2 for prepared in batch], dtype=torch.float32).to(device)
