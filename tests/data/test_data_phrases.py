"""Readers of phrases with boxes: Flickr30k Entities and the RefCOCOs."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from data.test_data_entities import box, photo
from data.test_data_fuzz import raws

from vbert.data import readers
from vbert.data.pickles import UnsafePickle
from vbert.data.readers import flickr30k_entities, refcoco
from vbert.errors import UserError

ENTITIES = {
    "Sentences/1.txt": b"[/EN#7/people/other A band] plays [/EN#0/notvisual it] in [/EN#9/scene a hall] .\nNobody .\n",
    "Annotations/1.xml": photo(
        f"<name>7</name>{box(1, 2, 30, 40)}",
        f"<name>7</name><name>8</name>{box(5, 6, 500, 375)}",
        "<name>9</name><scene>1</scene><nobndbox>1</nobndbox>",
    ),
    "Sentences/2.txt": "Caf\u00e9 [/EN#3/scene a street]".encode("cp1252"),
    "Annotations/2.xml": photo(f"<name>3</name>{box(1, 1, 2, 2)}"),
    "Sentences/3.txt": b"Nobody .",
    "Annotations/3.xml": photo(),
    "train.txt": b"1\n",
    "test.txt": b"2\n",
    "UNRELATED_CAPTIONS": b"# format: <imageID> <sentence number>\n1 2\n9 1\n",
}


def read(reader: Any, files: dict[str, bytes], **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    found = list(readers.call(reader, "examples", raws(files), set(), options=options))
    notes = [row for row in found if isinstance(row, readers.ReaderNote)]
    rows = [row for row in found if isinstance(row, dict)]
    return sorted(rows, key=lambda row: str(row["example_id"])), {note.figure: note.count for note in notes}


def test_entities() -> None:
    """A phrase of two types has all boxes of its chain; a scene and chain 0 have none."""
    rows, notes = read(flickr30k_entities, ENTITIES)
    assert [(row["example_id"], row["split"], row["image_ids"]) for row in rows] == [
        ("1/0", "train", ["1"]),
        ("1/1", "train", ["1"]),
        ("2/0", "test", ["2"]),
    ]
    assert [row["text"] for row in rows] == ["A band plays it in a hall .", "Nobody .", "Caf\u00e9 a street"]
    assert rows[0]["phrases"] == [
        {"start": 0, "end": 6, "boxes": [[1, 2, 30, 40], [5, 6, 500, 375]], "types": ["people", "other"]},
        {"start": 13, "end": 15, "boxes": [], "types": ["notvisual"]},
        {"start": 19, "end": 25, "boxes": [], "types": ["scene"]},
    ]
    assert rows[1]["phrases"] == []
    assert notes == {"texts_not_utf8": 1, "unrelated_captions": 1, "unlisted_photos": 1}


def test_options_of_entities() -> None:
    rows, notes = read(flickr30k_entities, ENTITIES, origin=1, unrelated="skip")
    assert [row["example_id"] for row in rows] == ["1/0", "2/0"]
    assert rows[0]["phrases"][0]["boxes"] == [[0, 1, 29, 39], [4, 5, 499, 374]]
    assert notes["unrelated_captions"] == 1
    for option, said in (({"origin": 2}, "'2' is none of 0, 1"), ({"unrelated": "no"}, "none of keep, skip")):
        with pytest.raises(UserError, match=said):
            read(flickr30k_entities, ENTITIES, **option)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test.txt": b"2\n4\n"}, "test.txt:2: '4' has no file in Sentences"),
        ({"test.txt": b"2\n1\n"}, "train.txt:1: '1' is listed before, at test.txt:2"),
        ({"train.txt": b"", "test.txt": b""}, "hold no train.txt, val.txt or test.txt that names a photo"),
        ({"UNRELATED_CAPTIONS": b"1\n"}, "UNRELATED_CAPTIONS:1: must be a photo and a sentence's number, not '1'"),
        ({"more/Sentences/1.txt": b""}, "more/Sentences/1.txt: a second Sentences/1.txt"),
        ({"Annotations/1.xml": b"<a/>"}, "Annotations/1.xml: size: is missing"),
    ],
)
def test_wrong_entities_are_named(changes: dict[str, bytes], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(flickr30k_entities, ENTITIES | changes)


def ref(number: int, image: int, split: str, *texts: str, **more: Any) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * number + k, "sent": text, "raw": text, "tokens": text.split()} for k, text in enumerate(texts)
    ]
    row = {"ref_id": number, "ann_id": number, "image_id": image, "split": split, "sentences": sentences}
    return row | {"category_id": 1, "file_name": "COCO_train2014_000000000001_1.jpg", "sent_ids": []} | more


def drawn(*rows: tuple[int, int, int]) -> bytes:
    """Objects (id, image, whether they are a crowd)."""
    objects = [{"id": n, "image_id": i, "bbox": [n, 2.5, 3, 4], "iscrowd": crowd} for n, i, crowd in rows]
    return json.dumps({"annotations": objects, "images": [], "categories": []}).encode()


REFS = [ref(1, 9, "train", "left cat", "  "), ref(2, 9, "train", "dog"), ref(3, 8, "testA", "man"), ref(4, 7, "testB")]
MADE = drawn((1, 9, 0), (2, 9, 1), (5, 9, 1), (6, 9, 0), (3, 8, 0), (4, 7, 0))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refcoco(protocol: int) -> None:
    """One phrase over the whole text, beside the boxes of all objects; a crowd's only where it is meant."""
    files = {"refcoco/refs(unc).p": pickle.dumps(REFS, protocol), "refcoco/instances.json": MADE}
    rows, notes = read(refcoco, files)
    assert [(r["example_id"], r["text"], r["split"], r["part"], r["image_ids"]) for r in rows] == [
        ("10", "left cat", "train", None, ["9"]),
        ("20", "dog", "train", None, ["9"]),
        ("30", "man", "test", "testA", ["8"]),
    ]
    assert rows[0]["phrases"] == [{"start": 0, "end": 8, "boxes": [[1, 2.5, 4, 6.5]]}]
    assert [box[0] for box in rows[0]["boxes"]] == [1, 6]
    assert [box[0] for box in rows[1]["boxes"]] == [1, 2, 6]
    assert notes == {"empty_expressions": 1}


