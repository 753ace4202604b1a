"""The formats of region features that are read, a line a way of writing them: what all tests of formats go through."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from regions import interop_files as files
from regions.interop_files import Image

from vbert.regions import interop
from vbert.regions.interop.raw_regions import RawRegions

Write = Callable[[Path, list[Image]], Path]


@dataclass
class Written:
    """A way of writing: its format, what writes it into a folder, what it calls an image, the unit of its boxes ("":
    none), and what it knows beside features. `half`: in float16. Of an image it has `most` regions, and
    `left` fewer than those. `recorded`: its golden digest stands under the format's name."""

    format: str
    write: Write
    called: str = "{name}"
    unit: str = "pixels"
    knows: str = ""
    half: bool = False
    most: int = 9
    left: int = 0
    recorded: bool = False

    def name(self, one: Image) -> str:
        short = one.name.removeprefix("COCO_")
        return self.called.format(name=one.name, number=int(one.name.rpartition("_")[2]), short=short)

    def differences(self, one: Image, read: RawRegions) -> list[str]:
        """The fields in which `read` is not what was written."""
        n, dtype = min(len(one.boxes), self.most) - self.left, np.float16 if self.half else np.float32
        corners = {"": None, "pixels": one.boxes, "normalised": one.shares[:, :4]}[self.unit]
        expected = {
            "features": one.features,
            "boxes": corners,
            "scores": one.conf if "scores" in self.knows else None,
            "distributions": one.probabilities if "distributions" in self.knows else None,
        }
        wrong = [name for name, value in expected.items() if not _same(getattr(read, name), value, n, dtype)]
        plain = {
            "unit": self.unit or "pixels",
            "width": one.width if "sizes" in self.knows else None,
            "height": one.height if "sizes" in self.knows else None,
            "classes": [str(i) for i in one.objects[:n]] if "classes" in self.knows else None,
        }
        if "attributes" in self.knows:
            plain["attributes"] = [[str(i)] for i in one.attrs[:n]]
            plain["attribute_scores"] = [[float(score)] for score in one.attrs_conf[:n]]
        return wrong + [name for name, value in plain.items() if getattr(read, name) != value]


def _same(read: object, written: np.ndarray | None, n: int, dtype: type) -> bool:
    return read is None if written is None else np.array_equal(read, written[:n].astype(dtype))  # type: ignore[arg-type]


def three_each(path: Path, given: Sequence[Image]) -> Path:
    cut = [Image(**{k: v[:3] if isinstance(v, np.ndarray) else v for k, v in vars(one).items()}) for one in given]
    return files.ban_hdf5(path, cut, fixed=True)


def folders(path: Path, given: list[Image]) -> Path:
    return files.mmf_npy(path / "sub", given).parent


# What several know or call alike.
TOP = {"knows": "sizes scores classes attributes"}
ALL = {"knows": "sizes scores classes distributions"}
SIZES, SOFT, SHARES = {"knows": "sizes"}, {"knows": "sizes distributions"}, {"unit": "normalised"}
JPG, PNG, NUMBER = {"called": "{name}.jpg"}, {"called": "{name}.png", "knows": "scores"}, {"called": "{number}"} | SIZES
UNITER = {"called": "coco_{short}.npz", "knows": "scores distributions", "half": True} | SHARES


def written(format: str, write: Any, at: str, *, recorded: bool = False, **how: Any) -> Callable[..., Written]:
    """A line of the table: `write` is given the place `at` in the folder, the images, and `how`."""

    def line(**about: Any) -> Written:
        return Written(format, lambda folder, given: write(folder / at, given, **how), recorded=recorded, **about)

    return line


WRITTEN: dict[str, Written] = {
    "lxmert": written("lxmert_tsv", files.lxmert_tsv, "a.tsv", recorded=True)(**TOP),
    "lxmert by python 3": written("lxmert_tsv", files.lxmert_tsv, "a.tsv", wrapped=True)(**TOP),
    "bottom-up": written("bottom_up_tsv", files.bottom_up_tsv, "a.tsv", recorded=True)(**NUMBER),
    "oscar": written("oscar_tsv", files.oscar_tsv, "a.tsv", recorded=True)(**SHARES),
    "oscar without lineidx": written("oscar_tsv", files.oscar_tsv, "a.tsv", lineidx=False)(**SHARES),
    "oscar's pre-training": written("oscar_tsv", files.oscar_tsv, "features.tsv", pretraining=True)(**SHARES),
    "oscar without boxes": written("oscar_tsv", files.oscar_tsv, "a.tsv", boxes=False)(unit=""),
    "uniter": written("uniter_lmdb", files.uniter_lmdb, "x", recorded=True)(left=1, **UNITER),
    "uniter without counts": written("uniter_lmdb", files.uniter_lmdb, "x", counts=False)(**UNITER),
    "uniter by msgpack": written("uniter_lmdb", files.uniter_lmdb, "x", compressed=False)(left=1, **UNITER),
    "uniter by msgpack without counts": written("uniter_lmdb", files.uniter_lmdb, "x", compressed=False, counts=False)(
        **UNITER
    ),
    "mmf": written("npy", files.mmf_npy, "npy", recorded=True)(**ALL),
    "mmf in folders": written("npy", folders, "npy")(called="sub/{name}", **ALL),
    "pythia": written("npy", files.mmf_npy, "npy", info=False)(unit=""),
    "mmf lmdb": written("mmf_lmdb", files.mmf_lmdb, "x.lmdb", recorded=True)(called="train2014/{name}", **ALL),
    "vilbert": written("vilbert_lmdb", files.vilbert_lmdb, "x.lmdb", recorded=True)(**SOFT),
    "vilbert with arrays": written("vilbert_lmdb", files.vilbert_lmdb, "x.lmdb", arrays=True)(**SOFT),
    "volta": written("vilbert_lmdb", files.vilbert_lmdb, "x.lmdb", volta=True)(**TOP),
    "mcan": written("npz", files.mcan_npz, "npz")(**JPG, **SIZES),
    "bottom-up-attention.pytorch": written("npz", files.mcan_npz, "npz", by_rows=True, recorded=True)(**JPG, **TOP),
    "ban": written("ban_hdf5", files.ban_hdf5, "train.hdf5", recorded=True)(**NUMBER),
    "ban of three boxes each": written("ban_hdf5", three_each, "val36.hdf5")(most=3, **NUMBER),
    "visualbert": written("visualbert_th", files.visualbert_th, "a.th", recorded=True)(**PNG),
    "visualbert's older form": written("visualbert_th", files.visualbert_th, "a.th", legacy=True)(**PNG),
    "visualbert with numpy": written("visualbert_th", files.visualbert_th, "a.th", numpy=True)(**PNG),
    "arrow": written("arrow", files.arrow, "arrow", recorded=True)(**ALL),
}
RECORDED = {written.format: written for written in WRITTEN.values() if written.recorded}


def read_all(path: Path, format: str | None = None) -> dict[str, RawRegions]:
    """Every image of a file or folder, as another process reads it."""
    module = interop.load(interop.recognised(path, format))
    local = module.files(path)
    with module.opened(local) as read:
        return {key: read(key, pickle.loads(pickle.dumps(place))) for key, place in module.index(local)}
