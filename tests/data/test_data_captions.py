"""Readers of captions: Karpathy's splits, and Visual Genome, whose files are streamed."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from data.test_data_fuzz import raws
from data.test_data_phrases import read

from vbert.data import readers
from vbert.data.readers import _stream, karpathy, visual_genome
from vbert.data.readers._stream import items
from vbert.errors import UserError


def captioned(name: str, split: str, *texts: str, first: int = 0, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": text, "tokens": text.split(), "imgid": 0, "sentid": first + k} for k, text in enumerate(texts)]
    return {"filename": name, "split": split, "imgid": 0, "sentences": sentences, "sentids": []} | more


def dataset(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"images": rows, "dataset": "coco"}).encode()


def test_karpathy_of_coco() -> None:
    """The rest of val joins train; ids are those of coco_2014, and sort as the file does."""
    rows = [
        captioned("COCO_val2014_000000000042.jpg", "test", "b\n", " a ", first=70, cocoid=42, filepath="val2014"),
        captioned("COCO_val2014_000000000009.jpg", "restval", "", "c", first=3, cocoid=9, filepath="val2014"),
        captioned("COCO_train2014_000000000007.jpg", "train", "d", first=5, cocoid=7, filepath="train2014"),
    ]
    found, notes = read(karpathy, {"dataset_coco.json": dataset(*rows)})
    assert [(row["example_id"], row["image_ids"], row["split"], row["text"]) for row in found] == [
        ("000000/000/70", ["42"], "test", "b"),
        ("000000/001/71", ["42"], "test", "a"),
        ("000001/001/4", ["9"], "train", "c"),
        ("000002/000/5", ["7"], "train", "d"),
    ]
    assert sorted(row["example_id"] for row in found) == [row["example_id"] for row in found]
    assert notes == {"empty_captions": 1}


def test_karpathy_of_flickr() -> None:
    """Photos by name, in any folder; those beside the list where they are wanted."""
    listed = dataset(captioned("12_a.jpg", "train", "x"), captioned("7.jpg", "val", "y"))
    files = {"dataset_flickr8k.json": listed, "dataset_coco.json": dataset(), "p/12_a.jpg": b"", "7.jpg": b""}
    held = raws(files | {"p/8.jpg": b""})
    rows = list(karpathy.images(held, of="flickr8k"))
    assert {row["image_id"]: row["split"] for row in rows} == {"12_a": "train", "7": "val"}
    kept = list(karpathy.images(held, of="flickr8k", unlisted="keep"))
    assert [row for row in kept if row not in rows] == [
        {"image_id": "8", "path": "p/8.jpg", "source": "data", "split": None}
    ]
    assert {row["image_ids"][0] for row in read(karpathy, files, of="flickr8k")[0]} == {"12_a", "7"}


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"dataset_coco.json": dataset(captioned("a.jpg", "rest", "x"))}, {}, r"images\[0\]: split: must be one of"),
        (
            {"dataset_coco.json": dataset(*[captioned("a.jpg", "val", "x")] * 2)},
            {},
            r"'a' is listed before, at .*\[0\]",
        ),
        ({"a.json": b"{}"}, {}, "hold 0 files called dataset_coco.json or"),
        ({"dataset_coco.json": b"", "dataset_flickr8k.json": b""}, {}, "hold 2 files called.*say which by"),
        ({"dataset_coco.json": b""}, {"of": "flickr30k"}, "hold 0 files called dataset_flickr30k.json"),
        ({"dataset_coco.json": b""}, {"of": "flickr"}, "options.of: 'flickr' is none of coco, flickr30k"),
    ],
)
def test_wrong_files_of_karpathy_are_named(files: dict[str, bytes], options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(karpathy, files, **options)


GENOME = {
    "image_data.json": [{"image_id": 1, "coco_id": None, "width": 4}, {"image_id": 2, "coco_id": 9}],
    "region_descriptions.json": [
        {"id": 1, "regions": [{"region_id": 5, "phrase": " the clock ", "x": 1}, {"region_id": 5, "phrase": "again"}]},
        {"id": 2, "regions": [{"region_id": 6, "phrase": " "}]},
    ],
    "question_answers.json": [
        {"id": 2, "qas": [{"qa_id": 3, "question": "What color?", "answer": "The green.", "a_objects": []}]},
        {"id": 1, "qas": []},
    ],
}
PHOTOS = {"VG_100K/1.jpg": b"", "VG_100K_2/2.jpg": b""}


def test_visual_genome() -> None:
    files = {name: json.dumps(rows).encode() for name, rows in GENOME.items()} | PHOTOS
    rows, notes = read(visual_genome, files)
    assert [(row["example_id"], row["kind"], row["image_ids"], row["text"]) for row in rows] == [
        ("1/region/5", "caption", ["1"], "the clock"),
        ("2/question/3", "question", ["2"], "What color?"),
    ]
    assert rows[1]["answers"] == [{"answer": "green", "score": 1.0}]
    assert notes == {"repeated_regions": 1, "empty_captions": 1}
    *found, note = visual_genome.images(raws(files))
    assert [(row["image_id"], row["path"], row["split"]) for row in found if isinstance(row, dict)] == [
        ("1", "VG_100K/1.jpg", "train"),
        ("2", "VG_100K_2/2.jpg", "train"),
    ]
    assert note == readers.ReaderNote(
        "photos_of_coco", 1, "1 of the 2 photos are COCO's too, with other bits, so that overlaps aren't seen"
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"id": 1}', "f: is no list"),
        (b"", "f: is no list"),
        (b"[1, 2", r"f: after \[1\]: must be , or \], not ''"),
        (b"[1 2]", r"after \[0\]: must be , or \], not '2'"),
        (b"[1, ]", r"f: \[1\]: not JSON"),
        (b'[1, "a"]', r"f: \[1\]: must be integer, unable to parse"),
        (b"[1] x", "f: 'x' follows the list"),
        (b"[1, \xff\xfe]", "is not in UTF-8"),
        (b"[" * 100_000, r"f: \[0\]: not JSON"),
        (b'["' + b"x" * 9000, r"f: \[0\]: is longer than 5,000 signs, or not JSON"),
    ],
)
def test_wrong_lists_are_named(data: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "LONGEST_ITEM", 5000)
    with pytest.raises(UserError, match=said):
        list(items(raws({"f": data})["data"], "f", int))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_blocks_end_anywhere(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "BLOCK", block)
    values = ["caf\u00e9 \U0001f600", 'a"]\\', "", "[1, 2]"]
    for data in (json.dumps(values), json.dumps(values, ensure_ascii=False, indent=3), "[]", " [ ] \n"):
        held = raws({"f": data.encode("utf-8-sig")})["data"]
        found = [item for _, item in items(held, "f", str)]
        assert found == (values if len(data) > 9 else [])
    numbers = raws({"f": b"[12345,678 ,9]"})["data"]
    assert [item for _, item in items(numbers, "f", int)] == [12345, 678, 9]


def test_a_long_list_takes_little_memory() -> None:
    """36 MB of it below 8 MB, most of that a block and its text."""

    class Long:
        def open(self, name: str) -> Any:
            row = json.dumps(GENOME["region_descriptions.json"][0]).encode() + b" " * 900
            return io.BufferedReader(_Repeated(b"[" + row, b"," + row, 36_000, b"]"))

    tracemalloc.start()
    count = sum(1 for _ in items(Long(), "f", visual_genome.RegionsRow))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, peak < 8 << 20) == (36_001, True), peak


class _Repeated(io.RawIOBase):
    """`first`, then `more` several times, then `last`."""

    def __init__(self, first: bytes, more: bytes, times: int, last: bytes) -> None:
        self._parts = iter((first, *(more for _ in range(times)), last))
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._held = self._held or next(self._parts, b"")
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
