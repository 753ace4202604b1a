"""Candidates: a detector's output for the proposals of one image, from which a box rule keeps some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """A detector's output for one image's P proposals; boxes x1 y1 x2 y2 in pixels of the image as shown."""

    boxes: Tensor  # [P, 4] float32: the proposals
    scores: Tensor  # [P, C] float32: probabilities of the classes, background left out
    regressed: Tensor  # [P, C, 4] float32: boxes by class
    features: Tensor  # [P, d] float32: of the proposals, at the contract's layer
    attributes: Tensor | None  # [P, A] float32: probabilities
