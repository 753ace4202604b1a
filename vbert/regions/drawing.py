"""Pictures of regions: images with boxes and names over them, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")
TILE = 480  # pixels of a drawn image's longer side


def check_name(target: Path) -> None:
    """Raises UserError for a name without an ending of a picture format."""
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"-o {target}: give the picture a name that ends in .png or .jpg")


def tile(
    picture: Image.Image, boxes: NDArray[np.floating[Any]], names: Sequence[str], caption: str, side: int = TILE
) -> Image.Image:
    """The picture at `side` pixels, `boxes` (x1 y1 x2 y2 in its own) with their names over it, `caption` below it."""
    from PIL import ImageDraw

    scale = side / max(picture.size)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    pen = ImageDraw.Draw(small)
    for at, corners in list(enumerate(boxes * scale))[::-1]:  # the first ones on top
        colour = COLOURS[at % len(COLOURS)]
        x1, y1, x2, y2 = (float(side) for side in corners)
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2)
        label = _drawable(names[at])
        pen.rectangle(pen.textbbox((x1 + 2, y1 + 1), label), fill=colour)
        pen.text((x1 + 2, y1 + 1), label, fill="white")
    return _captioned(small, caption)


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    from PIL import Image, ImageDraw

    out = Image.new("RGB", (picture.width, picture.height + 16), "white")
    out.paste(picture, (0, 0))
    ImageDraw.Draw(out).text((2, picture.height + 2), _drawable(text), fill="black")
    return out


def _drawable(text: str) -> str:
    """The text without characters that Pillow's own font may lack."""
    return text.encode("latin-1", "replace").decode("latin-1")


def side_by_side(tiles: Sequence[Image.Image]) -> Image.Image:
    """Rows of at most three."""
    from PIL import Image

    rows = [tiles[at : at + 3] for at in range(0, len(tiles), 3)]
    width = max(sum(tile.width + 4 for tile in row) for row in rows)
    out = Image.new("RGB", (width, sum(max(tile.height for tile in row) + 4 for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for tile in row:
            out.paste(tile, (left, top))
            left += tile.width + 4
        top += max(tile.height for tile in row) + 4
    return out
