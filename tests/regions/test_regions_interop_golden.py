"""Golden digests of each format's reader and the stage on a miniature. Other bits need a new version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from artifacts.golden import check
from regions import interop_files as files
from regions.test_regions_interop_importing import step, table

GIVEN = files.images(6)
MADE: dict[str, Callable[[Path], Path]] = {
    "lxmert_tsv": lambda folder: files.lxmert_tsv(folder / "a.tsv", GIVEN),
    "bottom_up_tsv": lambda folder: files.bottom_up_tsv(folder / "a.tsv", GIVEN),
    "oscar_tsv": lambda folder: files.oscar_tsv(folder / "a.tsv", GIVEN),
    "uniter_lmdb": lambda folder: files.uniter_lmdb(folder / "x", GIVEN),
    "vilbert_lmdb": lambda folder: files.vilbert_lmdb(folder / "x.lmdb", GIVEN),
    "npz": lambda folder: files.mcan_npz(folder / "npz", GIVEN, by_rows=True),
    "mmf_lmdb": lambda folder: files.mmf_lmdb(folder / "x.lmdb", GIVEN),
    "ban_hdf5": lambda folder: files.ban_hdf5(folder / "train.hdf5", GIVEN),
    "visualbert_th": lambda folder: files.visualbert_th(folder / "a.th", GIVEN),
    "npy": lambda folder: files.mmf_npy(folder / "npy", GIVEN),
}


@pytest.mark.parametrize("format", MADE)
def test_each_format(format: str, tmp_path: Path) -> None:
    """The record's version is the stage's: raise that of the format's module too, or old imports would stand."""
    path = MADE[format](tmp_path)
    check(step(path, table(tmp_path / "sizes.csv", GIVEN)).named(format), tmp_path / "store", libraries=["pyarrow"])
