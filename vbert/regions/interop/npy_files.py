"""Pythia's and MMF's features: a folder with one `.npy` an image, and `<name>_info.npy` beside it where MMF wrote it.

`<name>.npy`: float32 [n, d]; Pythia's `fix_100` is no more than this, without boxes. `<name>_info.npy`: an array of one
object, hence a pickle: {"bbox": float32 [n, 4] x1 y1 x2 y2 in pixels of the original image, "num_boxes": how many of
the rows count (the rest is padding), "objects": int64 [n], from 0 without the background, "cls_prob": float32 [n, C],
"image_width", "image_height"}. The name, folders below included, is the image's. (MMF's own way back from an LMDB,
`lmdb_conversion.py --mode extract`, writes the width as the height too: give `--images` for such files.)
Source: `tools/scripts/features/extract_features_vmb.py` and `mmf/datasets/databases/readers/feature_readers.py` of
github.com/facebookresearch/mmf.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.data.names import safe_name
from vbert.errors import UserError
from vbert.regions.interop import Place, Read, folder_files
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, numbered, sibling

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
TITLE = "MMF / Pythia .npy (a folder of them, or one)"
ENDING, INFO = ".npy", "_info.npy"


def holds(path: Path) -> bool:
    return folder_files.any_of(path, ENDING, INFO)


def files(path: Path) -> dict[str, Path]:
    if path.is_dir():
        return {"features": path}
    info = sibling(path, INFO)
    return {"features": path} | ({"info": info} if info.is_file() else {})


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return folder_files.all_of(files["features"], ENDING, INFO)


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    root = files["features"]

    def read(_: str, place: Place) -> RawRegions:
        path = folder_files.file_of(root, place)
        features = _array(path)
        if isinstance(features, bytes):
            raise BadEntry(str(path), "objects", "it holds a pickled object where an array of features is wanted")
        info = files.get("info") if root.is_file() else sibling(path, INFO)
        if info is None or not info.is_file():
            return described(features, None, str(path))
        info_array = _array(info)
        if not isinstance(info_array, bytes):
            raise BadEntry(str(info), "damaged", "it holds numbers where a pickled dict is wanted")
        return described(features, unpickled(info_array, str(info)), str(info))

    yield read


def _array(path: Path) -> NDArray[Any] | bytes:
    from vbert.regions.interop.npy_bytes import read_npy

    try:
        with path.open("rb") as file:
            return read_npy(file, path.stat().st_size, str(path))
    except OSError as error:
        raise BadEntry(str(path), "unreadable", str(error.strerror)) from None


def unpickled(data: bytes, where: str) -> Any:
    from vbert.data import pickles

    try:
        return pickles.load(data, where)
    except pickles.UnsafePickle as error:
        raise BadEntry(where, "unsafe pickle", error.message.removeprefix(f"{where}: ")) from None


def as_array(value: Any, name: str, where: str) -> NDArray[Any]:
    """A pickle's value under `name` as an array. Raises BadEntry for lists of different lengths and the like."""
    import numpy as np

    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise BadEntry(where, "damaged", f"{name} is no array") from None


def described(features: NDArray[Any], about: Any, where: str) -> RawRegions:
    """Features [n, d] with the fields of MMF's dict, cut to its `num_boxes`. Raises BadEntry."""
    import numpy as np

    if features.ndim != 2 or features.dtype.kind != "f":
        raise BadEntry(where, "no regions", f"features are {features.dtype} {features.shape}, not float [n, d]")
    if about is None:
        return RawRegions(features)
    if not isinstance(about, dict):
        raise BadEntry(where, "damaged", f"it holds a {type(about).__name__} where a dict is wanted")
    rows = len(features)
    n = _count(about.get("num_boxes"), rows, where)

    def part(name: str, valid: Callable[[NDArray[Any]], bool]) -> NDArray[Any] | None:
        value = about.get(name)
        if value is None:
            return None
        array = as_array(value, name, where)
        if array.ndim == 0 or len(array) < n or not valid(array):
            raise BadEntry(where, "damaged", f"{name} is {array.dtype} {array.shape} for {n} of {rows} regions")
        return array[:n]

    boxes = part("bbox", lambda a: a.ndim == 2 and a.shape[1] == 4 and a.dtype.kind in "fiu")
    objects = part("objects", lambda a: a.ndim == 1 and a.dtype.kind in "iu")
    shares = part("cls_prob", lambda a: a.ndim == 2 and a.dtype.kind == "f")
    scores = None
    if shares is not None and objects is not None and (not n or 0 <= objects.min() <= objects.max() < shares.shape[1]):
        scores = shares[np.arange(n), objects]  # the probability of the named class
    return RawRegions(
        features=features[:n],
        boxes=None if boxes is None else boxes.astype(np.float32),
        width=_side(about.get("image_width")),
        height=_side(about.get("image_height")),
        scores=scores,
        classes=None if objects is None else numbered(objects),
        distributions=shares,
    )


def _count(value: Any, rows: int, where: str) -> int:
    if value is None:
        return rows
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= rows:
        raise BadEntry(where, "damaged", f"num_boxes is {value!r:.40} for {rows} rows of features")
    return value


def _side(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None


def write(target: Path, entries: Iterable[tuple[str, RawRegions]]) -> dict[str, Any]:
    """Write `<id>.npy` and `<id>_info.npy` of each entry below the folder `target`. Returns counts.

    MMF reads the info by `np.load(allow_pickle=True)`, so a pickle it is: of the protocol and with the names that numpy
    1 knows too (numpy 2 would write `numpy._core`, which the environments of those systems can't import).
    """
    import numpy as np

    images, regions = 0, 0
    for image_id, entry in entries:
        path = target / f"{safe_name(image_id)}.npy"
        if path.name.endswith(INFO):
            raise UserError(f"image id {image_id!r} ends like the name of an info file and can't be exported as npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(entry.features, np.float32), allow_pickle=False)
        info = sibling(path, INFO)
        info.write_bytes(_info(entry))
        images, regions = images + 1, regions + len(entry.features)
    return {"images": images, "regions": regions, "zeros": []}


def _info(regions: RawRegions) -> bytes:
    import numpy as np

    n = len(regions.features)
    about: dict[str, Any] = {
        "bbox": None if regions.boxes is None else np.asarray(regions.boxes, np.float32),
        "num_boxes": n,
        "image_width": regions.width,
        "image_height": regions.height,
    }
    if regions.classes is not None and all(name.isdecimal() for name in regions.classes):
        about["objects"] = np.asarray([int(name) for name in regions.classes], np.int64)
    elif regions.classes is not None:
        about["classes"] = list(regions.classes)
    if regions.distributions is not None:
        about["cls_prob"] = np.asarray(regions.distributions, np.float32)
    if regions.scores is not None:
        about["scores"] = np.asarray(regions.scores, np.float32)
    out = BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(out, header)
    data = pickle.dumps(np.array(about, dtype=object), protocol=3)
    out.write(data.replace(b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n"))
    return out.getvalue()
