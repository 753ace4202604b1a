"""Mean and deviation of the visual input, by which a model standardises it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbert.errors import UserError
from vbert.objectives.batches import RegionInputs

STATISTICS_IMAGES = 20_000  # images that they are taken of, at most


def statistics(sources: Sequence[tuple[RegionInputs, Sequence[str]]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every visual input dimension over the regions of the given images; float32,
    summed in float64 in the order of image ids. A deviation of 0 counts as 1."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    shift: NDArray[np.float64] | None = None  # against cancellation: sums are of x - shift
    for visuals, image_ids in sources:
        ordered = sorted(set(image_ids))
        for image_id in ordered[:: -(-len(ordered) // STATISTICS_IMAGES) or 1]:
            rows = visuals(image_id).astype(np.float64)
            if not len(rows):
                continue
            if shift is None:
                shift = rows.mean(0)
            count += len(rows)
            total = total + (rows - shift).sum(0)
            squares = squares + np.square(rows - shift).sum(0)
    if shift is None:
        raise UserError("none of the training images has a region: look at the detector's box rule")
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation == 0] = 1
    return torch.from_numpy((mean + shift).astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))
