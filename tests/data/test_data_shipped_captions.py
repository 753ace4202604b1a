"""Shipped specs of captions and phrases, on small files of their forms that a local server gives."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.data_steps import built, described
from data.own_world import png
from data.test_data_captions import GENOME, captioned, dataset
from data.test_data_entities import box, photo
from data.test_data_phrases import drawn, ref
from data.test_data_shipped import coco_2014
from pytest_httpserver import HTTPServer

from vbert.artifacts.store.store import Store
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec
from vbert.data.spec import dataset as spec_of
from vbert.errors import NotAccepted

Files = dict[str, dict[str, bytes]]  # source → its files


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def local(spec: DatasetSpec, files: Files, folder: Path, server: HTTPServer, counted: bool = False) -> DatasetSpec:
    """The spec with its downloads from `server`, its other sources in `folder`, and no counts but the examples'."""
    sources = {}
    for key, source in spec.sources.items():
        if key in files and source.url is not None:
            path = f"/{spec.name}/{key}/{source.file}"
            data = packed(files[key]) if source.file.endswith(".zip") else files[key][source.file]
            server.expect_request(path).respond_with_data(data, content_type="application/octet-stream")
            sources[key] = Source(url=server.url_for(path), file=source.file)
            continue
        for name, data in files.get(key, {}).items():
            (folder / key / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / key / name).write_bytes(data)
        sources[key] = Source(path=str(folder / key))
    parts = {
        part: of.model_copy(update={"counts": {}})
        for part in ("images", "examples")
        if (of := getattr(spec, part)) is not None and not (counted and part == "examples")
    }
    return spec.model_copy(update={"sources": sources, **parts})


@pytest.fixture
def read(tmp_path: Path, httpserver: HTTPServer) -> Callable[..., Any]:
    """Reads a shipped spec of such files: its examples and the figures of both steps. With its counts, it is
    refused for being too few."""

    def reading(name: str, files: Files, others: Files | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        spec, store = spec_of(name), Store(tmp_path / "store")
        with pytest.MonkeyPatch.context() as patch:
            given = {spec.name: files, spec.collection().name: others or files}
            patch.setattr(
                "vbert.data.spec.dataset", lambda of: local(spec_of(of), given.get(of, {}), tmp_path, httpserver)
            )
            if spec.examples is not None and spec.examples.counts:
                with pytest.raises(NotAccepted, match="were read, published are"):
                    built(store, *described(local(spec, files, tmp_path, httpserver, counted=True)))
            images, texts = built(store, *described(local(spec, files, tmp_path, httpserver)))
        return texts.table().to_pylist(), {**images.figures, **texts.figures}

    return reading


def test_coco_captions(read: Any, tmp_path: Path) -> None:
    coco_2014(tmp_path)
    rows = [
        captioned("COCO_val2014_000000000003.jpg", "restval", "a", cocoid=3),
        captioned("COCO_train2014_000000000001.jpg", "test", "b", cocoid=1),
    ]
    names = {"dataset_coco.json": dataset(*rows), "dataset_flickr8k.json": b"{}", "dataset_flickr30k.json": b"{}"}
    found, _ = read("coco_captions", {"captions": names})
    assert [(row["image_ids"], row["split"]) for row in found] == [(["3"], "train"), (["1"], "test")]


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
def test_flickr(name: str, read: Any) -> None:
    listed = dataset(captioned("12.jpg", "train", "x"), captioned("7.jpg", "val", "y"))
    photos = {f"images/{number}.jpg": png(number) for number in (12, 7, 8)}
    found, figures = read(
        name, {"captions": {f"dataset_{name}.json": listed, "dataset_coco.json": b""}, "photos": photos}
    )
    assert [(row["image_ids"], row["split"]) for row in found] == [(["12"], "train"), (["7"], "val")]
    assert figures.get("no_split", 0) == (name == "flickr30k")


def test_flickr30k_entities_on_flickr30k(read: Any) -> None:
    """A photo that Karpathy's list doesn't have is in train here."""
    others = {
        "captions": {"dataset_flickr30k.json": dataset(captioned("12.jpg", "train", "x"))},
        "photos": {f"{number}.jpg": png(number) for number in (12, 8)},
    }
    marked = {f"Sentences/{n}.txt": b"[/EN#7/people A girl] .\nB .\n" for n in (12, 8)}
    boxed = {f"Annotations/{n}.xml": photo(f"<name>7</name>{box(1, 1, 3, 3)}") for n in (12, 8)}
    files = {
        "annotations": marked | boxed,
        **{split: {f"{split}.txt": b""} for split in ("train", "val", "test")},
        "unrelated": {"UNRELATED_CAPTIONS": b"# format: <imageID> <sentence number>\n12 2\n"},
    }
    files["train"], files["test"] = {"train.txt": b"8\n"}, {"test.txt": b"12\n"}
    found, figures = read("flickr30k_entities", files, others)
    assert [(row["example_id"], row["split"]) for row in found] == [
        *(("12/0", "test"), ("12/1", "test"), ("8/0", "train"), ("8/1", "train"))
    ]
    assert found[0]["phrases"] == [{"start": 0, "end": 6, "boxes": [[1, 1, 3, 3]], "types": ["people"]}]
    assert figures["unrelated_captions"] == 1


@pytest.mark.parametrize(("name", "split_by"), [("refcoco", "unc"), ("refcoco_plus", "unc"), ("refcocog", "umd")])
def test_refcoco(name: str, split_by: str, read: Any, tmp_path: Path) -> None:
    coco_2014(tmp_path)
    refs = [ref(1, 1, "train", "cat"), ref(2, 2, "test" if split_by == "umd" else "testB", "dog")]
    names = {f"x/refs({split_by}).p": pickle.dumps(refs, 2), "x/refs(google).p": b""}
    names["x/instances.json"] = drawn((1, 1, 0), (2, 2, 0))
    found, _ = read(name, {"expressions": names})
    assert [(row["example_id"], row["image_ids"], row["split"], row["part"]) for row in found] == [
        ("10", ["1"], "train", None),
        ("20", ["2"], "test", None if split_by == "umd" else "testB"),
    ]
    assert found[0]["boxes"] == [[1.0, 2.5, 4.0, 3.0]]  # cut at the border of 4×3 pixels


def test_visual_genome(read: Any) -> None:
    files = {name: {f"{name}.json": json.dumps(GENOME[f"{name}.json"]).encode()} for name in ("image_data",)}
    for source, name in (("regions", "region_descriptions"), ("questions", "question_answers")):
        files[source] = {f"{name}.json": json.dumps(GENOME[f"{name}.json"]).encode()}
    files |= {"photos1": {"VG_100K/1.jpg": png(1)}, "photos2": {"VG_100K_2/2.jpg": png(2)}}
    found, figures = read("visual_genome", files)
    assert [(row["example_id"], row["kind"]) for row in found] == [
        ("1/region/5", "caption"),
        ("2/question/3", "question"),
    ]
    assert {row["split"] for row in found} <= {"train", "val"}
    assert figures["photos_of_coco"] == 1
