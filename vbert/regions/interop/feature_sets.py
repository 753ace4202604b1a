"""Any set of region features, opened in place: our shards or a foreign file, read image by image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vbert.artifacts.steps.artifact import files_of
from vbert.data.folders import names_below
from vbert.errors import BuildError, UserError
from vbert.regions import interop
from vbert.regions.interop.boxes_in import BoxesIn, in_pixels
from vbert.regions.interop.importing import image_id_of
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from vbert.regions.contract import Contract
    from vbert.regions.interop import Dtype
    from vbert.regions.interop.sizes import ImageSizes
    from vbert.regions.shards import Shards

SHARDS = "shards"
OFFSETS = "offsets.parquet"  # a file that only a folder of shards has


class FolderFiles:
    """A folder's files, or one file, by name."""

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise UserError(f"{root}: no such file or folder")
        self._root = root
        self.title = str(root)

    def members(self) -> list[str]:
        if self._root.is_file():
            return [self._root.name]
        return sorted(names_below(self._root))

    def read(self, name: str) -> bytes:
        return (self._root if self._root.is_file() else self._root / name).read_bytes()

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()


@dataclass(frozen=True)
class FeatureSet:
    """`read(image_id)` raises BadEntry for an entry that can't be read. Boxes are in pixels of the original image where
    that can be told."""

    path: Path
    format: str  # SHARDS, or a name of interop.FORMATS
    title: str
    ids: Sequence[str]  # sorted
    contract: Contract | None
    read: Callable[[str], RawRegions]
    quarantined: int = 0


@contextmanager
def opened(
    path: Path,
    format: str | None = None,
    ids: str | None = None,
    boxes_in: BoxesIn | None = None,
    sizes: ImageSizes | None = None,
    dtype: Dtype | None = None,
) -> Iterator[FeatureSet]:
    """The features at `path`: a folder of our shards, or a file of a recognised (or named) format. `dtype`: of features
    whose type the format doesn't say. Raises UserError."""
    if format in (None, SHARDS) and (files_of(path) / OFFSETS).is_file():
        if dtype is not None:
            raise UserError(f"--dtype {dtype}: {path} is a folder of shards, which says its type itself; leave it out")
        yield _shards(path)
        return
    if format == SHARDS:
        raise UserError(f"{path}: no folder of shards: there is no {OFFSETS} in it")
    name = interop.recognised(path, format)
    module = interop.load(name)
    files = module.files(path)
    entries: dict[str, list[tuple[str, interop.Place]]] = {}
    for key, place in module.index(files):
        entries.setdefault(image_id_of(key, ids), []).append((key, place))
    with interop.reading(module, files, dtype) as take:

        def read(image_id: str) -> RawRegions:
            first: BadEntry | None = None
            for key, place in entries[image_id]:
                try:
                    return _in_original_pixels(take(key, place), key, boxes_in, sizes, f"{path}: {key}")
                except BadEntry as bad:
                    first = first or bad
            assert first is not None
            raise first

        yield FeatureSet(path, name, module.TITLE, sorted(entries), None, read)


def _in_original_pixels(
    regions: RawRegions, key: str, boxes_in: BoxesIn | None, sizes: ImageSizes | None, where: str
) -> RawRegions:
    """Regions with boxes in pixels of the original image; unchanged where the unit isn't stated."""
    try:
        size = None if sizes is None else sizes.find(key, where)[0]
        return in_pixels(regions, boxes_in, size, where)
    except BadEntry:
        if boxes_in is not None:
            raise
        return regions


def _shards(path: Path) -> FeatureSet:
    from vbert.regions.shards import Shards

    shards = Shards.at(path)
    try:
        contract = shards.contract()
        ids = shards.image_ids()
        quarantined = shards.quarantine().num_rows
    except (BuildError, OSError, ValueError) as error:
        raise UserError(f"{path}: no whole folder of shards ({error})") from None

    def read(image_id: str) -> RawRegions:
        try:
            return of_shards(shards, image_id)
        except (BuildError, OSError, ValueError) as error:
            raise BadEntry(f"{path}: {image_id}", "damaged", str(error)) from None

    return FeatureSet(path, SHARDS, "WebDataset shards of vbert", ids, contract, read, quarantined)


def of_shards(shards: Shards, image_id: str) -> RawRegions:
    """One image of our shards."""
    regions = shards.read(image_id)
    details = regions.details
    return RawRegions(
        features=regions.features,
        boxes=regions.boxes,
        width=details["width"],
        height=details["height"],
        scores=np.asarray(regions.scores, np.float32) if len(regions.scores) == len(regions.features) else None,
        classes=regions.classes if any(regions.classes) else None,
        attributes=regions.attributes if any(regions.attributes) else None,
        attribute_scores=details.get("attribute_scores"),
        distributions=regions.distributions,
    )
