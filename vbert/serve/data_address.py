"""A picture in an address: `data:image/png;base64,…`."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS = 128 * 128  # pixels up to which a picture is a PNG: JPEG harms small scenes


def data_address(picture: Image.Image) -> str:
    target, small = BytesIO(), picture.width * picture.height <= LOSSLESS
    picture.save(target, "PNG" if small else "JPEG")
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(target.getvalue()).decode()}"
