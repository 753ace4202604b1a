"""UNITER's LMDB of images: one `.npz` or one msgpack an image.

Keys are the names of the `.npz` files it was made of (`coco_val2014_000000262148.npz`); `__keys__` holds a JSON list of
them. Where the folder's name ends in `_compressed` a value is the bytes of an `.npz` (with a stray member
`allow_pickle`), otherwise msgpack with numpy arrays as {b"nd", b"type", b"shape", b"data"}. Arrays, float16 where they
were float32: features [n, d], norm_bb [n, 6] x1/W y1/H x2/W y2/H w/W h/H, conf [n], soft_labels [n, C]. No image sizes,
so boxes in pixels need those from elsewhere. Rows are cut to the counts in `nbb_*.json` beside the folder where that is
there; a folder `all` holds every box, of which UNITER takes those above 0.2, at least 10 and at most 100 (here:
`--cap`).
Source: `scripts/convert_imgdir.py` and `data/data.py` of github.com/ChenRocks/UNITER.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError
from vbert.regions.interop import Place, Read
from vbert.regions.interop.lmdb_files import data_file, has_key, opened_lmdb, value_of
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, missing_library

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TITLE = "UNITER LMDB (npz or msgpack)"
KEYS = b"__keys__"
ARRAYS = ("features", "norm_bb", "conf", "soft_labels")


def holds(path: Path) -> bool:
    file = data_file(path)
    return file is not None and has_key(file, KEYS)


def files(path: Path) -> dict[str, Path]:
    file = data_file(path)
    if file is None:
        raise UserError(f"{path}: no LMDB: there is no data.mdb in it")
    folder = file.parent.resolve()
    counts = folder.parent / f"{folder.name.removesuffix('_compressed').replace('feat_', 'nbb_', 1)}.json"
    return {"features": file} | ({"counts": counts} if counts.name.startswith("nbb_") and counts.is_file() else {})


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    path = files["features"]
    with opened_lmdb(path) as transaction:
        listed = value_of(transaction, KEYS) or b""
    counts = _json(files["counts"].read_bytes(), str(files["counts"]), dict) if "counts" in files else {}
    for key in _json(listed, f"{path}: __keys__", list):
        count = counts.get(str(key))
        if count is not None and not isinstance(count, int):
            raise UserError(f"{files['counts']}: the count of {key!r:.60} is {count!r:.40}, not a whole number")
        yield str(key), (str(key), count)


def _json(data: bytes, where: str, kind: type) -> Any:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        tensorpack = where.endswith("__keys__") and not data.lstrip().startswith((b"[", b"{"))
        hint = ": is it tensorpack's, of ViLBERT's or volta's pre-training? That is not read; give what it was made of"
        raise UserError(f"{where}: not JSON ({str(error)[:100]}){hint if tensorpack else ''}") from None
    if not isinstance(content, kind):
        raise UserError(f"{where}: a {type(content).__name__} where a {kind.__name__} is wanted")
    return content


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    path = files["features"]
    with opened_lmdb(path) as transaction:

        def read(_: str, place: Place) -> RawRegions:
            key, count = place
            where = f"{path}: {key}"
            data = value_of(transaction, key.encode())
            if data is None:
                raise BadEntry(where, "missing", "'__keys__' lists it, but there is no such entry")
            return _parse(data, count, where)

        yield read


def _parse(data: bytes, count: int | None, where: str) -> RawRegions:
    from vbert.regions.interop.npy_bytes import read_npz

    arrays = read_npz(data, ARRAYS, where) if data.startswith(b"PK") else _msgpack(data, where)
    features, boxes = arrays.get("features"), arrays.get("norm_bb")
    if features is None or boxes is None or features.ndim != 2 or boxes.ndim != 2 or boxes.shape[1] != 6:
        shapes = {name: value.shape for name, value in arrays.items()}
        raise BadEntry(where, "damaged", f"no features [n, d] and norm_bb [n, 6], but {shapes}")
    conf, shares = arrays.get("conf"), arrays.get("soft_labels")
    if any(part is not None and len(part) != len(features) for part in (boxes, conf, shares)):
        raise BadEntry(where, "damaged", f"{len(features)} features, but another number of {', '.join(ARRAYS[1:])}")
    if (conf is not None and conf.ndim != 1) or (shares is not None and shares.ndim != 2):
        raise BadEntry(where, "damaged", "conf or soft_labels have another shape than [n] and [n, C]")
    n = len(features) if count is None else count
    if not 0 <= n <= len(features):
        raise BadEntry(where, "damaged", f"nbb_*.json counts {n} regions of {len(features)}")
    return RawRegions(
        features=features[:n],
        boxes=boxes[:n, :4],
        unit="normalised",
        scores=None if conf is None else conf[:n],
        distributions=None if shares is None else shares[:n],
    )


def _msgpack(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """msgpack_numpy's arrays; its own decoder would unpickle entries with a `kind`."""
    import numpy as np

    try:
        import msgpack
    except ImportError:
        raise UserError(missing_library("msgpack", f"{where}: a value of msgpack")) from None

    def text(value: Any) -> str:
        return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)

    try:
        content = msgpack.unpackb(data, raw=False, strict_map_key=False)
        arrays = {}
        for name in ARRAYS:
            if not isinstance(content.get(name), dict):
                continue
            about = {text(key): value for key, value in content[name].items()}
            dtype = np.dtype(text(about["type"]))
            if dtype.kind not in "fiu" or not isinstance(about["data"], bytes):
                raise ValueError(f"{name} is of type {dtype}")
            arrays[name] = np.frombuffer(about["data"], dtype).reshape(tuple(about["shape"]))
    except Exception as error:  # msgpack raises many of its own
        raise BadEntry(where, "damaged", f"no arrays by msgpack ({type(error).__name__}: {str(error)[:200]})") from None
    return arrays
