"""Files of others as imports: the step, the shards, and whether they hold what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from regions import interop_files as files
from regions.interop_files import Image

from tasks.download import download
from tasks.import_features import import_features
from vbert.artifacts.making.engine import build_here
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.regions import interop
from vbert.regions.interop.importing import ImportSettings, Provenance
from vbert.regions.shards import Shards

UNKNOWN = Provenance.of("unknown", layer="res5_pool")
GIVEN = files.images(9)


def reference(path: Path) -> RawFiles:
    return download(Source(path=str(path), file=path.name).pinned())


def step(path: Path, sizes: Path | None = None, **settings: object) -> Shards:
    name = interop.recognised(path)
    raws = {role: reference(file) for role, file in interop.load(name).files(path).items()}
    chosen = ImportSettings(**({"statement": UNKNOWN, "images_per_shard": 4} | settings))
    return import_features(raws, interop.plugin(name), chosen, None if sizes is None else reference(sizes))


def imported(store: Path, path: Path, sizes: Path | None = None, **settings: object) -> Shards:
    return build_here([step(path, sizes, **settings)], store)[0]


def table(path: Path, given: list[Image] = GIVEN) -> Path:
    rows = "".join(f"{one.name},{one.width},{one.height}\n" for one in given)
    path.write_text("image_id,width,height\n" + rows)
    return path


def boxes_of(shards: Shards, given: list[Image], called=lambda name: name) -> None:
    for one in given:
        read = shards.read(called(one.name))
        assert (read.width, read.height) == (one.width, one.height)
        assert np.abs(read.boxes - one.boxes).max() < 0.01 * (1 + one.width / 640)
        assert (read.features == one.features.astype(np.float16)).all()
