"""Dropout. On a CPU half the cost of torch's, most of which is drawing numbers: here 16 random bits an element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16  # the share dropped is the nearest multiple of 1/65536


def dropout(hidden: Tensor, probability: float, training: bool) -> Tensor:
    """`hidden`, in training with a share `probability` of its elements 0 and the others scaled up.

    Draws from torch's global generator of the device, whose state a checkpoint holds. Probability 0 draws nothing.
    """
    if not training or not probability:
        return hidden
    if hidden.is_cuda:
        return F.dropout(hidden, probability)
    if hidden.dtype in (torch.float32, torch.float64):
        return hidden * drop_mask(hidden.shape, probability, hidden.dtype)
    # The scale of 0.1 would be 0.16 % too small in bf16: a factor beside the tensor is not rounded to its type.
    kept, scale = _kept(hidden.shape, probability)
    return torch.where(kept, hidden * scale, 0.0)


def drop_mask(shape: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
    """A tensor of `shape` on the CPU: 0 where dropped, else the reciprocal of the share kept."""
    kept, scale = _kept(shape, probability)
    return kept.to(dtype).mul_(scale)


def _kept(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """(bool of `shape`, whether an element is kept; the reciprocal of the share kept)."""
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)[:count]
    dropped = min(max(round(probability * LEVELS), 1), LEVELS - 1)
    return bits.ge(dropped - LEVELS // 2).view(shape), LEVELS / (LEVELS - dropped)
