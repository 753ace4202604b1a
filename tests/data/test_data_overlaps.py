"""Photos on both sides: found by their bytes, across data sets, names and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from artifacts.golden import Here
from data.own_world import png

from tasks.overlaps import overlaps
from vbert.data.examples import Examples, write_examples
from vbert.data.images import Images, write_images
from vbert.data.overlaps import Overlaps, PhotosOfSplits
from vbert.errors import BuildError


def data_set(folder: Path, photos: dict[str, int], texts: dict[str, str]) -> PhotosOfSplits:
    """photos: image → its grey; texts: image → the split of an example about it; an image's own split is train."""
    from hashlib import sha256

    rows = [
        {
            "image_id": name,
            "path": name,
            "sha256": sha256(png(grey)).hexdigest(),
            "width": 4,
            "height": 3,
            "split": "train",
        }
        for name, grey in photos.items()
    ]
    for part in ("images", "examples"):
        (folder / part).mkdir(parents=True)
    write_images(folder / "images", rows)
    if not texts:
        return PhotosOfSplits(Images.at(folder / "images"))
    about = [
        {"example_id": name, "kind": "caption", "image_ids": [name], "split": split, "text": "x"}
        for name, split in texts.items()
    ]
    write_examples(folder / "examples", about)
    return PhotosOfSplits(Images.at(folder / "images"), Examples.at(folder / "examples"))


def made(folder: Path, *arguments: Any) -> tuple[Overlaps, dict[str, Any]]:
    build = Here(folder / "made", folder / "scratch")
    build.directory.mkdir(parents=True)
    figures = overlaps.function(build, *arguments)
    return Overlaps.at(build.directory), figures


def test_photos_are_compared_by_their_bytes(tmp_path: Path) -> None:
    captions = data_set(tmp_path / "captions", {"a": 1, "b": 2, "c": 3}, dict.fromkeys("abc", "train"))
    photos = {f"q{n}": n for n in range(1, 7)}
    splits = {"q1": "val", "q2": "test", "q3": "test", "q4": "train", "q5": "test", "q6": "val"}
    questions = data_set(tmp_path / "questions", photos, splits)
    both = {"captions": captions, "vqa": questions}
    with pytest.raises(BuildError) as refused:
        made(tmp_path / "refused", both, {"vqa": questions}, {}, {})
    assert str(refused.value) == (
        "1 photo of vqa's val, trained on in captions: q1 (and 1 more overlaps); take them out of one, or if it must "
        "be so say why: `--set 'data.vqa.known_overlap=REASON'` (in a spec: `known_overlap: REASON`)"
    )
    artifact, figures = made(tmp_path / "known", both, {"vqa": questions}, {"captions": "as published"}, {})
    assert [(one.split, one.count, one.photos) for one in artifact.found()] == [
        ("val", 1, ["q1"]),
        ("test", 2, ["q2", "q3"]),
    ]
    assert figures["overlaps"] == 3
    assert figures["notes"][1] == ("2 photos of vqa's test, trained on in captions: q2, q3; known: as published")
    artifact, figures = made(
        tmp_path / "apart", {"vqa": questions}, {"vqa": questions}, {}, {"detector d": "coco_2017"}
    )
    assert artifact.found() == []
    assert figures == {
        "trained": 1, "evaluated": 5, "overlaps": 0,
        "notes": ["detector d was trained on coco_2017, whose photos aren't compared"],
    }  # fmt: skip


def test_a_photo_of_train_and_test_in_one_set_counts(tmp_path: Path) -> None:
    """Four questions of the same photo on both sides; three photos are named."""
    texts = {f"{n}{side}": split for n in range(4) for side, split in (("a", "train"), ("b", "test"))}
    part = data_set(tmp_path / "rad", {name: int(name[0]) for name in texts}, texts)
    with pytest.raises(BuildError, match="4 photos of rad's test, trained on in rad: 0b, 1b, 2b …; take"):
        made(tmp_path / "made", {"rad": part}, {"rad": part}, {}, {})


def test_a_detectors_photos_count_by_their_own_split(tmp_path: Path) -> None:
    boxes = data_set(tmp_path / "boxes", {"x": 1, "y": 2}, {})
    part = data_set(tmp_path / "vqa", {"q": 2, "r": 3}, {"q": "test", "r": "train"})
    with pytest.raises(BuildError, match=r"1 photo of vqa's test, trained on in the detector \(boxes\): q;"):
        made(tmp_path / "made", {"vqa": part, "the detector (boxes)": boxes}, {"vqa": part}, {}, {})
