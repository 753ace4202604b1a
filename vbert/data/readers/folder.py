"""A plain folder (or archive) of images, subfolders too. An image's id is its name without the ending.

Names that differ in nothing but the ending (`a.jpg`, `a.png`) keep theirs. A file is an image by its ending; whether it
can be decoded is for `regions` to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vbert.data.readers import ImageRow

if TYPE_CHECKING:
    from vbert.data.raw import Raw

VERSION = 1

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


def images(raws: Mapping[str, Raw]) -> Iterator[ImageRow]:
    """Every file whose name ends as an image's does."""
    found = [(source, name) for source, raw in raws.items() for name in raw.members() if name.lower().endswith(ENDINGS)]
    bare = Counter(_bare(name) for _, name in found)
    for source, name in found:
        image_id = _bare(name) if bare[_bare(name)] == 1 else name
        yield {"image_id": image_id, "path": name, "source": source}


def _bare(name: str) -> str:
    return name.rpartition(".")[0]
