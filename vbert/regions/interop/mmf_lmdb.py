"""MMF's LMDB: one pickled dict an image.

Keys are the names of the `.npy` files it was made of, folders included and without the ending, or bare ids; `keys`
holds a pickled list of them. A value is {"feature_path": name, "features": float32 [n, d]} and, where there was an
`_info.npy`, its "bbox", "num_boxes" (may be below n), "objects", "cls_prob", "image_width" and "image_height" (see
`npy_files`).
Source: `tools/scripts/features/lmdb_conversion.py` of github.com/facebookresearch/mmf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vbert.errors import UserError
from vbert.regions.interop import Place, Read
from vbert.regions.interop.lmdb_files import data_file, entry, has_key, opened_lmdb, value_of
from vbert.regions.interop.npy_files import described
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

VERSION = 2
TITLE = "MMF LMDB (pickled dicts)"
KEYS = b"keys"


def holds(path: Path) -> bool:
    file = data_file(path)
    return file is not None and has_key(file, KEYS)


def files(path: Path) -> dict[str, Path]:
    file = data_file(path)
    if file is None:
        raise UserError(f"{path}: no LMDB: there is no data.mdb in it")
    return {"features": file}


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    from vbert.data import pickles

    path = files["features"]
    with opened_lmdb(path) as transaction:
        listed = value_of(transaction, KEYS)
        if listed is None:
            raise UserError(f"{path}: no entry 'keys': is it an LMDB of MMF?")
        names = pickles.load(listed, f"{path}: keys")
    for name in names if isinstance(names, list | tuple) else [None]:
        key = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        if not isinstance(key, str):
            raise UserError(f"{path}: its 'keys' hold {name!r:.60} where a name is wanted: is it an LMDB of MMF?")
        yield key, ()


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    path = files["features"]
    with opened_lmdb(path) as transaction:

        def read(key: str, _: Place) -> RawRegions:
            import numpy as np

            where, about = f"{path}: {key}", entry(transaction, key, path)
            features = about.get("features")
            if not isinstance(features, np.ndarray):
                raise BadEntry(where, "damaged", "no dict with an array of features")
            bare = all(about.get(name) is None for name in ("bbox", "num_boxes", "objects", "cls_prob"))
            return described(features, None if bare else about, where)

        yield read
