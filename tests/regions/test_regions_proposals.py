"""Proposals of a batch: those of each image alone, and those of a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vbert.regions import suppression
from vbert.regions.backends.proposals import ProposalRule, proposals
from vbert.regions.suppression import best, grouped, overlaps

SIZES = [(64, 96), (60, 90), (33, 96)]  # inputs of one padded size
MAPS = [(16, 24), (8, 12)]


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    return anchors + 8 * deltas


CHOICE = ProposalRule(
    decode,
    torch.sigmoid,
    lambda _, boxes, scores: ((boxes[..., 2:] - boxes[..., :2]) >= 1).all(-1) & (scores >= 0.1),
    before=150,
    after=40,
    iou=0.6,
)


def anchors() -> list[Tensor]:
    out = []
    for high, wide in MAPS:
        stride = 64 // high
        y, x = torch.meshgrid(torch.arange(high) * stride, torch.arange(wide) * stride, indexing="ij")
        corners = torch.stack([x, y, x, y], 2).view(-1, 1, 4)
        sides = torch.tensor([[-12.0, -8, 12, 8], [-6, -9, 6, 9]])
        out.append((corners + sides).view(-1, 4))
    return out


def drawn(images: int) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas of each map; the logits are rounded, so that many tie."""
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(images, 2, *size, generator=generator).mul(4).round() for size in MAPS]
    return logits, [torch.randn(images, 8, *size, generator=generator) for size in MAPS]


def by_a_loop(logits: list[Tensor], deltas: list[Tensor], i: int) -> Tensor:
    """Plainly: one image, one box after another."""
    high, wide = SIZES[i]
    rows: list[tuple[float, list[float]]] = []
    for level, boxes in enumerate(anchors()):
        scores = logits[level][i].permute(1, 2, 0).flatten()
        moves = deltas[level][i].view(2, 4, *MAPS[level]).permute(2, 3, 0, 1).reshape(-1, 4)
        order = sorted(range(len(scores)), key=lambda at, scores=scores: (-float(scores[at]), at))[: CHOICE.before]
        alive: list[Tensor] = []
        for at in order:
            box = (boxes[at] + 8 * moves[at]).clamp(min=0).minimum(torch.tensor([wide, high, wide, high]).float())
            score = float(scores[at].sigmoid())
            if (box[2:] - box[:2] < 1).any() or score < 0.1:
                continue
            if any(float(overlaps(torch.stack([box, other]))[0, 1]) > CHOICE.iou for other in alive):
                continue
            alive.append(box)
            rows.append((score, box.tolist()))
    return torch.tensor([box for _, box in sorted(rows, key=lambda row: -row[0])[: CHOICE.after]])


@pytest.mark.parametrize("by_matrix", [False, True], ids=["one by one", "as a GPU does"])
def test_of_a_batch_are_those_of_a_plain_loop(by_matrix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "_by_matrix", lambda *_: by_matrix)
    logits, deltas = drawn(4)  # a fourth slot is empty
    found = proposals(logits, deltas, anchors(), SIZES, CHOICE)
    assert [len(one) for one in found] == [40, 40, 40]
    for i, mine in enumerate(found):
        assert torch.equal(mine, by_a_loop(logits, deltas, i))
        alone = [one[i : i + 1] for one in logits], [one[i : i + 1] for one in deltas]
        assert torch.equal(mine, proposals(*alone, anchors(), [SIZES[i]], CHOICE)[0])


def test_where_nothing_is_proposed_it_is_the_whole_image() -> None:
    logits, deltas = drawn(3)
    for one in logits:
        one[1] = -30
    found = proposals(logits, deltas, anchors(), SIZES, CHOICE)
    assert found[1].tolist() == [[0, 0, 90, 60]]
    assert len(found[2]) == 40


def test_the_best_are_the_first_of_equals() -> None:
    scores = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).mul(3).round()
    for count in (1, 7, 499, 500, 600):
        found = best(scores, count)
        assert found.shape == (3, min(count, 500))
        for row, mine in zip(scores, found, strict=True):
            assert mine.tolist() == sorted(range(500), key=lambda at, row=row: (-float(row[at]), at))[:count]


def test_a_chain_of_boxes_that_free_each_other() -> None:
    """Every second one is kept, and the answer needs as many rounds as there are boxes."""
    left = torch.arange(300) * 4.0
    chain = torch.stack([left, torch.zeros(300), left + 10, torch.full((300,), 10.0)], 1)
    assert grouped(chain, torch.zeros(300, dtype=torch.int64), 0.3).tolist() == [True, False] * 150
