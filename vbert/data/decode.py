"""Bytes of an image file to pixels as shown. Files are not trusted: few formats, bounded sizes, every fault named."""

from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own bound (a quarter GiB of RGB), where it only warns
ORIENTATION = 0x0112  # EXIF tag


class BadImage(Exception):
    """An image file that can't be used.

    `reason` is one of: empty, not an image, damaged, too large, unsupported; `detail` is the decoder's word.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@cache
def _pillow() -> None:
    # What it warns of (large pictures, odd EXIF) is an error here or makes no difference.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _open(data: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    _pillow()
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("not an image", f"none of {', '.join(FORMATS)}: begins with {data[:8]!r}") from None
    except Image.DecompressionBombError as error:
        raise BadImage("too large", str(error)) from None
    except Exception as error:
        raise BadImage("damaged", f"{type(error).__name__}: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("too large", f"{image.width}×{image.height}, at most {MAX_PIXELS:,} pixels")
    return image


def _orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation, 1–8; 1 where there is none or the EXIF can't be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, size included
    if image.format == "PNG" and b"eXIf" not in data:
        return 1  # Pillow decodes a whole PNG to look for it
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1  # a photo with broken EXIF is still a photo
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def size(data: bytes) -> tuple[int, int]:
    """(width, height) as shown, from the header alone. Raises BadImage."""
    width, height, orientation = laid_out(data)
    return (height, width) if orientation >= 5 else (width, height)


def laid_out(data: bytes) -> tuple[int, int, int]:
    """(width, height) as stored and the EXIF orientation (1–8), from the header alone. Raises BadImage."""
    image = _open(data)
    return *image.size, _orientation(image, data)


def decode(data: bytes) -> Image.Image:
    """The (first) picture of an image file as shown: mode RGB, EXIF orientation applied.

    Transparent pixels are laid over white, what pages and viewers show behind them; 16-bit greys keep their high
    byte, as Pillow does for 16-bit colours; grey, palette and CMYK are converted. Raises BadImage.
    """
    from PIL import Image

    image = _open(data)
    try:
        orientation = _orientation(image, data)
        image.load()
        if image.mode.startswith("I;16"):
            image = _high_byte(image)
        elif image.mode in ("I", "F"):
            raise BadImage("unsupported", f"pixels of mode {image.mode}: no range is known to map to 0–255")
        if image.has_transparency_data:
            colours = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
        image = image.convert("RGB")
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(orientation)
        return image if turn is None else image.transpose(turn)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage("damaged", f"{type(error).__name__}: {error}") from None


def _high_byte(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    return Image.fromarray((values >> 8).astype(np.uint8))
