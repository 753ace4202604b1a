from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvisions

from vbert.regions.backends.roi_align import roi_align

SCALES = (0.25, 0.125)


def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50 // 2**i, 76 // 2**i, 8, generator=generator) for i in range(2)]


def boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([280.0, 180.0])
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 4 + 1)
    return torch.cat([corners, corners + sides], 1)


ODD = torch.tensor(
    [
        [0.0, 0, 304, 200],
        [-50, -60, 400, 300],  # beyond the map on all sides
        [3, 3, 3, 9],  # no width
        [5, 5, 5, 5],
        [0, 20, 304, 24],  # wide and low
        [-400, -10, -300, 20],  # outside
        [303.5, 199.5, 304, 200],
        [4, 8, 32, 36],  # on whole pixels
    ]
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("what", [boxes(200), ODD], ids=["boxes", "odd boxes"])
def test_it_is_torchvisions_roi_align(what: Tensor, side: int, aligned: bool) -> None:
    both = maps()
    levels = torch.arange(len(what)) % 2
    found = roi_align(both, SCALES, what, levels, side, aligned)
    for level, (one, scale) in enumerate(zip(both, SCALES, strict=True)):
        mine = levels == level
        wanted = torchvisions(one.permute(2, 0, 1)[None], [what[mine]], side, scale, 0, aligned)
        assert torch.allclose(found[mine].permute(0, 3, 1, 2), wanted, atol=3e-6)


def test_a_boxs_bits_know_nothing_of_the_other_boxes() -> None:
    both, all_of_them = maps(), boxes(60)
    levels = torch.arange(60) % 2
    whole = roi_align(both, SCALES, all_of_them, levels, 7, True)
    for mine in (torch.tensor([3]), torch.arange(10, 13), torch.arange(59, -1, -1)):
        assert torch.equal(roi_align(both, SCALES, all_of_them[mine], levels[mine], 7, True), whole[mine])
    assert roi_align(both, SCALES, all_of_them[:0], levels[:0], 7, True).shape == (0, 7, 7, 8)
