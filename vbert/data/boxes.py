"""Boxes of annotation files, converted to pixels of the photos as shown. One rule for all readers.

- The size that a file states is compared with the photo's own. One that is missing or no positive whole number (0,
  "640", 640.0) is used where it fits and counts as unknown elsewhere.
- Boxes in stored pixels are turned as the photo's EXIF orientation turns its pixels (see `Pixels`).
- Boxes are cut at the photo's border. Unusable boxes are left out and counted by fault: `not_finite` (or beyond
  float32), `swapped` (x2 < x1, a negative width), `empty` (no width or height in float32), `outside` (no part of it
  lies in the photo). `cut` counts boxes that reached more than a pixel beyond the border.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vbert.errors import UserError

# The pixels in which an annotation file gives boxes of a photo that its EXIF turns: those of the stored file, those as
# shown, or whichever have the width and height that the annotation file states (as shown, if both do).
Pixels = Literal["stated", "stored", "shown"]
Corners = tuple[float, float, float, float]
Size = tuple[int, int]

UNUSABLE = ("not_finite", "swapped", "empty", "outside")
ROUNDING = 1  # pixels by which sizes and borders may differ: tools round
LARGEST = 3.4e38  # float32's, as boxes are stored
SURE = 1 / 64  # pixels by which sides differ in float32 too, below 2^17


@dataclass(frozen=True, slots=True)
class StatedSize:
    """A photo's size as its annotation file writes it, and the pixels in which that file gives boxes.

    `scale`: boxes are scaled where the photo has another size. `where`: the place in the file, for errors.
    """

    width: Any
    height: Any
    where: str
    pixels: Pixels = "stated"
    scale: bool = False


@dataclass(frozen=True, slots=True)
class PhotoHeader:
    """Width and height of a photo's stored pixels, and its EXIF orientation; 0×0 where it can't be opened."""

    width: int
    height: int
    orientation: int = 1

    @property
    def stored(self) -> Size:
        return self.width, self.height

    @property
    def shown(self) -> Size:
        return (self.height, self.width) if self.orientation >= 5 else self.stored


class ExifTransform:
    """Maps boxes in a photo's stored pixels, width × height, to pixels as shown, by its EXIF orientation."""

    def __init__(self, orientation: int, width: int, height: int) -> None:
        self.orientation, self.width, self.height = orientation, width, height

    def __call__(self, box: Sequence[float]) -> Corners:
        """x1 y1 x2 y2 (x2 and y2 exclusive) in stored pixels → the same box in pixels as shown."""
        x1, y1, x2, y2 = box
        w, h = self.width, self.height
        return {
            1: (x1, y1, x2, y2),
            2: (w - x2, y1, w - x1, y2),
            3: (w - x2, h - y2, w - x1, h - y1),
            4: (x1, h - y2, x2, h - y1),
            5: (y1, x1, y2, x2),
            6: (h - y2, x1, h - y1, x2),
            7: (h - y2, w - x2, h - y1, w - x1),
            8: (y1, w - x2, y2, w - x1),
        }[self.orientation]


@dataclass(frozen=True, slots=True)
class BoxFrame:
    """The coordinate frame of one photo's boxes: its size in pixels (None: unknown), and its mapping to pixels as
    shown."""

    size: Size | None
    scale: tuple[float, float] = (1.0, 1.0)
    turn: ExifTransform | None = None

    def fit(self, box: Corners) -> tuple[str, Corners]:
        """(fault, box as shown) of x1 y1 x2 y2; the fault is one of UNUSABLE, `cut` or ""."""
        x1, y1, x2, y2 = box
        across, down = self.scale
        width, height = self.size or (0, 0)
        within = 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height  # whole numbers beyond any float compare, too
        within = within and x1 < x2 - SURE and y1 < y2 - SURE
        if within and across == down == 1.0 and max(width, height) < 2**17:  # as most are
            return "", box if self.turn is None else self.turn(box)
        if any(not abs(side) <= LARGEST for side in box):  # NaN is below nothing
            return "not_finite", (0, 0, 0, 0)
        if x2 < x1 or y2 < y1:
            return "swapped", (x1, y1, x2, y2)
        if x2 == x1 or y2 == y1:
            return "empty", (x1, y1, x2, y2)
        x1, y1, x2, y2 = whole = (x1 * across, y1 * down, x2 * across, y2 * down)
        x1, y1 = max(x1, 0.0), max(y1, 0.0)
        if self.size is not None:
            x2, y2 = min(x2, float(self.size[0])), min(y2, float(self.size[1]))
        if x1 >= x2 or y1 >= y2:
            return "outside", whole
        kept = (x1, y1, x2, y2)
        if not _has_area(kept):
            return "empty", whole
        cut = max(abs(a - b) for a, b in zip(whole, kept, strict=True)) > ROUNDING
        return "cut" if cut else "", kept if self.turn is None else self.turn(kept)


def _has_area(box: Corners) -> bool:
    """Whether a box has an area in float32."""
    x1, y1, x2, y2 = struct.unpack("<4f", struct.pack("<4f", *box))
    return bool(x1 < x2 and y1 < y2)


