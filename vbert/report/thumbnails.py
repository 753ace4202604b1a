"""Thumbnails for the page: small data URIs, and boxes drawn over them as SVG."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

from vbert.data.decode import BadImage
from vbert.errors import BuildError, Damaged, UserError

if TYPE_CHECKING:
    from PIL import Image

BUDGET = 1_700_000  # bytes of all pictures; with the charts' 0.9 MB the page stays below 3 MB
LOSSLESS = 128 * 128  # pixels up to which a thumbnail is a PNG: JPEG harms small scenes
COLOURS = 8  # of boxes, in the style sheet


class OpensImages(Protocol):
    """An `Images`, or a plain folder."""

    def open(self, image_id: str, /) -> Image.Image: ...


@dataclass(frozen=True)
class DrawnBox:
    """A box in pixels of the image as shown. `tone` is a colour of the style sheet."""

    x: float
    y: float
    width: float
    height: float
    name: str
    number: int | None = None
    tone: int = 0
    true: bool = False  # drawn dashed, as ground truth


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail of an image of `width` × `height` pixels; without pixels `uri` is None and `reason` states why."""

    image_id: str
    uri: str | None
    width: int
    height: int
    reason: str = ""
    boxes: list[DrawnBox] = field(default_factory=list)

    def over(self, boxes: Iterable[DrawnBox]) -> Thumbnail:
        return replace(self, boxes=list(boxes))

    @property
    def small(self) -> bool:
        """Whether it has so few pixels that it is enlarged without blurring."""
        return self.width * self.height <= LOSSLESS


class ThumbnailAlbum:
    """The thumbnails of one page: each image is encoded once, and their total stays within a budget of bytes."""

    def __init__(self, side: int, budget: int = BUDGET) -> None:
        self.side, self.left = side, budget
        self._kept: dict[tuple[int, str], Thumbnail] = {}

    def picture(self, images: OpensImages, image_id: str) -> Thumbnail:
        """The thumbnail of an image; without pixels, and with a reason, where the image can't be read.

        Raises Damaged, for the store to repair.
        """
        key = (id(images), image_id)
        if key not in self._kept:
            try:
                self._kept[key] = self._made(images, image_id)
            except Damaged:
                raise
            except (BadImage, BuildError, UserError, KeyError, OSError) as error:
                reason = "no such image" if isinstance(error, KeyError) else str(error)
                self._kept[key] = Thumbnail(image_id, None, 4, 3, reason)
        thumbnail = self._kept[key]
        cost = len(thumbnail.uri or "")
        if cost > self.left:
            return replace(thumbnail, uri=None, reason="left out: the page has as many pictures as it should")
        self.left -= cost
        return thumbnail

    def _made(self, images: OpensImages, image_id: str) -> Thumbnail:
        image = images.open(image_id)
        width, height = image.size
        image.thumbnail((self.side, self.side))
        out = BytesIO()
        if width * height <= LOSSLESS:
            image.save(out, "PNG", optimize=True)
            kind = "png"
        else:
            image.save(out, "JPEG", quality=78, optimize=True)
            kind = "jpeg"
        text = base64.b64encode(out.getvalue()).decode()
        return Thumbnail(image_id, f"data:image/{kind};base64,{text}", width, height)


def boxed(
    corners: Sequence[Sequence[float]], names: Sequence[str], tones: Sequence[int], *, true: bool = False
) -> list[DrawnBox]:
    """Boxes of x1 y1 x2 y2, numbered from 1 (ground truth is not)."""
    return [
        DrawnBox(x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1), name, None if true else i, tone % COLOURS, true=true)
        for i, ((x1, y1, x2, y2), name, tone) in enumerate(zip(corners, names, tones, strict=True), 1)
    ]


def named(kind: str, attributes: Sequence[str]) -> str:
    """`red small circle` of class `circle`: attributes first."""
    return " ".join([*attributes, kind])
