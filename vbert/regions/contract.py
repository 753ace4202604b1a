"""The feature contract: the properties that must agree between features used to pre-train, fine-tune and predict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vbert.artifacts.steps.settings import Plugin, Settings, Since
from vbert.errors import UserError, nearest
from vbert.regions.boxes import BoxRule, NmsRule

NAME = "contract.json"
NEVER = ("dim", "coordinates", "box_input")  # the weights are made for them
Layer = Literal["fc6", "fc7", "res5_pool"]
BoxInput = Literal["none", "append6"]


class Preprocessing(Settings):
    """From decoded RGB pixels to the detector's input: resize, then (x · scale − mean) / std per channel.

    `pillow`, `torch`: bilinear with antialias, of uint8. `bilinear`, `opencv`: (x · scale − mean) / std first, then its
    floats resized, bilinear without antialias: as torchvision's GeneralizedRCNNTransform does, or as Caffe's Fast R-CNN
    does, by one factor for both sides, to the nearest size in pixels.
    """

    resize: Literal["none", "pillow", "torch", "bilinear", "opencv"] = Field("none", description="the rule by name")
    short_side: int | None = Field(None, description="pixels of the shorter side after resizing, unless …")
    long_side: int | None = Field(None, description="… the longer one would get longer than this")
    rounding: Annotated[Literal["down", "nearest"], Since("down")] = Field(
        "down", description="of both sides: torchvision, detectron2"
    )
    colours: Literal["RGB", "BGR"] = Field("RGB", description="their order")
    scale: float = Field(1 / 255, description="each pixel value, 0 to 255, is multiplied by it")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from each colour")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="each colour is divided by")


class Contract(Settings):
    """How region features came about. Shards, models and published checkpoints' specs carry one.

    None: not stated (imported features). `detector` is "unknown" then, and `coordinates` "none" without boxes.
    """

    detector: str  # name of the detector's spec
    backend: Plugin | None
    weights: str | None  # sha256 of the detector's weights
    layer: Layer | None
    dim: int
    dtype: Literal["float16"] = "float16"  # of features in shards
    boxes: BoxRule | None
    nms: NmsRule | None
    ties: Literal["score, then index"] = "score, then index"
    features_of: Literal["proposals", "regressed", "given"] | None
    preprocessing: Preprocessing | None
    coordinates: Literal["xyxy pixels of the image as shown", "none"] = "xyxy pixels of the image as shown"
    box_input: BoxInput | None = None  # None: shards hold boxes, and the model chooses

    def with_box_input(self, box_input: BoxInput) -> Contract:
        """The contract of a model with this box input. Raises UserError where this contract states another."""
        if box_input != "none" and self.coordinates == "none":
            raise UserError(f"box_input {box_input!r}: the features have no boxes; set `model.box_input` to none")
        if self.box_input not in (None, box_input):
            raise UserError(f"box_input {box_input!r}: the features are made for {self.box_input!r}; set it in `model`")
        return self.model_copy(update={"box_input": box_input})

    def write(self, directory: Path) -> None:
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        (directory / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Contract:
        return cls.model_validate_json(path.read_bytes())


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def differences(a: Contract, b: Contract) -> dict[str, tuple[Any, Any]]:
    """Dotted field → its value in `a` and in `b`, where they differ. An open `box_input` differs from nothing, and to a
    model that reads no boxes it is all the same whether features have some."""
    left, right = (dict(_leaves(c.model_dump(mode="json"))) for c in (a, b))
    names = [*left, *(name for name in right if name not in left)]
    different = {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
    if None in different.get("box_input", ()):
        del different["box_input"]
    if "none" in (a.box_input, b.box_input):
        different.pop("coordinates", None)
    return different


def check(a: Contract, b: Contract, names: tuple[str, str] = ("the model", "the shards")) -> None:
    """Refuse features that don't fit together. Raises UserError naming each field that differs, and both values."""
    _refuse(differences(a, b), names, "")


def overridden(
    a: Contract, b: Contract, accepted: Sequence[str], names: tuple[str, str] = ("the start", "the shards")
) -> dict[str, tuple[Any, Any]]:
    """What differs and is `accepted` all the same: fields, or such as hold them (`nms` of `nms.iou`). Raises UserError
    as `check` does for the others."""
    different = differences(a, b)
    kept = {field: pair for field, pair in different.items() if any(_holds(one, field) for one in accepted)}
    left = {field: pair for field, pair in different.items() if field not in kept}
    words = sorted({field.partition(".")[0] for field in left})
    possible = not any(field in NEVER for field in words)
    _refuse(left, names, f", or write `accept_contract: [{', '.join(words)}]` to override it" if possible else "")
    return kept


def in_words(different: Mapping[str, Sequence[Any]], names: tuple[str, str] = ("the start", "the shards")) -> list[str]:
    """A sentence a field."""
    return [f"{field} is {x!r} for {names[0]}, {y!r} for {names[1]}" for field, (x, y) in different.items()]


def acceptable(fields: Sequence[str]) -> Sequence[str]:
    """`fields`, if each is one of a contract's that can be overridden. Raises ValueError."""
    for field in fields:
        first = field.partition(".")[0]
        if first not in Contract.model_fields:
            raise ValueError(f"a contract has no field {field!r}; {nearest(first, Contract.model_fields)}")
        if first in NEVER:
            raise ValueError(f"{field} can't be overridden: the weights are made for it")
    return fields


def _holds(one: str, field: str) -> bool:
    return field == one or field.startswith(f"{one}.")


def _refuse(different: Mapping[str, Sequence[Any]], names: tuple[str, str], remedy: str) -> None:
    if not different:
        return
    first, *rest = in_words(different, names)
    raise UserError(
        f"region features don't fit: {first}; extract both with the same detector and `regions` settings{remedy}",
        "\n".join(rest),
    )
