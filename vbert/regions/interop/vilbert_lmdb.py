"""ViLBERT's and volta's LMDB: one pickled dict an image.

Keys are image ids; `keys` holds a pickled list of them. A value has, as base64 of float32, features [n, d] and boxes
[n, 4] x1 y1 x2 y2 in pixels of the original image, with num_boxes, image_h and image_w (volta: img_h and img_w) as
numbers or text, and where the extraction wrote them cls_prob [n, C], or volta's objects_id, objects_conf, attrs_id and
attrs_conf [n] as in LXMERT's TSV. Some write arrays in place of base64, of whatever type. The LMDBs of their
pre-training (tensorpack's) are others, and not read.
Source: `vilbert/datasets/_image_features_reader.py` of github.com/facebookresearch/vilbert-multi-task,
`volta/datasets/_image_features_reader.py` and `data/*/convert_*_lmdb.py` of github.com/e-bug/volta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vbert.regions.interop import Dtype, Place, Read, mmf_lmdb, tsv
from vbert.regions.interop.lmdb_files import data_file, entry, first_value, opened_lmdb
from vbert.regions.interop.npy_files import unpickled
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, numbered

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TITLE = "ViLBERT / volta LMDB (pickled dicts of base64)"
BY_LENGTH = True
files = mmf_lmdb.files
index = mmf_lmdb.index


def holds(path: Path) -> bool:
    file = data_file(path)
    value = None if file is None else first_value(file, mmf_lmdb.KEYS)
    if value is None:
        return False
    try:
        about = unpickled(value, str(path))
    except BadEntry:
        return False
    return isinstance(about, dict) and "boxes" in about and "features" in about


@contextmanager
def opened(files: Mapping[str, Path], dtype: Dtype | None = None) -> Iterator[Read]:
    path = files["features"]
    with opened_lmdb(path) as transaction:

        def read(key: str, _: Place) -> RawRegions:
            return _regions(entry(transaction, key, path), dtype, f"{path}: {key}")

        yield read


def _regions(about: dict[Any, Any], dtype: Dtype | None, where: str) -> RawRegions:
    n = tsv.whole(_text(about, "num_boxes", where=where), "num_boxes", where)

    def of(name: str, kind: str) -> NDArray[Any] | None:
        """The n numbers of a field; None where it has none."""
        if about.get(name) is None:
            return None
        if (array := _array(about, name, (n,), where)) is not None:
            return array
        return tsv.numbers(_text(about, name, where=where), kind, (n,), name, where)

    def table(name: str, dtype: Dtype | None) -> NDArray[Any]:
        if (array := _array(about, name, (n, None), where)) is not None:
            return array
        return tsv.features(_text(about, name, where=where), n, dtype, where)

    boxes = _array(about, "boxes", (n, 4), where)
    objects, attributes, sure = of("objects_id", "i"), of("attrs_id", "i"), of("attrs_conf", "f")
    return RawRegions(
        features=table("features", dtype),
        boxes=tsv.boxes(_text(about, "boxes", where=where), n, where) if boxes is None else boxes.astype(np.float32),
        width=tsv.whole(_text(about, "image_w", "img_w", where=where), "image_w", where),
        height=tsv.whole(_text(about, "image_h", "img_h", where=where), "image_h", where),
        scores=None if objects is None else of("objects_conf", "f"),
        classes=None if objects is None else numbered(objects),
        attributes=None if attributes is None else [[name] for name in numbered(attributes)],
        attribute_scores=None if attributes is None or sure is None else [[float(score)] for score in sure],
        distributions=None if about.get("cls_prob") is None else table("cls_prob", "float32"),
    )


def _array(about: dict[Any, Any], name: str, shape: tuple[int | None, ...], where: str) -> NDArray[Any] | None:
    """The field if it is an array, of its own type; else None."""
    value = about.get(name)
    if not isinstance(value, np.ndarray):
        return None
    fits = len(value.shape) == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
    if value.dtype.kind not in ("iu" if name.endswith("_id") else "f" if shape[-1] is None else "fiu") or not fits:
        wanted = ", ".join("d" if side is None else str(side) for side in shape)
        raise BadEntry(where, "damaged", f"{name} is {value.dtype} {value.shape}, not numbers [{wanted}]")
    return value


def _text(about: dict[Any, Any], *names: str, where: str) -> bytes:
    """The field under the first of its names that exists: base64, or a number as text, as in a table."""
    value = next((about[name] for name in names if about.get(name) is not None), None)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | str | bytes):
        raise BadEntry(where, "damaged", f"{names[0]} is a {type(value).__name__}")
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
