"""Uploaded photos: bytes that nobody vouches for, to pixels within bounds or a sentence why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vbert.data.decode import BadImage, animated, decode, size
from vbert.serve.refused import Refused

if TYPE_CHECKING:
    from PIL import Image

# HTTP statuses of the reasons of BadImage.
STATUSES = {"empty": 422, "not an image": 415, "damaged": 422, "too large": 413, "unsupported": 415}


def read_photo(data: bytes, pixels: int, field: str = "image") -> Image.Image:
    """The photo as shown, RGB. Raises Refused: its size is read from its header, before a pixel is decoded."""
    try:
        width, height = size(data)
        if width * height > pixels:
            most = f"at most {pixels / 1e6:g} million pixels are read: make it smaller"
            raise Refused(413, f"{field}: the photo is {width} × {height}; {most}")
        if animated(data):
            raise Refused(415, f"{field}: the file is animated or holds several pictures: save one picture as a file")
        return decode(data)
    except BadImage as bad:
        raise Refused(STATUSES[bad.reason], f"{field}: {_sentence(bad)}") from None


def _sentence(bad: BadImage) -> str:
    if bad.reason == "empty":
        return "the file is empty: choose a photo"
    if bad.reason == "not an image":
        return f"the file is not an image that can be read ({bad.detail})"
    return f"the photo can't be read: {bad.reason} ({bad.detail})"
