"""ViLBERT's and volta's LMDB: one pickled dict an image.

Keys are image ids; `keys` holds a pickled list of them. A value has, as base64 of float32, features [n, d] and boxes
[n, 4] x1 y1 x2 y2 in pixels of the original image, with num_boxes, image_h and image_w (volta: img_h and img_w) as
numbers or text, and where the extraction wrote them cls_prob [n, C], or volta's objects_id, objects_conf, attrs_id and
attrs_conf [n] as in LXMERT's TSV. Some write arrays in place of base64. The LMDBs of their pre-training (tensorpack's)
are others, and not read.
Source: `vilbert/datasets/_image_features_reader.py` of github.com/facebookresearch/vilbert-multi-task,
`volta/datasets/_image_features_reader.py` and `data/*/convert_*_lmdb.py` of github.com/e-bug/volta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vbert.regions.interop import Dtype, Place, Read, mmf_lmdb, tsv
from vbert.regions.interop.found import BadEntry, Found, numbered
from vbert.regions.interop.lmdb_files import data_file, first_value, opened_lmdb, value_of
from vbert.regions.interop.npy_files import unpickled

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

        def read(key: str, _: Place) -> Found:
            where = f"{path}: {key}"
            data = value_of(transaction, key.encode())
            if data is None:
                raise BadEntry(where, "missing", "'keys' lists it, but there is no such entry")
            about = unpickled(data, where)
            if not isinstance(about, dict):
                raise BadEntry(where, "damaged", f"it holds a {type(about).__name__} where a dict is wanted")
            return _found(about, dtype, where)

        yield read


def _found(about: dict[Any, Any], dtype: Dtype | None, where: str) -> Found:
    n = tsv.whole(_text(about, "num_boxes", where=where), "num_boxes", where)
    shares, objects = about.get("cls_prob"), about.get("objects_id")
    attributes = about.get("attrs_id")

    def of(name: str, kind: str) -> Any:
        return tsv.numbers(_text(about, name, where=where), kind, (n,), name, where)

    return Found(
        features=tsv.features(_text(about, "features", where=where), n, dtype, where),
        boxes=tsv.boxes(_text(about, "boxes", where=where), n, where),
        width=tsv.whole(_text(about, "image_w", "img_w", where=where), "image_w", where),
        height=tsv.whole(_text(about, "image_h", "img_h", where=where), "image_h", where),
        scores=of("objects_conf", "f") if objects is not None and "objects_conf" in about else None,
        classes=None if objects is None else numbered(of("objects_id", "i")),
        attributes=None if attributes is None else [[name] for name in numbered(of("attrs_id", "i"))],
        attribute_scores=[[float(score)] for score in of("attrs_conf", "f")]
        if attributes is not None and "attrs_conf" in about
        else None,
        distributions=None
        if shares is None
        else tsv.features(_text(about, "cls_prob", where=where), n, "float32", where),
    )


def _text(about: dict[Any, Any], *names: str, where: str) -> bytes:
    """The field by its first name that is there: a number or base64 as in a table; an array as its base64."""
    import binascii

    import numpy as np

    value = next((about[name] for name in names if about.get(name) is not None), None)
    if isinstance(value, np.ndarray):
        plain = np.asarray(value, {"f": "<f4", "i": "<i8", "u": "<i8"}.get(value.dtype.kind, "<f4"))
        return str(plain.item()).encode() if not value.ndim else binascii.b2a_base64(plain.tobytes(), newline=False)
    if isinstance(value, bool) or not isinstance(value, int | float | str | bytes):
        raise BadEntry(where, "damaged", f"{names[0]} is a {type(value).__name__}")
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    return value if isinstance(value, bytes) else str(value).encode()
