"""Which of 300 proposals are kept, by bottom-up attention's rule over 1,600 classes: ms an image, one thread.

Ours: `vbert.regions.boxes.select`. Peer: the loop that its implementations run (tools/generate_tsv.py, MILVLG, MMF):
for each class torchvision's `nms` and the maximum of what it keeps. Limit: the one overlap matrix of the proposals and
reading the scores once.

Scores are drawn so that a class is likelier than the rest on most proposals, as on photos: `--sharpness` 0 makes all
alike (the worst case: every pair has to be looked at).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measure import alternate, print_result, result
from torch import Tensor
from torchvision.ops import box_iou, nms

from vbert.regions.boxes import Adaptive, ProposalNms, select
from vbert.regions.candidates import Candidates

PROPOSALS, CLASSES, IOU = 300, 1600, 0.3


def candidates(sharpness: float) -> Candidates:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(PROPOSALS, 2, generator=generator) * torch.tensor([600.0, 440.0])
    boxes = torch.cat([corners, corners + 16 + torch.rand(PROPOSALS, 2, generator=generator) ** 2 * 250], 1)
    logits = torch.randn(PROPOSALS, CLASSES + 1, generator=generator) * sharpness
    logits[:, 0] += 3 * sharpness  # background
    return Candidates(boxes, logits.softmax(1)[:, 1:], boxes[:, None].expand(-1, CLASSES, -1), boxes, None)


def class_by_class(boxes: Tensor, scores: Tensor) -> Tensor:
    """The confidence of each proposal."""
    confidence = torch.zeros(len(boxes))
    for c in range(scores.shape[1]):
        column = scores[:, c]
        kept = nms(boxes, column, IOU)
        confidence[kept] = torch.where(column[kept] > confidence[kept], column[kept], confidence[kept])
    return confidence


def ms(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sharpness", type=float, default=3.0, help="spread of the class logits")
    parser.add_argument("--minimum", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = candidates(given.sharpness)
    rule = Adaptive(minimum=given.minimum, maximum=100, score=0.2)
    suppression = ProposalNms(rule="proposals", iou=IOU, widths="continuous")
    taken = alternate(
        {
            "ours": lambda: ms(lambda: select(found, rule, suppression)),
            "peer": lambda: ms(lambda: class_by_class(found.boxes, found.scores)),
            "limit": lambda: ms(lambda: (box_iou(found.boxes, found.boxes), found.scores.max(1))),
        },
        given.rounds,
    )
    settings = vars(given) | {"proposals": PROPOSALS, "classes": CLASSES, "threads": 1}
    settings["confident pairs"] = int((found.scores >= rule.score).sum())
    print_result(
        result(
            "selection",
            ours=taken["ours"],
            peer=taken["peer"],
            peer_name="torchvision.ops.nms class by class",
            limit=taken["limit"],
            unit="ms",
            settings=settings,
            lower_is_better=True,
        )
    )


if __name__ == "__main__":
    main()
