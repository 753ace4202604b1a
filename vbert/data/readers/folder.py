"""A plain folder (or archive) of images, subfolders too. An image's id is its name without the ending.

Names that differ only in their endings (`a.jpg`, `a.png`) keep them, and so does a name whose id would then be taken
(`a.jpg.webp`). A file counts as an image by its ending; stage `regions` finds out whether it can be decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vbert.data.names import is_image
from vbert.data.readers import ImageRow

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2
OWN = ()


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow]:
    """Every file whose name ends as an image's does."""
    files = [(source, name) for source, raw in raws.items() for name in raw.members() if is_image(name)]
    stems = Counter(_stem(name) for _, name in files)
    whole = {name for _, name in files if stems[_stem(name)] > 1}
    for source, name in files:
        image_id = name if name in whole or _stem(name) in whole else _stem(name)
        yield {"image_id": image_id, "path": name, "source": source}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
