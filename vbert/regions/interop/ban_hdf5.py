"""BAN's (and Hengyuan Hu's) HDF5: all images in one file, and a pickle with the position of each.

Adaptive: image_features float32 [N, d], image_bb [N, 4] x1 y1 x2 y2 in pixels of the original image, spatial_features
[N, 6] (x1/W y1/H x2/W y2/H w/W h/H), pos_boxes int32 [images, 2]: the rows of each image. 36 boxes: the same without
pos_boxes, [images, 36, …]. `<name>_imgid2idx.pkl` beside it maps image ids to images. The sizes of the images are not
in the file as such; they follow from pixels over shares.
Source: `tools/adaptive_detection_features_converter.py` and `tools/detection_features_converter.py` of
github.com/jnhwkim/ban-vqa.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError
from vbert.regions.interop import Place, Read
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, missing_library, sibling

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TITLE = "BAN HDF5 (with its _imgid2idx.pkl)"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
ENDING = "_imgid2idx.pkl"
LARGEST_CHUNK = 256 * 2**20  # bytes that one read may inflate


def holds(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == SIGNATURE
    except OSError:
        return False


def files(path: Path) -> dict[str, Path]:
    index = sibling(path, ENDING)
    if not index.is_file():
        raise UserError(f"{path}: there is no {index.name} beside it, which says where each image is")
    return {"features": path, "index": index}


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    from vbert.data import pickles

    path = files["index"]
    content = pickles.load(path, str(path))
    if not isinstance(content, dict) or not all(isinstance(at, int) and at >= 0 for at in content.values()):
        raise UserError(f"{path}: no dict of image id → place in the HDF5")
    for image_id, at in content.items():
        yield str(image_id), (at,)


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    try:
        import h5py
    except ImportError:
        raise UserError(missing_library("h5py", f"{files['features']}: an HDF5 file")) from None
    path = files["features"]
    try:
        archive = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error})") from None
    with archive:
        features, boxes = (_dataset(archive, name, path) for name in ("image_features", "image_bb"))
        adaptive = "pos_boxes" in archive
        positions = _dataset(archive, "pos_boxes", path) if adaptive else None
        shares = _dataset(archive, "spatial_features", path) if "spatial_features" in archive else None

        def read(key: str, place: Place) -> RawRegions:
            where = f"{path}: image {key}"
            try:
                at = place[0] if positions is None else slice(*(int(n) for n in positions[place[0]]))
                if isinstance(at, slice) and not 0 <= at.start <= at.stop <= len(features):
                    raise ValueError(f"pos_boxes says rows {at.start} to {at.stop} of {len(features)}")
                corners = boxes[at]
                width, height = (None, None) if shares is None else _size(corners, shares[at])
                return RawRegions(features[at], corners, "pixels", width, height)
            except (OSError, ValueError, IndexError) as error:
                raise BadEntry(where, "truncated", f"its rows can't be read ({error})") from None

        yield read


def _dataset(archive: Any, name: str, path: Path) -> Any:
    """A data set of numbers in this file (not linked), in chunks of bounded size."""
    import h5py

    link = archive.get(name, getlink=True)
    dataset = archive[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        raise UserError(f"{path}: no data set {name!r} of numbers in the file itself: is it BAN's?")
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: the numbers of {name!r} lie in other files, which are not read")
    if prod(dataset.chunks or (1,)) * dataset.dtype.itemsize > LARGEST_CHUNK:
        raise UserError(f"{path}: {name!r} is stored in chunks of more than {LARGEST_CHUNK:,} bytes")
    return dataset


def _size(boxes: NDArray[Any], shares: NDArray[Any]) -> tuple[int | None, int | None]:
    """Width and height of the image: pixels over their shares, where that is a whole number for the farthest corner."""
    sides: list[int | None] = []
    for axis in (2, 3):
        side = None
        if len(boxes):
            far = int(boxes[:, axis].argmax())
            share = float(shares[far, axis])
            exact = float(boxes[far, axis]) / share if share > 0 else 0.0
            side = round(exact) if exact >= 1 and abs(exact - round(exact)) < 1e-3 * max(1.0, exact / 1000) else None
        sides.append(side)
    return sides[0], sides[1]
