"""Units of the boxes in foreign files, and their conversion to pixels of the original image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from vbert.artifacts.steps.settings import Settings
from vbert.errors import UserError
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLACK = 1.5  # pixels beyond the image that rounding and inclusive corners explain
SHARE_SLACK = 0.01  # the same in shares of the image
SMALL = 3  # pixels of a side: in smaller images a box of one pixel is plausible
CHOICES = "original, recorded, resized:SHORT, resized:SHORT,LONG, normalised or none"

Size = tuple[int, int]  # width, height


class BoxesIn(Settings):
    """`original`: pixels of the image. `recorded`: of the size that the file records, when that is a resized one.
    `resized`: of the image resized so that its shorter side is `short`, unless the longer one gets above `long`.
    `normalised`: shares of width and height. `none`: the boxes are left out."""

    kind: Literal["original", "recorded", "resized", "normalised", "none"]
    short: int | None = None
    long: int | None = None

    @classmethod
    def parse(cls, text: str) -> BoxesIn:
        """`original`, `resized:800`, `resized:800,1333`. Raises UserError."""
        kind, _, sides = text.partition(":")
        numbers = [side.strip() for side in sides.split(",")] if sides else []
        valid = kind in ("original", "recorded", "normalised", "none") and not numbers
        if kind == "resized" and len(numbers) in (1, 2) and all(n.isdecimal() and int(n) > 0 for n in numbers):
            return cls(kind="resized", short=int(numbers[0]), long=int(numbers[1]) if len(numbers) == 2 else None)
        if not valid:
            raise UserError(f"--boxes-in {text!r}: give {CHOICES}")
        return cls.model_validate({"kind": kind})


def scale(size: Size, short: int, long: int | None) -> float:
    """Resized pixels per original pixel: the rule of Faster R-CNN in all its implementations, before rounding."""
    factor = short / min(size)
    return factor if long is None else min(factor, long / max(size))


def in_pixels(regions: RawRegions, boxes_in: BoxesIn | None, size: Size | None, where: str) -> RawRegions:
    """`regions` with boxes in pixels of the original image, clipped to it, and with the image's size.

    `size` is that of `--images` or `--sizes`; without it the size recorded in the file counts, unless it is that of a
    resized image. Without a `boxes_in` the format's unit counts. Raises BadEntry.
    """
    import numpy as np

    recorded = (regions.width, regions.height) if regions.width and regions.height else None
    kind = boxes_in.kind if boxes_in is not None else "normalised" if regions.unit == "normalised" else "original"
    original = size if size is not None or kind == "recorded" else recorded
    original_size = None if original is None else original[0], None if original is None else original[1]
    if regions.boxes is None or kind == "none":
        return replace(regions, boxes=None, unit="pixels", width=original_size[0], height=original_size[1])
    if regions.unit == "normalised" and kind != "normalised":
        raise BadEntry(
            where, "units", f"boxes are shares of the image in this format, not {kind!r}; leave out --boxes-in"
        )
    if original is None:
        raise BadEntry(
            where,
            "no size",
            f"{regions.note}{', and ' if regions.note else ''}the image's size isn't known: give --images FOLDER or "
            "--sizes FILE, or --boxes-in none to leave the boxes out",
        )
    if kind == "original" and recorded is not None and recorded != original:
        raise BadEntry(
            where,
            "another size",
            f"the file says {_by(recorded)}, the image is {_by(original)}: give --boxes-in recorded if boxes are in "
            f"pixels of what the file says, or --boxes-in resized:SHORT,LONG",
        )
    divisor: tuple[float, float] = (1.0, 1.0)  # numbers in the file per pixel of the image
    if kind == "recorded":
        if recorded is None:
            raise BadEntry(where, "no size", "the file records no size that --boxes-in recorded could mean")
        divisor = (recorded[0] / original[0], recorded[1] / original[1])
    elif kind == "resized":
        assert boxes_in is not None
        assert boxes_in.short is not None
        divisor = (scale(original, boxes_in.short, boxes_in.long),) * 2
    elif kind == "normalised":
        divisor = (1 / original[0], 1 / original[1])
    boxes = np.asarray(regions.boxes, np.float64) / np.asarray([*divisor, *divisor])
    _refuse_outside(boxes, divisor, original, kind, where)
    limits = np.asarray([*original, *original], np.float64)
    return replace(
        regions,
        boxes=np.clip(boxes, 0, limits).astype(np.float32),
        unit="pixels",
        width=original[0],
        height=original[1],
    )


def refuse_other_corners(regions: RawRegions, boxes_in: BoxesIn | None, where: str) -> None:
    """Refuse boxes that can't be two corners in the stated unit. Raises BadEntry.

    These are boxes whose second corner lies before their first (x, y, width, height), and shares of the image in place
    of pixels. All zeros pass: some files have them in place of boxes.
    """
    boxes = regions.boxes
    if boxes is None or not len(boxes) or (boxes_in is not None and boxes_in.kind == "none"):
        return
    shares = regions.unit == "normalised" or (boxes_in is not None and boxes_in.kind == "normalised")
    if float((boxes[:, 2:] - boxes[:, :2]).min()) < -(SHARE_SLACK if shares else SLACK):
        problem = (
            "the second corner of a box lies before its first: boxes must be x1, y1, x2, y2, not x, y, width, height"
        )
        raise BadEntry(where, "corners", f"{problem}; mend them, or leave boxes out with --boxes-in none")
    small = regions.width and regions.height and min(regions.width, regions.height) <= SMALL
    if not shares and not small and 0 < float(boxes.max()) <= 1:
        problem = "all boxes lie in the image's first pixel: they are shares of the image"
        raise BadEntry(where, "units", f"{problem}; give --boxes-in normalised")


def _refuse_outside(boxes: NDArray[Any], divisor: tuple[float, float], original: Size, kind: str, where: str) -> None:
    if not len(boxes):
        return
    slack = [SLACK / min(1.0, d) if kind == "resized" else SLACK for d in divisor]
    beyond = [max(0.0, float(boxes[:, axis::2].max()) - original[axis]) / slack[axis] for axis in (0, 1)]
    if max(beyond) > 1 or boxes.min() < -max(slack):
        axis = int(beyond[1] > beyond[0])
        far = float(boxes[:, axis::2].max())
        side = ("wide", "high")[axis]
        hint = (
            "they are in pixels of a resized image: give --boxes-in resized:SHORT,LONG (800,1333; bottom-up attention "
            "600,1000)"
            if kind == "original"
            else f"--boxes-in {kind} isn't what they are in"
        )
        raise BadEntry(where, "outside", f"boxes reach {far:.1f} in an image {original[axis]} pixels {side}; {hint}")


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
