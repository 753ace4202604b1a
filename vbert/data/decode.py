"""Bytes of an image file to pixels as shown. Files are not trusted: few formats, bounded sizes, every fault named."""

from __future__ import annotations

import re
import warnings
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

from vbert.data.file_kinds import ENOUGH, file_kind

if TYPE_CHECKING:
    from PIL import Image

# Common formats of photos, out of the many that Pillow knows; their endings are `names.IMAGE_ENDINGS`.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own bound (a quarter GiB of RGB), where it only warns
ORIENTATION = 0x0112  # EXIF tag

PNG = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG that its (first) picture as shown is made of; others are texts, profiles, times and the like.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fcTL", b"fdAT")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # frames whose coefficients come bit by bit (ITU T.81, table B.1)
AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker but those inside a scan
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
# Endings that a decoder would take for missing bits; without them libjpeg makes up zeros. There are several, because a
# difference in the last block is lost where its colours are clipped.
FILLINGS = (b"", b"\xfe" * 4096, b"\xaa" * 4096, b"\x55" * 4096, bytes((73 * i + 41) % 251 for i in range(4096)))


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
def _pillow() -> tuple[str, ...]:
    """The formats among FORMATS that this Pillow reads."""
    from PIL import Image

    # Pillow's warnings (large pictures, odd EXIF) are errors here or make no difference.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    formats = _pillow()
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        image = Image.open(BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise BadImage("not an image", _unrecognised(data)) from None
    except Image.DecompressionBombError as error:
        raise BadImage("too large", str(error)) from None
    except Exception as error:
        raise BadImage("damaged", _reason(error, data)) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("too large", f"{image.width}×{image.height}, at most {MAX_PIXELS:,} pixels")
    return image


def _orientation(image: Image.Image, data: bytes | None) -> int:
    """The EXIF orientation, 1–8; 1 where there is none or the EXIF can't be read. data: the file's; None: unknown."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, size included
    if image.format == "PNG" and data is not None and b"eXIf" not in data:
        return 1  # Pillow decodes a whole PNG to look for it
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1  # a photo with broken EXIF is still a photo
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def size(data: bytes) -> tuple[int, int]:
    """(width, height) as shown, from the header alone. Raises BadImage."""
    width, height, orientation = read_header(data)
    return (height, width) if orientation >= 5 else (width, height)


def read_header(data: bytes) -> tuple[int, int, int]:
    """(width, height) as stored and the EXIF orientation (1–8), from the header alone. Raises BadImage."""
    image, data = _opened(data)
    return *image.size, _orientation(image, data)


def kind(data: bytes) -> str:
    """The format, as Pillow calls it, by the header alone. Raises BadImage."""
    return str(_opened(data)[0].format)


def animated(data: bytes) -> bool:
    """Whether the file holds several pictures, as frames or pages. A JPEG's further ones (a depth, a preview) are no
    pictures of their own. Raises BadImage."""
    image, data = _opened(data)
    try:
        return image.format not in ("JPEG", "MPO") and bool(getattr(image, "is_animated", False))
    except Exception as error:
        raise BadImage("damaged", _reason(error, data)) from None


def decode(data: bytes) -> Image.Image:
    """The (first) picture of an image file as shown: mode RGB, EXIF orientation applied.

    Transparent pixels are laid over white, what pages and viewers show behind them; 16-bit greys keep their high
    byte, as Pillow does for 16-bit colours; grey, palette and CMYK are converted. Where all pixels are there, a JPEG
    may lack its end mark, and what else a PNG holds may be beyond Pillow's limits or broken. Raises BadImage.
    """
    image, data = _opened(data)
    try:
        return _shown(image, data)
    except BadImage as bad:
        if bad.reason != "damaged" or (mended := _repaired(data)) is None:
            raise
        return mended


def as_shown(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened or made, as `decode` shows that of a file. Raises BadImage."""
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("too large", f"{image.width}×{image.height}, at most {MAX_PIXELS:,} pixels")
    if not image.width * image.height:
        raise BadImage("empty", f"{image.width}×{image.height} pixels")
    return _shown(image, None)


def _opened(data: bytes) -> tuple[Image.Image, bytes]:
    """The image, and the bytes that it is read from: of a PNG that Pillow refuses, those of its picture alone."""
    try:
        return _open(data), data
    except BadImage as bad:
        if bad.reason not in ("damaged", "not an image") or (bare := _bare_png(data)) is None:
            raise
    return _open(bare), bare


def _repaired(data: bytes) -> Image.Image | None:
    """The picture as shown of a damaged file, where all its pixels are there."""
    try:
        if (bare := _bare_png(data)) is not None:
            return _shown(_open(bare), bare)
        if data.startswith(JPEG_START) and _lacks_only_end(data):
            body = data.removesuffix(b"\xff")
            ends = [filling + JPEG_END for filling in FILLINGS]
            if b"\xff\xdd" in body:  # restart intervals: what lacks may begin with the marker of the next one
                before = [int.from_bytes(n) for n in RESTART.findall(body)]
                following = bytes([0xFF, 0xD0 + (before[-1] - 0xD0 + 1) % 8 if before else 0xD0])
                ends += [following + end for end in ends[1:]]
            image = _shown(_open(body + ends[0]), body)
            wanted = image.tobytes()
            if all(_shown(_open(body + end), body).tobytes() == wanted for end in ends[1:]):
                return image
    except BadImage:
        pass
    return None


def _bare_png(data: bytes) -> bytes | None:
    """A PNG without the chunks that its picture isn't made of; None for another format, or where there are none."""
    if not data.startswith(PNG):
        return None
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if kind in PNG_CHUNKS:
            kept.append(data[at:end])
        at = len(data) if kind == b"IEND" else end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def _lacks_only_end(data: bytes) -> bool:
    """Whether a JPEG without end mark has begun all its scans, down to the last bit of each coefficient.

    `_repaired` checks that the last scan is whole: then bytes behind it change no pixel.
    """
    progressive, waiting, at = False, dict[int, set[int]](), 2
    try:
        while True:
            while data[at] == 0xFF:
                at += 1
            marker, size = data[at], int.from_bytes(data[at + 1 : at + 3])
            segment, at = data[at + 3 : at + 1 + size], at + 1 + size
            if marker == 0xD9 or size < 2:
                return False
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: its components' ids
                progressive = marker in PROGRESSIVE
                waiting = {segment[6 + 3 * i]: set(range(64)) for i in range(segment[5])}
            if marker != 0xDA:
                continue
            count = segment[0]  # a scan: components, first and last coefficient, bits that it leaves to others
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            for component in segment[1 : 1 + 2 * count : 2]:
                if not progressive or not bits & 15:
                    waiting[component] -= set(range(first, last + 1)) if progressive else set(range(64))
            if (following := AFTER_SCAN.search(data, at)) is None:
                return not any(waiting.values())
            at = following.start()
    except (IndexError, KeyError, ValueError):
        return False


def _unrecognised(data: bytes) -> str:
    """The kind of a file that Pillow doesn't recognise as one of FORMATS."""
    what = file_kind(data[:ENOUGH]) or f"it begins with {data[:8]!r}"
    if what.partition(" ")[2].removesuffix(" picture").replace(" ", "").upper() in FORMATS:
        return f"{what} whose header is broken"
    return f"{what}; read are {', '.join(FORMATS)}"


def _reason(error: Exception, data: bytes | None) -> str:
    """A sentence for Pillow's `error`."""
    what, detail = (file_kind(data[:ENOUGH]) if data else "") or "a picture", str(error)
    if "truncated" in detail.lower() or isinstance(error, EOFError):
        return f"{what} that ends in the middle of its pixels"
    if "data stream" in detail:
        return f"{what} whose packed pixels are broken"
    return f"{what} that can't be decoded ({type(error).__name__}: {error})"


def _shown(image: Image.Image, data: bytes | None) -> Image.Image:
    from PIL import Image

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
        raise BadImage("damaged", _reason(error, data)) from None


def _high_byte(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    return Image.fromarray((values >> 8).astype(np.uint8))
