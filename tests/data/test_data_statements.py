"""Readers of statements about pictures: NLVR2's files, NLVR's of 2017."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.data_steps import built, described
from data.own_world import png
from data.text_world import SHARED, rows_of, spec_of

from vbert.artifacts.store.store import Store
from vbert.errors import BuildError, UserError


def statements(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
        for row in rows:
            for side in (0, 1):
                at = folder / "images" / str(row.get("directory", ""))
                at.mkdir(parents=True, exist_ok=True)
                pair = row["identifier"].rpartition("-")[0]
                (at / f"{pair}-img{side}.png").write_bytes(png(len(pair) + side))
    return folder


def line(identifier: str, label: str | None = "True", **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": f"says {identifier} ", "label": label, **more}


def test_pairs_of_photos(tmp_path: Path) -> None:
    train = [line(f"train-{n}-{pair}-0", directory=n % 9) for n in range(40) for pair in (0, 1)]
    files = {"train": train, "dev": [line("dev-1-0-0"), line("dev-1-1-0", "false"), line("dev-1-0-1", "True ")]}
    files |= {"test1": [line("test1-0-0-0")], "test2": [line("test2-0-0-0", None)], "balanced_dev": files["dev"]}
    folder = statements(tmp_path / "nlvr2", **files)
    rows, figures, _ = rows_of(spec_of("nlvr2", folder), tmp_path / "store")
    by_id = {row["example_id"]: row for row in rows}
    assert by_id["dev-1-1-0"] == {
        "example_id": "dev-1-1-0",
        "kind": "pair",
        "image_ids": ["dev-1-1-img0", "dev-1-1-img1"],
        "split": "val",
        "text": "says dev-1-1-0",
        "label": "false",
        "group": "dev-1-0",
        "part": None,
    }
    assert by_id["dev-1-0-0"]["group"] == "dev-1-0" != by_id["dev-1-0-1"]["group"]
    assert (by_id["test2-0-0-0"]["part"], by_id["test2-0-0-0"]["label"]) == ("test2", None)
    assert {name: figures[name] for name in ("train", "val", "test", "stray_blanks")} == {
        "train": 80, "val": 3, "test": 2, "stray_blanks": 1
    }  # fmt: skip
    held_out = spec_of("nlvr2", folder, validation={"of": "train", "share": 0.4})
    rows, _, _ = rows_of(held_out, tmp_path / "store")
    directories = {
        split: {train[at]["directory"] for at, row in enumerate(train) if by[row["identifier"]] == split}
        for by in ({row["example_id"]: row["split"] for row in rows},)
        for split in ("train", "val")
    }
    assert all(directories.values())
    assert not directories["train"] & directories["val"], "a directory is in one split"
    images, texts = built(Store(tmp_path / "store"), *described(spec_of("nlvr2", folder), limit=4))
    assert images.figures["images"] == 4 + 4 + 4
    assert texts.figures["train"] == 2, "a limit keeps pairs together"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"dev": [line("dev-1-0")]}, r"dev\.json:1: identifier: must be split-set-pair-sentence, not 'dev-1-0'"),
        ({"dev": [line("dev-1-0-0", "maybe")]}, r"dev\.json:1: label: must be True or False, not 'maybe'"),
        ({"dev": [line("dev-1-0-0") | {"sentence": " "}]}, r"dev\.json:1: sentence: is empty"),
        (
            {"dev": [line("dev-1-0-0")], "train": [line("dev-1-0-1", directory="")]},
            "the photos of dev-1-0 are in train and in val",
        ),
        ({"tiny": [line("dev-1-0-0")]}, r"hold no train\.json, dev\.json, test1\.json; name the files by"),
    ],
)
def test_wrong_pairs_are_named(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = statements(tmp_path / "nlvr2", **files)
    with pytest.raises((UserError, BuildError), match=said):
        rows_of(spec_of("nlvr2", folder), tmp_path / "store")


def test_a_photo_that_is_absent_is_named(tmp_path: Path) -> None:
    folder = statements(tmp_path / "nlvr2", dev=[line("dev-1-0-0")])
    (folder / "images" / "dev-1-0-img1.png").unlink()
    with pytest.raises(UserError, match=r"dev\.json:1: no source holds the photo 'dev-1-0-img1'; near: 'dev-1-0-img0'"):
        rows_of(spec_of("nlvr2", folder), tmp_path / "store")


@pytest.mark.skipif(not (SHARED / "nlvr2").exists(), reason="no NLVR2 miniature beside the checkout")
def test_a_miniature_of_nlvr2(tmp_path: Path) -> None:
    options = {"splits": {"test": "tiny-dev.json"}}
    rows, figures, _ = rows_of(spec_of("nlvr2", SHARED / "nlvr2", options), tmp_path / "store")
    assert figures["test"] == len(rows) == 8
    assert Counter(row["label"] for row in rows)["true"] > 0


ITEM = {"x_loc": 10, "y_loc": 20, "size": 30, "type": "square", "color": "#0099ff"}
DOT = {"x_loc": 0, "y_loc": 0, "size": 10, "type": "circle", "color": "Black"}


def test_drawings_in_all_orders(tmp_path: Path) -> None:
    folder = tmp_path / "nlvr"
    folder.mkdir()
    shown = [[ITEM], [DOT], []]
    row = {"identifier": "7-1", "sentence": "a box", "label": "true", "directory": "0", "structured_rep": shown}
    (folder / "dev.json").write_text(json.dumps(row))
    for k in range(6):
        (folder / f"dev-7-1-{k}.png").write_bytes(png(k, (400, 100)))
    images, texts = built(Store(tmp_path / "store"), *described(spec_of("nlvr", folder)))
    rows = texts.table().to_pylist()
    assert [row["example_id"] for row in rows] == [f"dev-7-1-{k}.png" for k in range(6)]
    assert {(row["group"], row["label"], row["split"], *row["image_ids"]) for row in rows} == {
        ("dev-7", "true", "val", f"dev-7-1-{k}") for k in range(6)
    }
    boxes = images.boxes().to_pylist()
    squares = [(box["image_id"], box["x1"], box["x2"], box["attributes"]) for box in boxes if box["class"] == "square"]
    starts = [0, 0, 150, 300, 150, 300]  # of box 0 in the orders 012 021 102 120 201 210
    assert squares == [(f"dev-7-1-{k}", start + 10, start + 40, ["blue", "large"]) for k, start in enumerate(starts)]
    assert [box["x1"] for box in boxes if box["class"] == "circle"] == [150, 300, 0, 0, 300, 150]


@pytest.mark.skipif(not (SHARED / "nlvr1").exists(), reason="no NLVR miniature beside the checkout")
def test_a_miniature_of_nlvr(tmp_path: Path) -> None:
    """The boxes lie where the drawings show their colours."""
    images, texts = built(Store(tmp_path / "store"), *described(spec_of("nlvr", SHARED / "nlvr1")))
    assert (images.figures["images"], texts.figures["val"]) == (990, 990)
    colours = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
    checked = 0
    for box in images.boxes().to_pylist()[::40]:
        if box["class"] == "square" and box["y2"] < 100:
            pixels = np.asarray(images.open(box["image_id"]))
            x, y = (int(box[a] + box[b]) // 2 for a, b in (("x1", "x2"), ("y1", "y2")))
            assert tuple(pixels[y, x]) == colours[box["attributes"][0]]
            checked += 1
    assert checked > 50
