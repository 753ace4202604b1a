"""Box rules and non-maximum suppression by name, each exact, with ties broken by score, then index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vbert.artifacts.steps.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from vbert.regions.candidates import Candidates


class Adaptive(Settings):
    """Every box that scores above `score`, at most `maximum`; where fewer do, the `minimum` best."""

    rule: Literal["adaptive"] = Field("adaptive", description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")
    minimum: int = Field(1, ge=0, description="boxes kept at least, the best, whatever they score")
    maximum: int = Field(100, ge=1, description="boxes kept at most, the best")
    score: float = Field(
        0.2,
        ge=0,
        le=1,
        description="boxes above it are kept (nms `proposals`: also at it), others only to reach the minimum",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Adaptive:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class Fixed(Settings):
    """The `count` best boxes, whatever they score."""

    rule: Literal["fixed"] = Field("fixed", description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")
    count: int = Field(36, ge=1, description="boxes kept, the best ones")


class Given(Settings):
    """The boxes of the images' own table, in its order; nothing is detected."""

    rule: Literal["given"] = Field("given", description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")


BoxRule = Annotated[Adaptive | Fixed | Given, Field(discriminator="rule")]


class Nms(Settings):
    """Which overlapping boxes are suppressed, before the box rule counts.

    `per_class`: each class apart, on its regressed boxes; a proposal may be kept under several classes (torchvision,
    detectron2). `class_agnostic`: each proposal under its best class, one suppression over all.
    """

    rule: Literal["per_class", "class_agnostic"] = Field("per_class", description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")
    iou: float = Field(0.5, gt=0, le=1, description="overlap above which the weaker box goes")


class ProposalNms(Settings):
    """Bottom-up attention's rule (its tools/generate_tsv.py; also that of MILVLG, MMF and VisualBERT's NLVR2 features).

    Each class apart, but on the proposals as they are, not regressed; overlaps of `iou` or more suppress (MMF: 0.5).
    A proposal's confidence is its best score among the classes that keep it (0 where none does), and it is counted
    once. Kept are those whose confidence is the box rule's `score` or more, in proposal order; where they are fewer
    than `minimum` or more than `maximum`, that many of the highest confidence, in its order. (`fixed`: always so.)
    The boxes kept are the proposals, named by their best class, with its score.
    """

    rule: Literal["proposals"] = Field(description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")
    iou: float = Field(0.3, gt=0, le=1, description="overlap from which on the weaker proposal of a class goes")
    widths: Literal["continuous", "plus_one"] = Field(
        "plus_one", description="of boxes, in overlaps: x2 − x1, or x2 − x1 + 1 as in Fast R-CNN's code"
    )


class RisingNms(Settings):
    """py-bottom-up-attention's `proposal_maxnms`: each proposal under its best class, one suppression over all their
    regressed boxes, whose threshold rises from `iou` by `step` up to `last` until the box rule has as many as it asks
    for (`minimum`, `count`)."""

    rule: Literal["rising"] = Field(description="the rule by name")
    version: Literal[1] = Field(1, description="of the rule")
    iou: float = Field(0.3, gt=0, le=1, description="overlap that is tried first")
    last: float = Field(0.9, gt=0, le=1, description="overlap that is tried last")
    step: float = Field(0.1, gt=0, le=1, description="from one overlap to the next")

    @model_validator(mode="after")
    def _rises(self) -> RisingNms:
        if self.iou > self.last:
            raise ValueError(f"iou {self.iou} is above last {self.last}")
        return self

    def thresholds(self) -> list[float]:
        """The thresholds one after another, in NumPy's `arange` arithmetic."""
        count = 1 + int((self.last - self.iou) / self.step + 1e-6)
        return [self.iou + i * self.step for i in range(count)]


NmsRule = Annotated[Nms | ProposalNms | RisingNms, Field(discriminator="rule")]


@dataclass(frozen=True)
class Detections:
    """The n boxes kept of an image, best first (given boxes: in their order; `ProposalNms`: in its order)."""

    proposals: Tensor  # int64 [n]: the proposal of each box
    boxes: Tensor  # float32 [n, 4]
    scores: Tensor  # float32 [n]
    classes: Tensor  # int64 [n]


def select(candidates: Candidates, rule: Adaptive | Fixed | Given, nms: Nms | ProposalNms | RisingNms) -> Detections:
    """The boxes that `rule` keeps after `nms`.

    Where suppression leaves fewer than the rule asks for (`minimum`, `count`), the suppressed ones follow by score.
    Candidates are ordered by falling score, equal ones by index: proposal first, then class.
    """
    import torch

    if isinstance(rule, Given):
        scores, classes = candidates.scores.max(1)
        return Detections(torch.arange(len(scores), device=scores.device), candidates.boxes, scores, classes)
    if isinstance(nms, ProposalNms):
        return _of_proposals(candidates, rule, nms)
    if nms.rule == "per_class":
        return _per_class(candidates, rule, nms.iou)
    return _best_classes(candidates, rule, nms.thresholds() if isinstance(nms, RisingNms) else [nms.iou])


def _asked(rule: Adaptive | Fixed, scores: Tensor) -> tuple[int, int, int]:
    """(fewest, most boxes that the rule keeps, number of `scores` above its threshold)"""
    if isinstance(rule, Fixed):
        return rule.count, rule.count, scores.numel()
    return rule.minimum, rule.maximum, int((scores > rule.score).sum())


def _per_class(candidates: Candidates, rule: Adaptive | Fixed, iou: float) -> Detections:
    """Works on a growing number of the best pairs of proposal and class: later pairs never change the earlier ones
    kept."""
    from vbert.regions.suppression import best, grouped

    count = candidates.scores.shape[1]
    flat, boxes = candidates.scores.reshape(-1), candidates.regressed.reshape(-1, 4)
    least, most, enough = _asked(rule, flat)
    size = max(256, 4 * most)
    while True:
        pairs = best(flat, size)
        survived = grouped(boxes[pairs], pairs % count, iou).nonzero()[:, 0]
        if len(survived) >= most or size >= len(flat):
            break
        size *= 4
    kept = pairs[_counted(survived, len(pairs), least, most, enough)]
    return Detections(kept // count, boxes[kept], flat[kept], kept % count)


def _counted(survived: Tensor, total: int, least: int, most: int, enough: int) -> Tensor:
    """Which of `total` candidates, best first, are kept: of the survivors at most `most`, those among the first
    `enough` or the first `least`; then, up to `least`, the suppressed."""
    import torch

    kept = survived[:most]
    kept = kept[: max(least, int((kept < enough).sum()))]
    if len(kept) < least:
        rest = torch.ones(total, dtype=torch.bool, device=kept.device)
        rest[kept] = False
        kept = torch.cat([kept, rest.nonzero()[:, 0][: least - len(kept)]])
    return kept


def _best_classes(candidates: Candidates, rule: Adaptive | Fixed, thresholds: Sequence[float]) -> Detections:
    """Each proposal under its best class; the first threshold that leaves enough counts, else the last."""
    from torchvision.ops import nms

    scores, classes = candidates.scores.max(1)
    order = scores.sort(descending=True, stable=True).indices
    scores, classes = scores[order], classes[order]
    boxes = candidates.regressed[order, classes]
    least, most, enough = _asked(rule, scores)
    survived = order[:0]
    for iou in thresholds:
        survived = nms(boxes, scores, iou)
        if len(survived) >= least:
            break
    kept = _counted(survived, len(order), least, most, enough)
    return Detections(order[kept], boxes[kept], scores[kept], classes[kept])


def _of_proposals(candidates: Candidates, rule: Adaptive | Fixed, nms: ProposalNms) -> Detections:
    """One overlap matrix serves all classes. On the CPU, wherever the scores come from: these are many small steps."""

    from vbert.regions.suppression import at_least, overlaps, shared_boxes

    scores, boxes = candidates.scores.float().cpu(), candidates.boxes.float().cpu()
    overlapping = at_least(overlaps(boxes, nms.widths), nms.iou)
    asked = min(rule.count if isinstance(rule, Fixed) else rule.minimum, len(scores))
    # Pairs below `least` change nothing where enough proposals are confident without them.
    first = rule.score if isinstance(rule, Adaptive) else 0.05
    for least in dict.fromkeys((first, min(first, 0.05), 0.0)):
        kept = shared_boxes(overlapping, scores, least)
        confidence = (scores * kept).max(1).values
        if int(at_least(confidence, least).sum()) >= asked:
            break
    by_confidence = confidence.sort(descending=True, stable=True).indices
    if isinstance(rule, Fixed):
        chosen = by_confidence[: rule.count]
    else:
        chosen = at_least(confidence, rule.score).nonzero()[:, 0]
        if not rule.minimum <= len(chosen) <= rule.maximum:
            chosen = by_confidence[: rule.minimum if len(chosen) < rule.minimum else rule.maximum]
    chosen = chosen.to(candidates.scores.device)
    best, classes = candidates.scores[chosen].max(1)
    return Detections(chosen, candidates.boxes[chosen], best, classes)
