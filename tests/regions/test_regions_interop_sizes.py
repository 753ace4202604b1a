"""Importing features: sizes and names of images, and the conversion of boxes to pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from refused import refused

from vbert.errors import UserError
from vbert.regions.interop.boxes_in import BoxesIn, in_pixels, scale
from vbert.regions.interop.feature_sets import FolderFiles
from vbert.regions.interop.raw_regions import BadEntry, RawRegions
from vbert.regions.interop.sizes import ImageNames, ImageSizes


def test_how_boxes_in_is_written() -> None:
    assert BoxesIn.parse("resized:800,1333") == BoxesIn(kind="resized", short=800, long=1333)
    assert BoxesIn.parse("resized:600") == BoxesIn(kind="resized", short=600)
    for wrong in ("resized", "resized:0", "resized:a,b", "pixels", "original:3", "resized:1,2,3"):
        with refused("--boxes-in", "original", "recorded", "resized:SHORT", error=UserError):
            BoxesIn.parse(wrong)
    assert scale((640, 480), 800, 1333) == 800 / 480
    assert scale((2000, 480), 800, 1333) == 1333 / 2000


def test_shares_are_never_taken_for_pixels() -> None:
    shares = RawRegions(np.ones((1, 4)), np.float32([[0, 0, 0.5, 1]]), "normalised")
    with refused("boxes", "'original'", error=BadEntry):
        in_pixels(shares, BoxesIn.parse("original"), (10, 20), "x")
    assert in_pixels(shares, None, (10, 20), "x").boxes.tolist() == [[0, 0, 5, 20]]


def test_names_of_images() -> None:
    """Exact, without ending, in another case, by their number; never by a guess between two."""
    names = ImageNames(["val/COCO_val2014_000000262148.jpg", "1016887272.jpg", "a/x.png", "b/x.png"])
    assert names.find("COCO_val2014_000000262148", "w") == "val/COCO_val2014_000000262148.jpg"
    assert names.find("coco_val2014_000000262148", "w") == "val/COCO_val2014_000000262148.jpg"
    assert names.find("262148", "w") == "val/COCO_val2014_000000262148.jpg"
    assert names.find("flickr30k_000001016887272", "w") == "1016887272.jpg"
    assert names.find("a/x", "w") == "a/x.png"
    with refused("'x'", "a/x.png", "b/x.png", error=BadEntry):
        names.find("x", "w")
    with refused("'y'", error=BadEntry):
        names.find("y", "w")


def test_tables_of_sizes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image_id": "a", "width": 4, "height": 3}, {"image_id": "broken", "width": 0, "height": 0}]
    (tmp_path / "s.tsv").write_text("image_id\twidth\theight\na\t4\t3\n")
    (tmp_path / "s.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    coco = {"images": [{"id": 262148, "file_name": "COCO_val2014_000000262148.jpg", "width": 4, "height": 3}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    for name, key in (("s.tsv", "a"), ("s.json", "a"), ("s.parquet", "a"), ("coco.json", "262148")):
        assert ImageSizes(FolderFiles(tmp_path / name)).find(key, "w") == ((4, 3), None)
    with refused("'broken'", error=BadEntry):
        ImageSizes(FolderFiles(tmp_path / "s.parquet")).find("broken", "w")
    (tmp_path / "s.csv").write_text("name,w\na,4\n")
    with refused("s.csv", "image_id", "width", "height", error=UserError):
        ImageSizes(FolderFiles(tmp_path / "s.csv"))
