"""The reader of COCO's JSON: the real miniature, files of one's own, and photos that EXIF turns."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.coco_world import own, photo, read, written
from data.data_steps import built, described
from refused import refused

from vbert.artifacts.store.store import Store
from vbert.data import readers
from vbert.data.boxes import ExifTransform
from vbert.data.decode import decode
from vbert.data.readers import coco
from vbert.data.source import Source
from vbert.data.spec import dataset
from vbert.errors import BuildError, NotAccepted, UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "coco"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def one(folder: Path, data: bytes, size: tuple[int, int], *boxes: list[float], **more: Any) -> None:
    """One photo with boxes, as its own data set."""
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.jpg").write_bytes(data)
    image = {"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}
    rows = [{"image_id": 1, "category_id": 7, "bbox": box} | more for box in boxes]
    written(folder, "annotations/instances_train.json", [image], rows)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/data/coco) are not here")
def test_the_real_miniature_is_read_whole(tmp_path: Path) -> None:
    index, texts = built(Store(tmp_path), *described(own(REAL)))
    rows, boxes = index.table().to_pylist(), index.boxes().to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 258, "val": 50}
    assert len(boxes) == 2148 - 23 + 382 - 5  # without crowds
    assert index.figures["broken"] == 0
    assert texts.figures["examples"] == 650 + 250
    truth = json.loads((REAL / "annotations" / "instances_train2017.json").read_text())["annotations"]
    mine = [row for row in boxes if row["image_id"] == "9"]
    theirs = [a for a in truth if a["image_id"] == 9]
    assert len(mine) == len(theirs)
    x, y, width, height = theirs[0]["bbox"]
    assert [mine[0][c] for c in ("x1", "y1", "x2", "y2")] == pytest.approx([x, y, x + width, y + height], abs=1e-3)
    assert mine[0]["class"] == "bowl"
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in rows}
    assert all(0 <= b["x1"] < b["x2"] <= sizes[b["image_id"]][0] for b in boxes)
    assert all(0 <= b["y1"] < b["y2"] <= sizes[b["image_id"]][1] for b in boxes)
    kept = built(Store(tmp_path), described(own(REAL, crowd="keep"))[0])[0]
    assert kept.figures["boxes"] == 2148 + 382


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/data/coco) are not here")
def test_the_shipped_spec_reads_the_archives_as_published(tmp_path: Path) -> None:
    """The same layout in three zips, as COCO publishes it; the captions need the annotations alone."""
    places = {"train": ("train2017",), "val": ("val2017",), "annotations": ("annotations",)}
    for name, folders in places.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for folder in folders:
                for path in sorted((REAL / folder).iterdir()):
                    archive.write(path, f"{folder}/{path.name}")
    shipped = dataset("coco_2017")
    assert shipped.read_by("examples") == ("annotations",)
    local = {name: Source(path=str(tmp_path / f"{name}.zip")) for name in places}
    spec, store = shipped.model_copy(update={"sources": local}), Store(tmp_path / "store")
    with pytest.raises(
        NotAccepted, match="258 train, 50 val were read, published are 118,287 train, 5,000 val; are all"
    ):
        built(store, described(spec)[0])
    assert spec.examples is not None
    parts = {part: getattr(spec, part).model_copy(update={"counts": {}}) for part in ("images", "examples")}
    index, texts = built(store, *described(spec.model_copy(update=parts)))
    assert Counter(index.table().column("split").to_pylist()) == {"train": 258, "val": 50}
    assert index.figures["boxes"] == 2502
    assert texts.figures["examples"] == 900
    assert index.open("397133").size == (640, 427)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_stored_pixels_are_turned_with_the_photo(tmp_path: Path, orientation: int) -> None:
    """A white rectangle in a stored file of 48×32 pixels; as shown, the box still holds it."""
    data = photo(48, 32, orientation, mark=(8, 16, 24, 24))
    one(tmp_path / "data", data, (48, 32), [8, 16, 16, 8])
    options = {} if orientation in (1, 5, 6, 7, 8) else {"pixels": "stored"}
    (image,), (box,) = read(tmp_path / "data", tmp_path / "store", **options)
    shown = np.asarray(decode(data)).mean(2)
    assert (image["width"], image["height"]) == shown.shape[::-1]
    x1, y1, x2, y2 = (int(box[c]) for c in ("x1", "y1", "x2", "y2"))
    inside = np.zeros(shown.shape, bool)
    inside[y1:y2, x1:x2] = True
    assert inside.sum() == 16 * 8
    assert shown[inside].min() > 200
    assert shown[~inside].mean() < 20


def test_boxes_in_shown_pixels_stay(tmp_path: Path) -> None:
    data = photo(48, 32, 6)
    one(tmp_path / "a", data, (32, 48), [1, 2, 3, 4])
    assert read(tmp_path / "a", tmp_path / "store")[1][0]["x2"] == 4
    one(tmp_path / "b", data, (48, 32), [1, 2, 3, 4])
    assert read(tmp_path / "b", tmp_path / "store", pixels="shown")[1][0]["x2"] == 4
    assert read(tmp_path / "b", tmp_path / "store")[1][0]["x2"] == 30
    one(tmp_path / "c", b"no photo", (48, 32), [1, 2, 3, 4])
    assert read(tmp_path / "c", tmp_path / "store")[1][0]["x2"] == 4
    assert ExifTransform(3, 10, 20)((1, 2, 3, 4)) == (7, 16, 9, 18)


def test_boxes_are_cut_at_the_border_and_empty_ones_dropped(tmp_path: Path) -> None:
    one(tmp_path / "a", photo(20, 10), (20, 10), [-3, 2, 30, 4], [5, 5, 0, 3], [25, 1, 4, 4], [1, 1, 2, 2])
    _, boxes = read(tmp_path / "a", tmp_path / "store", accepted=0.5)
    assert [[b[c] for c in ("x1", "y1", "x2", "y2")] for b in boxes] == [[0, 2, 20, 6], [1, 1, 3, 3]]
    one(tmp_path / "b", photo(20, 10), (20, 10), [1, 1, 2, 2], iscrowd=1)
    assert read(tmp_path / "b", tmp_path / "store")[1] == []


def test_names_of_ones_own(tmp_path: Path) -> None:
    """Files named by `splits`, photos in folders, numbers that both files use."""
    photos = tmp_path / "data" / "photos"
    for name in ("a/1.jpg", "b/1.jpg"):
        (photos / name).parent.mkdir(parents=True)
        (photos / name).write_bytes(photo(8, 8))
    for split, name in (("train", "a/1.jpg"), ("test", "b/1.jpg")):
        image = {"id": 1, "file_name": name, "width": 8, "height": 8}
        box = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 4]}
        written(tmp_path / "data", f"{split}_boxes.json", [image], [box])
    splits = {"train": "train_boxes.json", "test": "test_boxes.json"}
    with refused("instances_train", error=UserError):
        read(tmp_path / "data", tmp_path / "store")
    with refused("'1'", "ids: file_name", error=UserError):
        read(tmp_path / "data", tmp_path / "store", splits=splits)
    images, boxes = read(tmp_path / "data", tmp_path / "store", splits=splits, ids="file_name")
    assert [(row["image_id"], row["split"]) for row in images] == [("a/1", "train"), ("b/1", "test")]
    assert [row["class"] for row in boxes] == ["cat", "cat"]


def test_captions_that_count_alike_are_kept_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / f"{split}.jpg").write_bytes(photo(8, 8))
        image = {"id": split, "file_name": f"{split}.jpg"}
        captions = [{"id": 1, "image_id": split, "caption": f" a {split} \n"}]
        written(tmp_path / "data", f"captions_{split}.json", [image], captions)
    _, texts = built(Store(tmp_path / "store"), *described(own(tmp_path / "data")))
    rows = texts.table().to_pylist()
    assert [(row["example_id"], row["text"]) for row in rows] == [("1", "a train"), ("val/1", "a val")]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "photo": (
        {"images": [{"id": 1, "file_name": "b.jpg"}]},
        r"no source holds the photo 'b\.jpg'; near: 'a",
    ),
    "no name": ({"images": [{"id": 1}]}, r"instances_train\.json: images\[0\]: file_name: is missing"),
    "category": ({"categories": []}, r"annotations\[0\]: a box has category 7, which the"),
    "image": (
        {"annotations": [{"image_id": 5, "category_id": 7, "bbox": [0, 0, 1, 1]}]},
        r"annotations\[0\]: a box belongs to image 5, which the",
    ),
    "box": ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}]}, r"bbox: must be \[x, y, width"),
    "null": ({"images": None}, "finds no image"),
    "id": ({"images": [{"id": [1], "file_name": "a.jpg"}]}, r"images\[0\]: id: must be integer, not \[1\]"),
    "crowd": (
        {"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": "maybe"}]},
        r"annotations\[0\]: iscrowd: must be 0 or 1, not 'maybe'",
    ),
    "no box": ({"annotations": [{"image_id": 1, "category_id": 7}]}, r"annotations\[0\]: bbox: is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    changes, said = FAULTS[fault]
    one(tmp_path / "data", photo(8, 8), (8, 8), [0, 0, 4, 4])
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises((UserError, BuildError), match=said):
        read(tmp_path / "data", tmp_path / "store")


def test_options_and_files_that_are_none(tmp_path: Path) -> None:
    one(tmp_path / "data", photo(8, 8), (8, 8), [0, 0, 4, 4])
    for option in ({"ids": "name"}, {"crowd": "kept"}, {"pixels": "show"}):
        with pytest.raises(UserError, match=f"options.{next(iter(option))}: '.*' is none of"):
            read(tmp_path / "data", tmp_path / "store", **option)
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text("[1")
    with refused("instances_train.json", "JSON", error=UserError):
        read(tmp_path / "data", tmp_path / "store")
    assert readers.reader("coco").version == coco.VERSION
