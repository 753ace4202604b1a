"""MCAN's, openvqa's and bottom-up-attention.pytorch's features: a folder with one `.npz` an image.

x: float [d, n] (MCAN and openvqa transpose it) or [n, d] (bottom-up-attention.pytorch): regions are along the axis that
is as long as there are boxes. bbox: [n, 4] x1 y1 x2 y2 in pixels of the original image; num_bbox: how many of them
count; image_h, image_w; cls_prob [n, C]; info: a pickled dict of objects_id, objects_conf, attrs_id, attrs_conf, each
[n], from 0 without the background. The name, folders below included, is the image's.
Source: `core/data/data_utils.py` of github.com/MILVLG/mcan-vqa, `extract_features.py` of
github.com/MILVLG/bottom-up-attention.pytorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.regions.interop import Place, Read, folder_files
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, numbered

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TITLE = "MCAN / bottom-up-attention.pytorch .npz (a folder of them, or one)"
ENDING = ".npz"
LARGEST_FILE = 1 << 30  # bytes
ARRAYS = ("x", "bbox", "num_bbox", "image_h", "image_w", "cls_prob")
INFO = "info"
OF_REGIONS = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")  # in `info`


def holds(path: Path) -> bool:
    return folder_files.any_of(path, ENDING)


def files(path: Path) -> dict[str, Path]:
    return {"features": path}


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return folder_files.all_of(files["features"], ENDING)


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    root = files["features"]

    def read(_: str, place: Place) -> RawRegions:
        path = folder_files.file_of(root, place)
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise BadEntry(str(path), "too large", f"more than {LARGEST_FILE:,} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise BadEntry(str(path), "unreadable", str(error.strerror)) from None
        return _parse(data, str(path))

    yield read


def _parse(data: bytes, where: str) -> RawRegions:
    import numpy as np

    from vbert.regions.interop.npy_bytes import read_members
    from vbert.regions.interop.npy_files import unpickled

    members = read_members(data, (*ARRAYS, INFO), where)
    pickled = members.pop(INFO, None)
    about = unpickled(pickled, where) if isinstance(pickled, bytes) else {}
    arrays = {name: value for name, value in members.items() if not isinstance(value, bytes)}
    x, boxes = arrays.get("x"), arrays.get("bbox")
    if x is None or x.ndim != 2 or x.dtype.kind != "f" or (boxes is not None and not _are_boxes(boxes)):
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in arrays.items()) or "none of them"
        raise BadEntry(where, "damaged", f"no float x of two axes and bbox [n, 4], but {shapes}")
    stated = _whole(arrays.get("num_bbox"), "num_bbox", where)
    rows = len(boxes) if boxes is not None else stated
    n = rows if stated is None else stated
    if rows is None or n is None or rows not in x.shape or not 0 <= n <= rows:
        raise BadEntry(where, "damaged", f"x is {x.shape}, and there are {rows} boxes of which {n} count")
    if x.shape[0] == x.shape[1]:
        raise BadEntry(where, "two readings", f"x is {x.shape}, so along which axis the regions are can't be told")
    features = x if x.shape[0] == rows else x.T
    shares = arrays.get("cls_prob")
    if shares is not None and (shares.ndim != 2 or len(shares) < n or shares.dtype.kind != "f"):
        raise BadEntry(where, "damaged", f"cls_prob is {shares.dtype} {shares.shape} for {n} regions")
    of = _described(about, n, where)
    attributes, scores = of.get("attrs_id"), of.get("attrs_conf")
    return RawRegions(
        features=np.ascontiguousarray(features[:n]),
        boxes=None if boxes is None else boxes[:n].astype(np.float32),
        width=_whole(arrays.get("image_w"), "image_w", where) or None,
        height=_whole(arrays.get("image_h"), "image_h", where) or None,
        scores=of.get("objects_conf"),
        classes=None if "objects_id" not in of else numbered(of["objects_id"]),
        attributes=None if attributes is None else [[name] for name in numbered(attributes)],
        attribute_scores=None if attributes is None or scores is None else [[float(score)] for score in scores],
        distributions=None if shares is None else shares[:n],
    )


def _are_boxes(boxes: NDArray[Any]) -> bool:
    return boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype.kind in "fiu"


def _described(about: Any, n: int, where: str) -> dict[str, NDArray[Any]]:
    """The regions' fields in `info`. Raises BadEntry where their number differs."""
    from vbert.regions.interop.npy_files import as_array

    if not isinstance(about, dict):
        raise BadEntry(where, "damaged", f"info holds a {type(about).__name__} where a dict is wanted")
    arrays = {
        name: as_array(about[name], name, where).reshape(-1) for name in OF_REGIONS if about.get(name) is not None
    }
    for name, value in arrays.items():
        if len(value) < n or value.dtype.kind not in ("iu" if name.endswith("_id") else "fiu"):
            raise BadEntry(where, "damaged", f"info: {name} is {value.dtype} {value.shape} for {n} regions")
    return {name: value[:n] for name, value in arrays.items()}


def _whole(value: NDArray[Any] | None, name: str, where: str) -> int | None:
    """A count: a number, or an array of one. Raises BadEntry for anything else."""
    if value is None:
        return None
    if value.size != 1 or value.dtype.kind not in "iuf" or not 0 <= value.item() < 2**31 or value.item() % 1:
        raise BadEntry(where, "damaged", f"{name} is {value.dtype} {value.shape}, not a whole number")
    return int(value.item())
