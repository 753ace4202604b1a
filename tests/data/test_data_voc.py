"""The reader of Pascal VOC's XML, on folders laid out as VOC's archives are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data.coco_world import photo
from data.voc_world import devkit, item, read, xml

from vbert.data.spec import dataset
from vbert.data.xml import parsed
from vbert.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def corners(boxes: list[Any]) -> list[list[float]]:
    return [[box[c] for c in ("x1", "y1", "x2", "y2")] for box in boxes]


def test_vocs_layout_in_two_sources(tmp_path: Path) -> None:
    """Both archives hold their own half of one folder, as VOC 2007's do."""
    trainval = {"000005": xml(item(1, 1, 48, 32)), "000007": xml(item(9, 9, 9, 9, name="cat"), item(2, 3, 4, 5))}
    devkit(tmp_path / "a", trainval, {"train": ["000005"], "val": ["000007"], "trainval": ["000005", "000007"]})
    devkit(tmp_path / "b", {"000001": xml(item(45.7, 1, 60, 32))}, {"test": ["000001"]})
    rows, boxes = read(tmp_path / "store", trainval=tmp_path / "a", test=tmp_path / "b")
    assert [(r["image_id"], r["split"]) for r in rows] == [("000001", "test"), ("000005", "train"), ("000007", "val")]
    assert all("JPEGImages" in row["path"] for row in rows)
    assert [(box["image_id"], box["class"]) for box in boxes] == [
        ("000001", "dog"),
        ("000005", "dog"),
        ("000007", "cat"),
        ("000007", "dog"),
    ]
    assert corners(boxes) == [pytest.approx([44.7, 0, 48, 32]), [0, 0, 48, 32], [8, 8, 9, 9], [1, 2, 4, 5]]
    assert dataset("voc_2007").examples is None


def test_difficult_objects_and_where_counting_begins(tmp_path: Path) -> None:
    devkit(tmp_path / "a", {"1": xml(item(1, 1, 4, 4, difficult=1)), "2": xml(item(1, 2, 4, 4), item(60, 1, 70, 2))})
    assert corners(read(tmp_path / "s", None, 0.5, a=tmp_path / "a")[1]) == [[0, 1, 4, 4]]
    assert len(read(tmp_path / "s", {"difficult": "keep"}, 0.5, a=tmp_path / "a")[1]) == 2
    rows, boxes = read(tmp_path / "s", {"first": 0}, 0.5, a=tmp_path / "a")
    assert corners(boxes) == [[1, 2, 4, 4]]
    assert {row["split"] for row in rows} == {"train"}


def test_xml_beside_its_photo_or_naming_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.jpg").write_bytes(photo(48, 32))
    (tmp_path / "a" / "other.JPG").write_bytes(photo(48, 32, 6))
    (tmp_path / "a" / "one.xml").write_text(xml(item(1, 1, 2, 2)))
    (tmp_path / "a" / "two.xml").write_text(xml(item(1, 1, 8, 4), filename="other.JPG"))
    rows, boxes = read(tmp_path / "s", a=tmp_path / "a")
    assert [(row["image_id"], row["path"]) for row in rows] == [("one", "a/one.jpg"), ("two", "a/other.JPG")]
    assert corners(boxes) == [[0, 0, 2, 2], [28, 0, 32, 8]]  # turned with the photo, whose size is the stored one's


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation><object>&c;</object></annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'
FAULTS = {
    "entities": (BOMB, r"1\.xml: has a document type"),
    "a file from outside": (OUTSIDE, r"1\.xml: has a document type"),
    "broken": ("<annotation><object>", r"1\.xml: not XML: no element found"),
    "no number": (xml(item("one", 1, 2, 2)), "bndbox/xmin: 'one' is no number"),  # type: ignore[arg-type]
    "no class": (xml(item(1, 1, 2, 2, name="")), r"1\.xml: object\[0\]: name: is missing"),
    "no box": (xml("<object><name>dog</name></object>"), r"bndbox/xmin: is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    text, said = FAULTS[fault]
    devkit(tmp_path / "a", {"1": text})
    with pytest.raises(UserError, match=said):
        read(tmp_path / "s", a=tmp_path / "a")


def test_missing_photos_and_double_names(tmp_path: Path) -> None:
    root = devkit(tmp_path / "a", {"1": xml(item(1, 1, 2, 2), filename="1.jpg")})
    (root / "JPEGImages" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"no source holds the photo '1\.jpg'"):
        read(tmp_path / "s", a=tmp_path / "a")
    devkit(tmp_path / "b", {"1": xml()})
    with pytest.raises(UserError, match=r"two images are called '1': a/.* and b/"):
        read(tmp_path / "s", a=tmp_path / "a", b=tmp_path / "b")
    with pytest.raises(UserError, match=r"options\.first: '2' is none of 0, 1"):
        read(tmp_path / "s", {"first": 2}, b=tmp_path / "b")


def test_deep_nesting_is_only_a_tree() -> None:
    assert parsed(b"<a>" * 5000 + b"</a>" * 5000, "x").tag == "a"
