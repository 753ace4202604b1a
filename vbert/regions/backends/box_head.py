"""Shared by box heads: a constant number of rows, and candidates in pixels of the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vbert.regions.candidates import Candidates
from vbert.regions.detector import DetectorInput
from vbert.regions.pixels import limits_of, scales_of


def padded_rows(values: Tensor, rows: int) -> Tensor:
    """[n, …] padded with zeros to [rows, …]: a row's bits depend on the number of rows in a matrix product, not on
    their content."""
    return pad(values, (0, 0) * (values.dim() - 1) + (0, rows - len(values)))


def candidates(
    inputs: Sequence[DetectorInput],
    boxes: Sequence[Tensor],
    scores: Tensor,
    regressed: Tensor,
    features: Tensor,
    attributes: Tensor | None = None,
    smallest: float = 0.0,
) -> list[Candidates]:
    """The candidates of each image, from a box head's output for the boxes of all images.

    boxes [n, 4] of each image and regressed [N, C or 1, 4] are in pixels of the inputs, to which the regressed are
    clipped; scores [N, C], features [N, d] and attributes [N, A] are as in `Candidates`. A regressed box with a side of
    less than `smallest` pixels of the input has the score 0.
    """
    counts = [len(mine) for mine in boxes]
    limits, scales = (_each_row(of(inputs, scores.device), counts) for of in (limits_of, scales_of))
    regressed = torch.minimum(regressed.clamp(min=0), limits[:, None])
    if smallest:
        scores = scores.where((regressed[..., 2:] - regressed[..., :2] >= smallest).all(-1), 0.0)
    regressed = (regressed / scales[:, None]).expand(-1, scores.shape[1], 4)
    columns = [torch.split(column, counts) for column in (torch.cat(list(boxes)) / scales, scores, regressed, features)]
    attribute_scores = [None] * len(inputs) if attributes is None else torch.split(attributes, counts)
    return [Candidates(*one) for one in zip(*columns, attribute_scores, strict=True)]


def _each_row(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The row of `values` [B, k] that belongs to each of an image's `counts` rows: [sum of counts, k]."""
    return torch.cat([value.expand(count, -1) for value, count in zip(values, counts, strict=True)])
