"""Shipped specs read files in the forms that they name: small ones here, with photos in place of the real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.data_steps import built, described
from data.own_world import png
from data.test_data_mvsa import tweets
from data.test_data_questions import ask, people

from vbert.artifacts.store.store import Store
from vbert.data.readers import load
from vbert.data.source import Source
from vbert.data.spec import dataset
from vbert.errors import NotAccepted

COCO = {"train2014": (1, 2), "val2014": (3,), "test2015": (4, 5)}


def coco_2014(folder: Path) -> None:
    """The photos and lists of `coco_2014`, a folder a source."""
    for part, numbers in COCO.items():
        (folder / part / part).mkdir(parents=True)
        images = []
        for number in numbers:
            name = f"COCO_{part}_{number:012d}.jpg"
            (folder / part / part / name).write_bytes(png(number))
            images.append({"id": number, "file_name": name, "width": 4, "height": 3})
        kinds = ("image_info",) if part == "test2015" else ("instances", "captions")
        for kind in kinds:
            at = folder / ("test_info" if part == "test2015" else "annotations") / "annotations" / f"{kind}_{part}.json"
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))


def questions(folder: Path, prefix: str, annotated: str, **splits: list[int]) -> None:
    for part, numbers in splits.items():
        word = part.replace("_", "-")
        at = folder / f"questions_{part.partition('2')[0].partition('_')[0]}"
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{prefix}{word}_questions.json").write_text(json.dumps({"questions": [ask(n) for n in numbers]}))
        if not part.startswith("test"):
            at = folder / f"annotations_{part.partition('2')[0]}"
            at.mkdir()
            rows = [people(*["yes"] * 10, question_id=n) for n in numbers]
            (at / f"{annotated}{part}_annotations.json").write_text(json.dumps({"annotations": rows}))


def read(name: str, folder: Path, store: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The examples of a shipped spec whose sources are folders of their names, and their figures. With its counts, they
    are refused for being too few."""
    spec = dataset(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbert.data.spec.dataset", lambda of: _local(dataset(of), folder))
        if spec.examples is not None and spec.examples.counts:
            with pytest.raises(NotAccepted, match="were read, published are"):
                built(Store(store), *described(_local(spec, folder, counted=True)))
        images, texts = built(Store(store), *described(_local(spec, folder)))
    return texts.table().to_pylist(), {**images.figures, **texts.figures}


def _local(spec: Any, folder: Path, counted: bool = False) -> Any:
    sources = {key: Source(path=str(folder / key)) for key in spec.sources}
    parts = {
        part: of.model_copy(update={"counts": {}})
        for part in ("images", "examples")
        if (of := getattr(spec, part)) is not None and not (counted and part == "examples")
    }
    return spec.model_copy(update={"sources": sources, **parts})


@pytest.mark.parametrize("name", ["vqa_v2", "vqa_v2_trainval"])
def test_vqa_v2_on_coco(name: str, tmp_path: Path) -> None:
    coco_2014(tmp_path)
    splits = {"train2014": [1000, 2000], "val2014": [3000], "test2015": [4000, 5000], "test_dev2015": [5000]}
    questions(tmp_path, "v2_OpenEnded_mscoco_", "v2_mscoco_", **splits)
    rows, figures = read(name, tmp_path, tmp_path / "store")
    assert figures["test"] == figures["unlabelled"] == 2
    of = {row["example_id"]: row["split"] for row in rows}
    assert (of["1000"], of["3000"]) == (("train", "train") if name == "vqa_v2_trainval" else ("train", "val"))
    assert [row["part"] for row in rows if row["split"] == "test"] == [None, "test-dev"]


def test_ok_vqa_whose_val_is_test(tmp_path: Path) -> None:
    coco_2014(tmp_path)
    questions(tmp_path, "OpenEnded_mscoco_", "mscoco_", train2014=[1000], val2014=[3000])
    rows, _ = read("ok_vqa", tmp_path, tmp_path / "store")
    assert [(row["example_id"], row["split"]) for row in rows] == [("1000", "train"), ("3000", "test")]


def test_hateful_memes_in_parts(tmp_path: Path) -> None:
    """A meme in both files of dev is there twice, the second time by the name of its file."""
    at = tmp_path / "files"
    (at / "img").mkdir(parents=True)
    names = {"train": [1], "dev_seen": [2], "dev_unseen": [2, 3], "test_seen": [4], "test_unseen": [5]}
    for name, numbers in names.items():
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": n % 2, "text": f"meme {n}"} for n in numbers]
        (at / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in numbers:
            (at / "img" / f"{number:05d}.png").write_bytes(png(number))
    rows, figures = read("hateful_memes", tmp_path, tmp_path / "store")
    assert sorted((row["example_id"], row["split"], row["part"], row["label"]) for row in rows) == [
        ("1", "train", None, "1"), ("2", "val", "dev_seen", "0"), ("3", "val", "dev_unseen", "1"),
        ("4", "test", "test_seen", "0"), ("5", "test", "test_unseen", "1"), ("dev_unseen/2", "val", "dev_unseen", "0"),
    ]  # fmt: skip
    assert figures["ids_in_two_files"] == 1


def test_mvsa_is_split_by_its_reader(tmp_path: Path) -> None:
    lines = [f"{n}\tneutral,positive" for n in range(1, 40)]
    texts = {str(n): b"x" for n in range(1, 40)}
    tweets(tmp_path / "files", lines, texts, {name: int(name) for name in texts})
    rows, _ = read("mvsa_single", tmp_path, tmp_path / "store")
    assert {row["label"] for row in rows} == {"positive"}
    assert {row["split"] for row in rows} == {"train", "val", "test"}


@pytest.mark.parametrize("name", ["gqa", "vcr", "nlvr", "nlvr2", "a_okvqa", "vqa_rad", "vqa_rad_by_image", "snli_ve"])
def test_a_spec_gives_its_readers_options_that_they_have(name: str) -> None:
    from inspect import signature

    spec = dataset(name)
    for part in ("images", "examples"):
        of = getattr(spec, part)
        if of.reader is not None:
            assert set(of.options) <= set(signature(getattr(load(of.reader), part)).parameters)
