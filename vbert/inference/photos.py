"""Images as they come: a path, bytes, a Pillow image or an array; and a detector that finds their regions."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.data.names import given_path
from vbert.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vbert.regions.contract import Contract
    from vbert.regions.detector import DetectorWeights, RegionSettings
    from vbert.regions.extract import Extraction
    from vbert.regions.shards import Regions

KEPT = 64  # images whose regions are kept, the latest: several questions about one are asked of one extraction


@dataclass(frozen=True)
class Photo:
    """An image as shown (mode RGB), its name in errors, and the digest of its pixels."""

    name: str
    picture: Image.Image

    @cached_property
    def digest(self) -> str:
        about = f"{self.picture.size}".encode()
        return hashlib.sha256(about + self.picture.tobytes()).hexdigest()


def photo(given: Any, name: str = "") -> Photo:
    """The image in `given`: a path, the bytes of an image file, a Pillow image, or an array, uint8 [height, width, 3]
    or [height, width]. Turned as its EXIF says; transparent pixels over white. Raises UserError, naming it."""
    from PIL import Image

    from vbert.data.decode import BadImage, as_shown, decode

    if isinstance(given, Photo):
        return given
    try:
        if isinstance(given, str | os.PathLike):
            path = Path(given_path(given, name or "the image"))
            return Photo(name or str(path), decode(_bytes(path)))
        if isinstance(given, bytes | bytearray | memoryview):
            return Photo(name or "the image", decode(bytes(given)))
        if isinstance(given, Image.Image):
            return Photo(name or getattr(given, "filename", "") or "the image", as_shown(given))
    except BadImage as bad:
        known = given if isinstance(given, str | os.PathLike) else getattr(given, "filename", "") or "the image"
        raise UserError(f"{name or known}: {bad}") from None
    if hasattr(given, "__array__"):
        return Photo(name or "the image", Image.fromarray(_pixels(given, name or "the image")))
    raise UserError(
        f"{name or 'the image'}: {type(given).__name__} is no image; give a path, the bytes of a file, a Pillow image "
        "or a uint8 array [height, width, 3]"
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None


def _pixels(given: Any, name: str) -> Any:
    """uint8 [height, width, 3]. Raises UserError for another shape or type, whose range and order can't be known."""
    import numpy as np

    array = np.asarray(given)
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] != 3)
        or not array.size
    ):
        raise UserError(
            f"{name}: an array {list(array.shape)} of {array.dtype}; give uint8 [height, width, 3], colours in the "
            "order RGB, or [height, width] of grey"
        )
    grey = array.ndim == 2
    return np.ascontiguousarray(np.repeat(array[..., None], 3, 2) if grey else array)


class Looker:
    """Finds the regions of photos, as the stage `regions` does: same bits."""

    def __init__(self, detector: DetectorWeights, contract: Contract, device: str) -> None:
        """contract: of the model that reads the regions. Raises UserError where the detector makes other ones."""
        from vbert.regions.contract import check
        from vbert.regions.detector import RegionSettings

        self.settings: RegionSettings = RegionSettings(boxes=contract.boxes, nms=contract.nms)
        made = detector.contract(self.settings)
        check(contract, made, ("the model", "its detector"))
        self.contract, self._detector, self._device = made, detector, device
        self._kept: OrderedDict[str, Regions] = OrderedDict()

    @cached_property
    def _extraction(self) -> Extraction:
        from vbert.regions.detector import ExtractionNumerics
        from vbert.regions.extract import Extraction

        loaded = self._detector.load(self._device)
        return Extraction(None, loaded, self._detector.spec(), self.settings, ExtractionNumerics(), self._device)

    def regions(self, photos: Sequence[Photo]) -> list[Regions]:
        """Those of each photo. Raises UserError for one whose features are not finite."""
        found = []
        for one in photos:
            if one.digest not in self._kept:
                self._kept[one.digest] = self._made(one)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(one.digest)
            found.append(self._kept[one.digest])
        return found

    def forget(self) -> None:
        """Drops the regions that were kept for further questions."""
        self._kept.clear()

    def _made(self, one: Photo) -> Regions:
        import torch

        from vbert.data.decode import BadImage
        from vbert.regions.extract import ImageJob
        from vbert.regions.shards import Regions

        job = ImageJob(one.name, one.name, "", *one.picture.size)
        with torch.no_grad():
            (sample,) = self._extraction.samples([job], [self._extraction.detector.prepare(one.picture)])
        if isinstance(sample, BadImage):
            raise UserError(f"{one.name}: {sample}")
        return Regions(sample.features, sample.boxes, sample.json())
