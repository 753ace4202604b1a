"""A photo of one's own."""

from __future__ import annotations

import io

from PIL import Image


def png(number: int, size: tuple[int, int] = (4, 3)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).save(out, "PNG")
    return out.getvalue()
