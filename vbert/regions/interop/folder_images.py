"""The images of a folder by the ids that features of them have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vbert.data.decode import decode
from vbert.data.names import is_image
from vbert.errors import UserError
from vbert.regions.interop.feature_sets import FolderFiles
from vbert.regions.interop.raw_regions import BadEntry
from vbert.regions.interop.sizes import ImageNames

if TYPE_CHECKING:
    from PIL import Image


class FolderImages:
    """The images of a folder by the ids of features: a name matches without folders and ending too, and by number."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder without images."""
        self._files = FolderFiles(folder)
        self._names = ImageNames(name for name in self._files.members() if is_image(name))
        if not len(self._names):
            raise UserError(f"--images {folder}: there is no image in it")

    def open(self, image_id: str) -> Image.Image:
        """Raises BadImage or UserError."""
        try:
            return decode(self._files.read(self._names.find(image_id, image_id)))
        except BadEntry as error:
            raise UserError(str(error)) from None
