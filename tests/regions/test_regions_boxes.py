from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import box_iou

from vbert.regions.boxes import Adaptive, Fixed, Given, Nms, select
from vbert.regions.detector import Candidates

RULES = [
    Adaptive(minimum=0, maximum=100, score=0.4),
    Adaptive(minimum=3, maximum=5, score=0.3),
    Adaptive(minimum=8, maximum=8, score=0.99),
    Fixed(count=1),
    Fixed(count=36),
]


def candidates(seed: int, proposals: int = 40, classes: int = 5, ties: bool = True) -> Candidates:
    torch.manual_seed(seed)
    corners = torch.rand(proposals, classes, 2) * 60
    regressed = torch.cat([corners, corners + 5 + torch.rand(proposals, classes, 2) * 40], 2)
    scores = torch.rand(proposals, classes)
    if ties:
        scores = (scores * 8).round() / 8  # many equal ones
    return Candidates(regressed[:, 0].clone(), scores, regressed, torch.rand(proposals, 3), None)


def reference(found: Candidates, rule: Adaptive | Fixed, nms: Nms) -> list[tuple[int, int]]:
    """(proposal, class) kept, by the definitions, one pair at a time."""
    pairs = []
    for p, row in enumerate(found.scores.tolist()):
        best = max(range(len(row)), key=lambda c: (row[c], -c))
        pairs += [(-score, p, c) for c, score in enumerate(row) if nms.rule == "per_class" or c == best]
    pairs.sort()
    flat, count = found.regressed.reshape(-1, 4), found.scores.shape[1]
    overlaps = box_iou(flat, flat).tolist()
    kept: list[tuple[float, int, int]] = []
    for pair in pairs:
        rivals = [k for k in kept if nms.rule == "class_agnostic" or k[2] == pair[2]]
        if all(overlaps[pair[1] * count + pair[2]][p * count + c] <= nms.iou for _, p, c in rivals):
            kept.append(pair)
    rest = [pair for pair in pairs if pair not in kept]
    if isinstance(rule, Fixed):
        wanted = (kept + rest)[: rule.count]
    else:
        above = [pair for pair in kept if -pair[0] > rule.score][: rule.maximum]
        wanted = above if len(above) >= rule.minimum else (kept + rest)[: rule.minimum]
    return [(p, c) for _, p, c in wanted]


@pytest.mark.parametrize("nms", [Nms(rule="per_class", iou=0.5), Nms(rule="class_agnostic", iou=0.3)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules_keep_what_their_definitions_say(rule: Adaptive | Fixed, nms: Nms) -> None:
    for seed in range(6):
        found = candidates(seed)
        kept = select(found, rule, nms)
        assert list(zip(kept.proposals.tolist(), kept.classes.tolist(), strict=True)) == reference(found, rule, nms)
        assert torch.equal(kept.boxes, found.regressed[kept.proposals, kept.classes])
        assert torch.equal(kept.scores, found.scores[kept.proposals, kept.classes])


def test_the_growing_prefix_changes_nothing() -> None:
    found = candidates(0, proposals=400, classes=20)  # 8,000 pairs, far more than the first prefix
    kept = select(found, Adaptive(minimum=0, maximum=300, score=0.0), Nms(iou=0.05))
    whole = select(found, Fixed(count=8000), Nms(iou=0.05))
    assert torch.equal(kept.proposals, whole.proposals[: len(kept.proposals)])
    assert len(kept.proposals) > 64


def test_per_class_is_torchvisions_own_rule() -> None:
    from torchvision.models.detection.roi_heads import RoIHeads

    heads = RoIHeads(None, None, None, 0.5, 0.5, 8, 0.5, None, score_thresh=0.3, nms_thresh=0.5, detections_per_img=15)
    heads.box_coder.decode = lambda deltas, _: deltas  # boxes come decoded
    for seed in range(20):
        found = candidates(seed, ties=False)
        logits = torch.cat([torch.full((40, 1), 0.2), found.scores], 1).log()
        boxes = torch.cat([found.regressed[:, :1], found.regressed], 1)
        (theirs,), (scores,), (labels,) = heads.postprocess_detections(logits, boxes, [found.boxes], [(1000, 1000)])
        softened = Candidates(found.boxes, logits.softmax(1)[:, 1:], found.regressed, found.features, None)
        ours = select(softened, Adaptive(minimum=0, maximum=15, score=0.3), Nms(rule="per_class", iou=0.5))
        assert len(ours.scores)
        assert torch.equal(ours.boxes, theirs)
        assert torch.equal(ours.scores, scores)
        assert torch.equal(ours.classes, labels - 1)


def test_given_keeps_all_in_their_order() -> None:
    found = candidates(1)
    kept = select(found, Given(), Nms())
    assert torch.equal(kept.boxes, found.boxes)
    assert kept.proposals.tolist() == list(range(40))


def test_a_rule_whose_minimum_is_above_its_maximum_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum 5 is above maximum 4"):
        Adaptive(minimum=5, maximum=4)
