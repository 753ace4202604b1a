from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import box_iou, nms

from vbert.regions.boxes import Adaptive, Detections, Fixed, Given, Nms, ProposalNms, RisingNms, select
from vbert.regions.candidates import Candidates
from vbert.regions.suppression import above, at_least, overlaps

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


def overlap(a: np.ndarray, b: np.ndarray, more: float) -> np.float32:
    """Of two boxes, as Fast R-CNN's loop computes it."""
    wide = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]) + np.float32(more))
    high = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]) + np.float32(more))
    sizes = [(x[2] - x[0] + np.float32(more)) * (x[3] - x[1] + np.float32(more)) for x in (a, b)]
    return wide * high / (sizes[0] + sizes[1] - wide * high)


def class_by_class(found: Candidates, rule: Adaptive | Fixed, rule_nms: ProposalNms) -> list[int]:
    """Bottom-up attention's rule as its source states it: a loop over the classes, in each one over the boxes."""
    scores, boxes = found.scores.numpy(), found.boxes.numpy()
    more = 1.0 if rule_nms.widths == "plus_one" else 0.0
    apart = [[float(overlap(a, b, more)) < rule_nms.iou for b in boxes] for a in boxes]
    confidence = np.zeros(len(boxes), np.float32)
    for c in range(scores.shape[1]):
        kept: list[int] = []
        for p in sorted(range(len(boxes)), key=lambda p: (-scores[p, c], p)):
            if all(apart[p][k] for k in kept):
                kept.append(p)
                confidence[p] = max(confidence[p], scores[p, c])
    by_confidence = sorted(range(len(boxes)), key=lambda p: (-confidence[p], p))
    if isinstance(rule, Fixed):
        return by_confidence[: rule.count]
    good = [p for p in range(len(boxes)) if float(confidence[p]) >= rule.score]
    if len(good) < rule.minimum:
        return by_confidence[: rule.minimum]
    return by_confidence[: rule.maximum] if len(good) > rule.maximum else good


PROPOSALS = [ProposalNms(rule="proposals"), ProposalNms(rule="proposals", iou=0.5, widths="continuous")]
PROPOSAL_RULES = [
    Adaptive(minimum=2, maximum=35, score=0.5),  # in between: proposal order
    Adaptive(minimum=2, maximum=5, score=0.1),  # more than the maximum
    Adaptive(minimum=30, maximum=35, score=0.9),  # fewer than the minimum
    Adaptive(minimum=40, maximum=40, score=0.2),  # all, most of them suppressed
    Adaptive(minimum=0, maximum=9, score=1.0),
    Fixed(count=12),
    Fixed(count=100),
]


@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("rule_nms", PROPOSALS, ids=str)
def test_the_rule_on_proposals_is_that_of_a_loop_over_the_classes(rule_nms: ProposalNms, ties: bool) -> None:
    counts = set()
    for seed in range(3):
        found = candidates(seed, proposals=40, classes=7, ties=ties)
        if ties:
            found.boxes[20:] = found.boxes[:20].round()  # and equal boxes
        for rule in PROPOSAL_RULES:
            kept = select(found, rule, rule_nms)
            assert kept.proposals.tolist() == class_by_class(found, rule, rule_nms), rule
            assert torch.equal(kept.boxes, found.boxes[kept.proposals])  # of the proposals, not regressed
            best, classes = found.scores[kept.proposals].max(1)
            assert torch.equal(kept.scores, best)
            assert torch.equal(kept.classes, classes)
            counts.add(len(kept.proposals))
    assert len(counts) > 4


