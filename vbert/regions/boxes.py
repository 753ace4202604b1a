"""Which boxes of an image are kept: rules by name, each exact, with ties broken by (score, then index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vbert.artifacts.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from vbert.regions.detector import Candidates


class Adaptive(Settings):
    """Every box that scores above `score`, at most `maximum`; where fewer do, the `minimum` best."""

    rule: Literal["adaptive"] = "adaptive"
    version: Literal[1] = 1
    minimum: int = Field(1, ge=0)
    maximum: int = Field(100, ge=1)
    score: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Adaptive:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class Fixed(Settings):
    """The `count` best boxes, whatever they score."""

    rule: Literal["fixed"] = "fixed"
    version: Literal[1] = 1
    count: int = Field(36, ge=1)


class Given(Settings):
    """The boxes of the images' own table, in its order; nothing is detected."""

    rule: Literal["given"] = "given"
    version: Literal[1] = 1


BoxRule = Annotated[Adaptive | Fixed | Given, Field(discriminator="rule")]


class Nms(Settings):
    """Which overlapping boxes are suppressed, before the box rule counts.

    `per_class`: each class apart, on its regressed boxes; a proposal may be kept under several classes (torchvision,
    detectron2). `class_agnostic`: each proposal under its best class, one suppression over all.
    """

    rule: Literal["per_class", "class_agnostic"] = "per_class"
    version: Literal[1] = 1
    iou: float = Field(0.5, gt=0, le=1)


@dataclass(frozen=True)
class Kept:
    """The n boxes kept of an image, best first (of given boxes: in their order)."""

    proposals: Tensor  # int64 [n]: which proposal each came from
    boxes: Tensor  # float32 [n, 4]
    scores: Tensor  # float32 [n]
    classes: Tensor  # int64 [n]


def select(found: Candidates, rule: Adaptive | Fixed | Given, nms: Nms) -> Kept:
    """The boxes that `rule` keeps after `nms`.

    Where suppression leaves fewer than the rule asks for (`minimum`, `count`), the suppressed ones follow by score.
    Candidates are ordered by falling score, equal ones by index: proposal first, then class.
    """
    import torch

    count = found.scores.shape[1]
    if isinstance(rule, Given):
        scores, classes = found.scores.max(1)
        return Kept(torch.arange(len(scores), device=scores.device), found.boxes, scores, classes)
    if nms.rule == "per_class":
        scores = found.scores.reshape(-1)
        flat = torch.arange(len(scores), device=scores.device)
    else:
        scores, classes = found.scores.max(1)
        flat = torch.arange(len(scores), device=scores.device) * count + classes
    order = scores.sort(descending=True, stable=True).indices
    scores, flat = scores[order], flat[order]
    proposals, classes = flat // count, flat % count
    boxes = found.regressed.reshape(-1, 4)[flat]
    groups = classes if nms.rule == "per_class" else torch.zeros_like(classes)
    if isinstance(rule, Fixed):
        least, most, enough = rule.count, rule.count, len(scores)
    else:
        least, most, enough = rule.minimum, rule.maximum, int((scores > rule.score).sum())
    kept = _suppressed(boxes, scores, groups, nms.iou, most)
    kept = kept[: max(least, int((kept < enough).sum()))]
    if len(kept) < least:
        rest = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        rest[kept] = False
        kept = torch.cat([kept, rest.nonzero()[:, 0][: least - len(kept)]])
    return Kept(proposals[kept], boxes[kept], scores[kept], classes[kept])


def _suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, most: int) -> Tensor:
    """Indices of the first `most` boxes that greedy suppression within groups leaves; boxes come best first.

    Works on a growing prefix: what follows never changes what is kept before. torchvision's `batched_nms` is not
    used: it shifts boxes by group, which rounds their coordinates.
    """
    import torch
    from torchvision.ops import nms

    size = max(256, 4 * most)
    while True:
        alive = [
            members[nms(boxes[:size][members], scores[:size][members], iou)]
            for group in sorted(set(groups[:size].tolist()))
            for members in [(groups[:size] == group).nonzero()[:, 0]]
        ]
        kept = torch.cat(alive).sort().values if alive else groups[:0]
        if len(kept) >= most or size >= len(boxes):
            return kept[:most]
        size *= 4
