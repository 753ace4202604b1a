"""Boxes against their photos: one rule for all readers, counted by kind, refused above a share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.coco_world import own, photo
from data.data_steps import built, described
from data.voc_world import devkit, item, xml

from tasks.download import download
from tasks.images import images
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.store.store import Store
from vbert.data import readers
from vbert.data.boxes import BoxConverter, BoxFrame, PhotoHeader, StatedSize, frame
from vbert.data.images import Images
from vbert.data.source import Source
from vbert.data.spec import ReaderOptions, dataset
from vbert.errors import NotAccepted, UserError

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(
    ("box", "wrong", "kept"),
    [
        ((1, 2, 3, 4), "", (1, 2, 3, 4)),
        ((-0.5, 0, 20.5, 10), "", (0, 0, 20, 10)),
        ((-3, 2, 27, 6), "cut", (0, 2, 20, 6)),
        ((5, 5, 5, 8), "empty", None),
        ((5, 5, 5 + 1e-8, 8), "empty", None),  # at rest, in float32
        ((5, 5, 5.001, 8), "", (5, 5, 5.001, 8)),
        ((6, 5, 5, 8), "swapped", None),
        ((25, 1, 29, 5), "outside", None),
        ((-9, -9, -1, -1), "outside", None),
        ((20, 1, 25, 5), "outside", None),
        ((NAN, 1, 2, 3), "not_finite", None),
        ((1, 1, INF, 3), "not_finite", None),
        ((1, 1, 1e300, 3), "not_finite", None),
        ((1, 1, 10**400, 3), "not_finite", None),
        ((1, 1, -(10**400), 3), "not_finite", None),
    ],
)
def test_what_is_wrong_with_a_box(box: Any, wrong: str, kept: Any) -> None:
    """In a photo of 20×10 pixels."""
    found, corners = BoxFrame((20, 10)).fit(box)
    assert found == wrong
    if kept is not None:
        assert corners == pytest.approx(kept)


@pytest.mark.parametrize(
    "nothing", [(0, 0), (None, None), ("640", "480"), (12.5, 9), ("wide", "²"), ([], {}), (20, None)]
)
def test_sizes_that_say_nothing_leave_the_photos_own(nothing: tuple[Any, Any]) -> None:
    found = frame(PhotoHeader(20, 10), StatedSize(*nothing, "f"))
    assert found is not None
    assert found.size == (20, 10)


@pytest.mark.parametrize("stated", [(40, 30), (40.0, 30.0), ("40", "30")])
def test_a_stated_size_that_fits_the_stored_file_turns_boxes(stated: tuple[Any, Any]) -> None:
    found = frame(PhotoHeader(40, 30, 6), StatedSize(*stated, "f"))
    assert found is not None
    assert found.fit((0, 0, 10, 5)) == ("", (25, 0, 30, 10))


def test_sizes_of_another_scale_are_refused_or_scaled() -> None:
    rows = [
        {"image_id": name, "x1": 4, "y1": 4, "x2": 8, "y2": 8, "class": "a", "attributes": [], "stated": stated}
        for name, stated in (
            ("a", StatedSize(40, 20, "x.json: images[0]")),
            ("b", StatedSize(41, 20, "x.json: images[1]")),
            ("c", StatedSize(20, 21, "x.json: images[2]")),
        )
    ]
    photos = {"a": PhotoHeader(20, 10), "b": PhotoHeader(40, 20), "c": PhotoHeader(10, 10, 6)}
    said = r"x\.json: images\[0\]: says 40×20 for the image 'a', whose file has 20×10, and 1 more images"
    with pytest.raises(UserError, match=said):
        list(BoxConverter(photos)(rows))
    scaled = [row | {"stated": StatedSize(row["stated"].width, row["stated"].height, "", scale=True)} for row in rows]  # type: ignore[attr-defined]
    assert [(r["x1"], r["x2"]) for r in BoxConverter(photos)(scaled)][:2] == [(2, 4), (4, 8)]
    # A turned photo that was resized too: the aspect says which way its boxes lie.
    turned = frame(PhotoHeader(20, 10, 6), StatedSize(40, 20, "", scale=True))
    assert turned is not None
    assert turned.fit((0, 0, 8, 4)) == ("", (8, 0, 10, 4))


def bad_rows(reader: str, folder: Path) -> None:
    """Ten boxes of a 20×10 photo: six good ones, one of each kind that can't be used."""
    boxes = [*[(1, 1, 5, 5)] * 6, (5, 5, 5, 8), (9, 5, 2, 8), (25, 1, 29, 5), (NAN, 1, 2, 3)]
    if reader == "voc":
        root = devkit(folder, {"a": xml(*(item(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in boxes), size=(0, 0))})
        (root / "JPEGImages" / "a.jpg").write_bytes(photo(20, 10))
        return
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.jpg").write_bytes(photo(20, 10))
    if reader == "jsonl":
        lines = [{"image": "train/a.jpg", "box": box, "class": "cat"} for box in boxes]
        (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}],
        "annotations": [
            {"image_id": 1, "category_id": "7", "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": "0"}
            for x1, y1, x2, y2 in boxes
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (folder / "instances_train.json").write_text(json.dumps(content))


@pytest.mark.parametrize("reader", ["coco", "jsonl", "voc"])
def test_every_reader_counts_what_it_leaves_out(tmp_path: Path, reader: str) -> None:
    bad_rows(reader, tmp_path / "data")
    raws = {"data": download(Source(path=str(tmp_path / "data")).pinned())}

    def index(share: float) -> Images:
        return images(raws, readers.reader(reader), None, ReaderOptions(unusable_boxes=share)).named("mine")

    store = Store(tmp_path / "store")
    (found,) = built(store, index(0.4))
    assert found.boxes().num_rows == 6
    kinds = ("boxes", "boxes_empty", "boxes_swapped", "boxes_outside", "boxes_not_finite")
    assert [found.figures.get(kind) for kind in kinds] == [6, 1, 1, 1, 1]
    said = "4 of 10 boxes can't be used and are left out: 1 not finite (the first:"
    assert any(note.startswith(said) for note in found.figures["notes"])
    # Another share is no other index, and refuses it without reading anything again.
    assert index(0.3).fingerprint == index(0.4).fingerprint
    with pytest.raises(NotAccepted, match=r"more than the accepted 30 %.*--set data\.mine\.unusable_boxes=0\.4`"):
        Engine(store).ensure_all([index(0.3)])
    assert index(0.3).bound(store).path.is_dir()


def test_boxes_of_phrases_are_fitted_too(mine: Path, tmp_path: Path) -> None:
    """In images of 4×3 pixels."""

    def written(*boxes: list[float]) -> Path:
        phrases = [{"start": 0, "end": 5, "boxes": boxes, "types": ["animals", "other"]}]
        row = {"image": "cats/1.png", "text": "a cat", "phrases": phrases}
        (tmp_path / "texts.jsonl").write_text(json.dumps(row))
        return mine

    store = Store(tmp_path / "store")
    (texts,) = built(store, described(dataset(str(written([0, 0, 9, 2], [1, 1, 2, 3]))))[1])
    fitted = {"start": 0, "end": 5, "boxes": [[0, 0, 4, 2], [1, 1, 2, 3]], "types": ["animals", "other"]}
    assert texts.table()["phrases"].to_pylist() == [[fitted]]
    assert texts.figures["boxes_cut"] == 1
    phrases = [{"start": 3, "end": 5, "boxes": [[0, 0, 9, 2]]}]
    line = {"image": "cats/1.png", "text": "where?", "choices": [{"text": "on it", "phrases": phrases}, {"text": "in"}]}
    (tmp_path / "texts.jsonl").write_text(json.dumps(line))
    (texts,) = built(store, described(dataset(str(mine)))[1])
    ((first, second),) = texts.table()["choices"].to_pylist()
    cut = fitted | {"start": 3, "boxes": [[0, 0, 4, 2]], "types": None}
    assert (first["phrases"], second["phrases"]) == ([cut], [])
    said = r"1 of 2 boxes can't be used .*outside \(the first: example 'texts\.jsonl:1'"
    with pytest.raises(NotAccepted, match=said):
        built(store, described(dataset(str(written([8, 0, 9, 2], [1, 1, 2, 3]))))[1])


def test_a_questions_label_is_said_to_be_no_answer(mine: Path, tmp_path: Path) -> None:
    line = {"image": "cats/1.png", "text": "how many cats?"}
    right = [{"text": "is it one?", "kind": "pair"}, {"kind": "sentiment"}, {"text": "a cat"}, {"answer": "one"}]
    wrong: list[dict[str, str]] = [{}, {"text": "count them", "kind": "question"}]
    rows = [line | {"label": "two"} | more for more in right + wrong]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = built(Store(tmp_path / "store"), described(dataset(str(mine)))[1])
    assert (found.figures["examples"], found.figures["labelled_questions"]) == (6, 2)
    said = "the first: texts.jsonl:5: answer: is missing, and a `label` ('two') is none"
    assert found.figures["notes"][0] == f"2 questions with a label in place of an answer; {said}"


def test_what_an_option_leaves_out_is_counted(tmp_path: Path) -> None:
    devkit(tmp_path / "a", {"1": xml(item(1, 1, 4, 4, difficult=1), item(1, 1, 4, 4))})
    raws = {"a": download(Source(path=str(tmp_path / "a")).pinned())}
    (found,) = built(Store(tmp_path / "s"), images(raws, Plugin(name="voc", version=2)))
    assert (found.figures["boxes"], found.figures["boxes_difficult"]) == (1, 1)
    assert found.figures["unlisted_images"] == 1  # the mask
    for iscrowd, boxes in ((1, 0), ("1", 0), (True, 0), ("0", 1), (False, 1), (None, 1)):
        folder = tmp_path / repr(iscrowd)
        bad_rows("coco", folder)
        path = folder / "instances_train.json"
        content = json.loads(path.read_text())
        content["annotations"] = [content["annotations"][0] | {"iscrowd": iscrowd}]
        path.write_text(json.dumps(content))
        (found,) = built(Store(tmp_path / "s"), described(own(folder))[0])
        assert (found.figures.get("boxes", 0), found.figures.get("boxes_crowd", 0)) == (boxes, 1 - boxes)
