"""Golden digests of each format's reader and the stage on a miniature. Other bits need a new version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from artifacts.golden import check
from regions import interop_files as files
from regions.interop_imports import step, table
from regions.interop_table import RECORDED

from vbert.artifacts.store.store import Store

GIVEN = files.images(6)


@pytest.mark.parametrize("format", RECORDED)
def test_each_format(format: str, tmp_path: Path) -> None:
    """The record's version is the stage's: raise that of the format's module too, or old imports would stand.

    And the numbers are those written, boxes in pixels whatever the format's unit.
    """
    written = RECORDED[format]
    target = step(written.write(tmp_path, GIVEN), table(tmp_path / "sizes.csv", GIVEN)).named(format)
    check(target, tmp_path / "store", libraries=["pyarrow"])
    shards = target.bound(Store(tmp_path / "store"))
    for one in GIVEN:
        read, n = shards.read(written.name(one).removesuffix(".npz")), len(one.boxes) - written.left
        assert (read.width, read.height) == (one.width, one.height)
        assert (read.features == one.features[:n].astype(np.float16)).all()
        assert np.abs(read.boxes - one.boxes[:n]).max() < (0.5 if written.half else 0.01 * (1 + one.width / 640))
        if "distributions" in written.knows:
            assert (read.distributions == one.probabilities[:n].astype(np.float16)).all()