def test_google_s_splits_share_photos_which_is_said() -> None:
    refs = [ref(1, 9, "train", "cat"), ref(2, 9, "val", "dog"), ref(3, 8, "val", "man")]
    files = {"refs(google).p": pickle.dumps(refs, 2), "instances.json": drawn((1, 9, 0), (2, 9, 0), (3, 8, 0))}
    found = list(refcoco.examples(raws(files), set(), split_by="google"))
    (note,) = [row for row in found if isinstance(row, readers.ReaderNote)]
    assert (note.figure, note.count) == ("shared_photos_val", 1)
    assert note.sentence.startswith("1 of the 2 photos of val are in train too")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**REFS[0], "split": "testC"}], r"refs\(unc\)\.p: \[0\]: split: must be one of train, val"),
        ([{**REFS[0], "ann_id": "1"}], r"\[0\]: ann_id: must be integer"),
        ([REFS[0], {**REFS[0], "ref_id": 5}], r"\[1\]: sentences\[0\]: sent_id: 10 occurs before"),
        ([ref(9, 9, "val", "cat")], r"\[0\]: ann_id: instances.json has no object 9 of image 9"),
        ([ref(1, 8, "val", "cat")], "has no object 1 of image 8"),
        ({"a": 1}, "must be list"),
    ],
)
def test_wrong_refs_are_named(rows: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(refcoco, {"refs(unc).p": pickle.dumps(rows, 2), "instances.json": MADE})


def test_refs_that_run_code_are_refused() -> None:
    with pytest.raises(UnsafePickle, match=r"os\.system"):
        read(refcoco, {"refs(unc).p": b"cos\nsystem\n(S'true'\ntR.", "instances.json": MADE})
    with pytest.raises(UserError, match=r"0 files are called refs\(umd\)\.p, not one; .*refs\(unc\)\.p"):
        read(refcoco, {"refs(unc).p": b"", "instances.json": MADE}, split_by="umd")
