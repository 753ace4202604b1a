"""Which boxes of an image are kept: rules by name, each exact, with ties broken by (score, then index)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vbert.artifacts.settings import Settings


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