def frame(photo: PhotoHeader, stated: StatedSize | None) -> BoxFrame | None:
    """The frame of the boxes of `photo`; None where the stated size has another scale or aspect."""
    known = photo if photo.width else None
    if stated is None:
        return BoxFrame(known.shown if known else None)
    stated_size = _whole(stated.width), _whole(stated.height)
    size = (stated_size[0], stated_size[1]) if stated_size[0] and stated_size[1] else None
    if known is None:
        return BoxFrame(size)
    fits = [sides for sides in (known.shown, known.stored) if size is not None and _alike(size, sides)]
    stored = stated.pixels == "stored" or (stated.pixels == "stated" and fits == [known.stored])
    scale = (1.0, 1.0)
    if size is not None and not fits and all(isinstance(side, int) for side in (stated.width, stated.height)):
        if not stated.scale:
            return None
        if stated.pixels == "stated":
            stored = _apart(size, known.stored) < _apart(size, known.shown)
        width, height = known.stored if stored else known.shown
        scale = width / size[0], height / size[1]
    if stored:
        return BoxFrame(known.stored, scale, ExifTransform(known.orientation, *known.stored))
    return BoxFrame(known.shown, scale)


def _whole(side: Any) -> int:
    """A side in pixels as files write it; 0 for any other value."""
    try:
        value = float(side)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(value) if 0 < value < 2**31 and value == int(value) else 0


def _alike(one: Size, other: Size) -> bool:
    return all(abs(a - b) <= ROUNDING for a, b in zip(one, other, strict=True))


def _apart(one: Size, other: Size) -> float:
    """The difference in aspect of two sizes."""
    return abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1]))


class BoxConverter:
    """Converts readers' rows (see `readers.BoxRow`) to rows of `boxes.parquet`, and counts the boxes left out."""

    def __init__(self, photos: Mapping[str, PhotoHeader]) -> None:
        self._photos = photos
        self.kept = 0
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The usable boxes. Raises UserError, at the end, where photos don't have the stated sizes."""
        other: dict[str, str] = {}
        frames: dict[str, tuple[StatedSize | None, BoxFrame | None]] = {}
        for row in rows:
            image_id, stated, where = row["image_id"], row.get("stated"), row.get("where", "")
            if (reason := row.get("left_out")) is not None:
                self._count(reason, where)
                continue
            known = frames.get(image_id)
            if known is None or known[0] is not stated:
                photo = self._photos.get(image_id, PhotoHeader(0, 0))
                known = frames[image_id] = stated, frame(photo, stated)
                if known[1] is None and stated is not None:
                    turned = f" (stored as {photo.width}×{photo.height})" if photo.shown != photo.stored else ""
                    other[image_id] = (
                        f"{stated.where}: says {stated.width}×{stated.height} for the image {image_id!r}, whose file "
                        f"has {photo.shown[0]}×{photo.shown[1]}{turned}"
                    )
            pixels = known[1]
            if pixels is None:
                continue
            wrong, (x1, y1, x2, y2) = pixels.fit((row["x1"], row["y1"], row["x2"], row["y2"]))
            if wrong:
                self._count(wrong, where)
            if wrong not in UNUSABLE:
                self.kept += 1
                yield {
                    "image_id": image_id,
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "class": row["class"],
                    "attributes": row["attributes"],
                }
        if other:
            more = f", and {len(other) - 1:,} more images are of another size" if len(other) > 1 else ""
            raise UserError(
                f"{next(iter(other.values()))}{more}; are these the photos that were annotated? If they were resized, "
                f"`options: {{scale_boxes: true}}` scales their boxes"
            )

    def kept_of(self, image_ids: Sequence[str], boxes: Sequence[Sequence[float]], where: str) -> list[Sequence[float]]:
        """The usable boxes of one text, in pixels as shown; of several images, whatever their size."""
        photo = self._photos.get(image_ids[0]) if len(image_ids) == 1 else None
        pixels = frame(photo or PhotoHeader(0, 0), None)
        kept: list[Sequence[float]] = []
        for box in boxes:
            if len(box) != 4 or pixels is None:  # no box at all: refused where it is written
                kept.append(box)
                continue
            x1, y1, x2, y2 = box
            wrong, corners = pixels.fit((x1, y1, x2, y2))
            if wrong:
                self._count(wrong, where)
            if wrong not in UNUSABLE:
                self.kept += 1
                kept.append(list(corners))
        return kept

    def _count(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self._first.setdefault(reason, where)

    def figures(self) -> dict[str, int]:
        """The count of each fault that occurred, as `boxes_outside`."""
        return {f"boxes_{reason}": self.counts[reason] for reason in sorted(self.counts)}

    def sentences(self) -> list[str]:
        """Sentences on the boxes' faults, with a place for each kind; empty where there are none."""
        sentences = []
        if lost := [reason for reason in UNUSABLE if self.counts[reason]]:
            count = sum(self.counts[reason] for reason in lost)
            parts = ", ".join(f"{self.counts[reason]:,} {self._named(reason)}" for reason in lost)
            sentences.append(f"{count:,} of {count + self.kept:,} boxes can't be used and are left out: {parts}")
        if self.counts["cut"]:
            sentences.append(
                f"boxes cut at the border of their photo: {self.counts['cut']:,} (the first: {self._first['cut']})"
            )
        return sentences

    def _named(self, reason: str) -> str:
        first = self._first[reason]
        return reason.replace("_", " ") + (f" (the first: {first})" if first else "")