def test_the_rule_on_proposals_with_1600_classes_is_torchvisions_nms_in_each() -> None:
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 500
    boxes = torch.cat([corners, corners + 16 + torch.rand(300, 2) * 200], 1)
    scores = (torch.randn(300, 1600) * 3).softmax(1)
    found = Candidates(boxes, scores, boxes[:, None], boxes, None)
    confidence = torch.zeros(300)
    for c in range(1600):
        alive = nms(boxes, scores[:, c], 0.3)
        confidence[alive] = torch.maximum(confidence[alive], scores[alive, c])
    for rule in (Adaptive(minimum=10, maximum=300, score=0.2), Adaptive(minimum=250, maximum=300, score=0.2)):
        wanted = (confidence >= 0.2).nonzero()[:, 0]
        if len(wanted) < rule.minimum:
            wanted = confidence.sort(descending=True, stable=True).indices[: rule.minimum]
        kept = select(found, rule, ProposalNms(rule="proposals", widths="continuous"))
        assert kept.proposals.tolist() == wanted.tolist()


def rising(found: Candidates, rule: Adaptive | Fixed) -> Detections:
    """The loop of py-bottom-up-attention's demo/detectron2_mscoco_proposal_maxnms.py, which has no score threshold."""
    scores, classes = found.scores.max(1)
    boxes = torch.stack([found.regressed[p, c] for p, c in enumerate(classes.tolist())])
    least, most = (rule.count, rule.count) if isinstance(rule, Fixed) else (rule.minimum, rule.maximum)
    for threshold in np.arange(0.3, 1.0, 0.1):
        alive = nms(boxes, scores, threshold)[:most]
        if len(alive) >= least:
            break
    return Detections(alive, boxes[alive], scores[alive], classes[alive])


@pytest.mark.parametrize("count", [5, 12, 20, 28])
def test_the_threshold_rises_until_enough_boxes_are_left(count: int) -> None:
    for seed in range(8):
        found = candidates(seed, ties=False)
        ours, theirs = select(found, Fixed(count=count), RisingNms(rule="rising")), rising(found, Fixed(count=count))
        assert len(theirs.scores) == count
        for name in ("proposals", "boxes", "scores", "classes"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (seed, name)


def test_a_fixed_number_is_kept_even_where_the_last_threshold_leaves_fewer() -> None:
    found = candidates(3, ties=False)
    found.regressed[:] = found.regressed[:1, :1]  # all in one place
    kept = select(found, Fixed(count=4), RisingNms(rule="rising"))
    assert kept.scores.tolist() == found.scores.max(1).values.sort(descending=True).values[:4].tolist()


def test_rising_thresholds_are_numpys() -> None:
    assert RisingNms(rule="rising").thresholds() == pytest.approx(np.arange(0.3, 1.0, 0.1), abs=1e-12)
    assert RisingNms(rule="rising", iou=0.5, last=0.5).thresholds() == [0.5]
    with pytest.raises(ValidationError, match=r"iou 0.95 is above last 0.9"):
        RisingNms(rule="rising", iou=0.95)


def test_overlaps_are_torchvisions_and_with_a_pixel_more_fast_rcnns() -> None:
    found = candidates(2)
    assert torch.equal(overlaps(found.boxes), box_iou(found.boxes, found.boxes))
    a, b = np.float32([10, 10, 19, 19]), np.float32([20, 10, 29, 19])  # side by side: one pixel of width 0 between them
    assert overlaps(torch.tensor(np.stack([a, b])))[0, 1] == 0
    boxes = found.boxes.numpy()
    ours = overlaps(found.boxes, "plus_one").numpy()
    assert all(ours[i, j] == overlap(boxes[i], boxes[j], 1.0) for i in range(12) for j in range(40))


def test_thresholds_are_compared_as_real_numbers() -> None:
    """0.3 as float32 is 0.30000001192: above 0.3, though torch says they are equal."""
    value = torch.tensor([0.3, 0.5, 0.7])  # 0.7 as float32 is below 0.7
    assert [above(value, t).tolist()[i] for i, t in enumerate((0.3, 0.5, 0.7))] == [True, False, False]
    assert [at_least(value, t).tolist()[i] for i, t in enumerate((0.3, 0.5, 0.7))] == [True, True, False]
