"""Readers on mutated files: each gives rows or raises a UserError with the fault, and no other exception."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any, BinaryIO, cast

import pytest
from data.voc_world import item, xml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vbert.data import readers
from vbert.data.boxes import BoxConverter, PhotoHeader
from vbert.data.raw import RawFiles
from vbert.data.readers import coco, jsonl, voc
from vbert.data.readers._rows import ExampleRow, checked
from vbert.data.xml import parsed
from vbert.errors import BuildError, UserError

FAST, SLOW = 100, 2000  # mutated files a reader
HEALTHY = list(HealthCheck)


class Held:
    """Raw files in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def members(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name])

    def read(self, name: str, limit: int = 1 << 30) -> bytes:
        return self._files[name]

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._files[name])

    def sha256(self, name: str) -> str:
        return sha256(self._files[name]).hexdigest()


def raws(files: dict[str, bytes]) -> dict[str, RawFiles]:
    return {"data": cast(RawFiles, Held(files))}


PHOTOS = {"a.jpg": b"", "b.jpg": b""}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "caption": "x"},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4], "caption": "a cat"},
    ],
    "categories": [{"id": 7, "name": "cat"}],
}
LINES = [
    {"image": "a.jpg", "text": "a cat on a mat"},
    {"image": "b.jpg", "text": "how many?", "answers": [{"answer": "two", "score": 1}, {"answer": "2", "score": 0.5}]},
    {"image_ids": ["a.jpg", "b.jpg"], "kind": "pair", "text": "both", "label": "true", "unique": None},
    {
        "image": "a.jpg",
        "text": "a cat",
        "phrases": [{"start": 0, "end": 2, "boxes": [[1, 2, 3, 4]]}],
        "negatives": ["x"],
    },
    {
        "image": "b.jpg",
        "text": "where?",
        "choices": [{"text": "on"}, {"text": "in it", "phrases": [{"start": 3, "end": 5, "boxes": [[1, 2, 3, 4]]}]}],
        "label": "1",
        "given": ["in", "on"],
        "group": "b",
    },
]
BOXES = [{"image": "a.jpg", "box": [1, 2, 3.5, 4], "class": "cat", "attributes": ["red"]}] * 2
SCENE = {
    "image_id": "a",
    "split": "train",
    "width": 9,
    "ground": [1, 2, 3],
    "objects": [{"shape": "c", "color": "r", "size": "s", "box": [1, 2, 3, 4]}],
}
TEXT = {"image_ids": ["a"], "kind": "caption", "text": "red", "example_id": "1", "split": "train"}
QUESTIONS = [["what is the blue shape?", "circle", 3], ["is there a red shape?", "yes", 4]]
ASKED = {"questions": [{"image_id": n, "question": "how many?", "question_id": n} for n in (1, 2)]}
ANSWERED = {
    "annotations": [
        {
            "question_id": n,
            "answers": [{"answer": "a" if k % 2 else "two", "answer_id": k} for k in range(10)],
            "question_type": "how",
            "answer_type": "n",
        }
        for n in (1, 2)
    ]
}
RADIOLOGY = [
    {"qid": n, "image_name": name, "question": "Where?", "answer": n, "answer_type": "OPEN ", "phrase_type": "para"}
    for n, name in enumerate(sorted(PHOTOS))
]
PAIRS = [{"identifier": f"dev-1-0-{n}", "sentence": "two dogs", "label": "True", "directory": 3} for n in (0, 1)]
ITEM = {"x_loc": 1, "y_loc": 2, "size": 30, "type": "circle", "color": "#0099ff"}
DRAWN = [{"identifier": "1-0", "sentence": "a dot", "label": "true", "structured_rep": [[ITEM], [], [ITEM]]}]
STILL = {"boxes": [[1, 2, 3, 4, 0.5], [2, 2, 9, 9, 1]], "names": ["person", "cup"], "width": 20, "height": 10}
WORDS = ["a", [1, 0]]
NAMES = {"annot_id": "v", "img_fn": "still.jpg", "metadata_fn": "still.json", "objects": ["person", "cup"]}
CHOSEN = {f"{part}_choices": [WORDS] * 4 for part in ("answer", "rationale")} | {
    "answer_label": 1,
    "rationale_label": 2,
}
VCR = NAMES | {"question": WORDS} | CHOSEN
AOKVQA = {
    **{"image_id": 1, "question_id": "q", "question": "why?", "choices": ["a", "b"], "correct_choice_idx": 1},
    **{"direct_answers": ["a", "b", ""], "difficult_direct_answer": False},
}
GQA = {"question": "is it?", "imageId": "a", "answer": "no", "types": {"structural": "verify", "semantic": "object"}}
ENTAILED = [
    {"gold_label": label, "pairID": f"{photo}.jpg#0r1", "sentence2": "a cat"}
    for photo, label in (("a", "neutral"), ("b", "entailment"), ("a", "-"))
]
SPOKEN = {
    "images": [
        {"filename": name, "split": split, "sentences": [{"raw": "a cat", "sentid": 3}], "cocoid": number}
        for name, split, number in (("a.jpg", "restval", 7), ("b.jpg", "test", None))
    ]
}
MEANT = [
    {
        **{"ref_id": n, "ann_id": n, "image_id": 7, "category_id": 1, "split": split},
        "sentences": [{"sent_id": n, "sent": "left cat", "raw": "Left cat"}],
    }
    for n, split in enumerate(("train", "testB"))
]
OBJECTS = {"annotations": [{"id": n, "image_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0} for n in (0, 1)]}
BOXED = (
    "<annotation><size><width>20</width><height>10</height></size><object><name>7</name><name>8</name><bndbox>"
    "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
    "<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
)
SENTENCES = "[/EN#7/people A girl] in [/EN#9/scene a room]\nnone\n"
EASY = "easy_vqa/data/{}/questions.json"


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def whole(content: Any) -> bytes:
    return json.dumps(content).encode()


# reader → its files with what each is made of (JSON, a list of lines, or XML), and those that stay as they are
Made = tuple[Any, Callable[[Any], bytes]]
FILES: dict[str, tuple[dict[str, Made], dict[str, bytes]]] = {
    "coco": ({"instances_train.json": (COCO, whole), "captions_train.json": (COCO, whole)}, PHOTOS),
    "jsonl": ({"texts.jsonl": (LINES, as_lines), "boxes.jsonl": (BOXES, as_lines)}, PHOTOS),
    "shapes": ({"scenes.jsonl": ([SCENE] * 2, as_lines), "texts.jsonl": ([TEXT] * 2, as_lines)}, {}),
    "easy_vqa": ({EASY.format(split): (QUESTIONS, whole) for split in ("train", "test")}, {}),
    "voc": (
        {
            "Annotations/a.xml": (xml(item(1, 1, 9, 9), size=(20, 10)), str.encode),
            "Annotations/b.XML": (
                '<?xml version="1.0" encoding="gbk"?>' + xml(item(2, 2, 9, 9), size=(0, 0)),
                str.encode,
            ),
            "ImageSets/Main/train.txt": ("a.jpg\nb 1\n", str.encode),
        },
        {"JPEGImages/a.jpg": b"", "JPEGImages/b.jpg": b""},
    ),
    "folder": ({}, PHOTOS),
    "vcr": ({"val.jsonl": ([VCR], as_lines), "still.json": (STILL, whole)}, {"still.jpg": b""}),
    "aokvqa": ({"train.json": ([AOKVQA] * 2, whole)}, {}),
    "gqa": ({"val_balanced_questions.json": ({"7": GQA, "8": GQA}, whole)}, PHOTOS),
    "snli_ve": (
        {"snli_1.0_train.jsonl": (ENTAILED, as_lines), "flickr30k_train_val.lst": ("a.jpg\n", str.encode)},
        {"flickr30k_test.lst": b"b.jpg\n", **PHOTOS},
    ),
    "table": ({"t.jsonl": ([{"image": "a.jpg", "text": "a"}, {"image": "b"}], as_lines)}, PHOTOS),
    "mvsa": (
        {"labelResultAll.txt": ("ID\ttext,image\na\tneutral,positive\n", str.encode), "a.txt": ("x", str.encode)},
        PHOTOS,
    ),
    "vqa_v2": (
        {"train_questions.json": (ASKED, whole), "train_annotations.json": (ANSWERED, whole)},
        {"COCO_train2014_000000000001.jpg": b"", "2.jpg": b""},
    ),
    "vqa_rad": ({"trainset.json": (RADIOLOGY, whole)}, PHOTOS),
    "nlvr2": ({"dev.json": (PAIRS, as_lines)}, {f"dev-1-0-img{side}.png": b"" for side in (0, 1)}),
    "links": (
        {
            "links-000000.jsonl": (
                [
                    {"number": n, "url": "x", "caption": "a cat", "split": "train", "photo": photo, "fault": None}
                    for n, photo in enumerate(("a.jpg", None))
                ],
                as_lines,
            )
        },
        PHOTOS,
    ),
    "karpathy": ({"dataset_coco.json": (SPOKEN, whole)}, PHOTOS),
    "flickr30k_entities": (
        {
            "Sentences/a.txt": (SENTENCES, str.encode),
            "Annotations/a.xml": (BOXED, str.encode),
            "val.txt": ("a\n", str.encode),
            "UNRELATED_CAPTIONS": ("# format: <imageID> <sentence number>\na 2\n", str.encode),
        },
        PHOTOS,
    ),
    "refcoco": (
        {"refs(unc).p": (MEANT, lambda rows: pickle.dumps(rows, 2)), "instances.json": (OBJECTS, whole)},
        PHOTOS,
    ),
    "visual_genome": (
        {
            "image_data.json": ([{"image_id": 1, "coco_id": None}, {"image_id": 2, "coco_id": 9}], whole),
            "region_descriptions.json": ([{"id": 1, "regions": [{"region_id": 5, "phrase": "a cat"}] * 2}], whole),
            "question_answers.json": ([{"id": 2, "qas": [{"qa_id": 3, "question": "why?", "answer": "A."}]}], whole),
        },
        {"VG_100K/1.jpg": b"", "VG_100K_2/2.jpg": b""},
    ),
    "nlvr": ({"dev.json": (DRAWN, as_lines)}, {f"dev-1-0-{k}.png": b"" for k in range(6)}),
}
VALUES: list[Any] = [
    *(None, True, [], {}, "", "0", "nan", 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400, 10**5000),
    *([[]], {"id": 1}, ["a.jpg"], "\ud83d", "a\x00b", "\\", "./../a.jpg", "x" * 3000, [[[1]]], [1, 2, 3, 4], "a.png"),
]
TOKENS = [
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"{", b"}", b'"', b"\\ud83d", b"\\u0000"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\xc3\x28", b"\r", b"\n\n", b"<!DOCTYPE a [", b"&x;", b"&#xD800;"),
    *(b'encoding="klingon"', b'encoding="utf-16"', b"<size/>", b"<xmin>1_0</xmin>", b"<object>", b"<a>" * 2000),
]


def mutated(files: dict[str, Made], rng: random.Random) -> dict[str, bytes]:
    """One of the files changed: a value in it by another, or its bytes here and there."""
    out = {name: make(content) for name, (content, make) in files.items()}
    name = rng.choice(sorted(files))
    content, make = copy.deepcopy(files[name])
    if not isinstance(content, str) and rng.random() < 0.6:
        for _ in range(rng.randint(1, 2)):
            place, key = rng.choice(list(_places(content)))
            place[key] = copy.deepcopy(rng.choice(VALUES))
        out[name] = _dumped(content, make)
        return out
    data = bytearray(out[name])
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(data))
        data[at : at + rng.choice((0, 0, 1, 5, 40))] = rng.choice(TOKENS) if rng.random() < 0.7 else rng.randbytes(2)
    out[name] = bytes(data)
    return out


def _dumped(content: Any, make: Callable[[Any], bytes]) -> bytes:
    try:
        return make(content)
    except ValueError:  # numbers of more digits than Python writes
        return b'{"id": 1' + b"0" * 5000 + b"}"


def _places(content: Any) -> Any:
    """(container, key) of every value in it."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def all_read(reader: str, files: dict[str, bytes]) -> list[str]:
    """Reads every row of the files; the sentence that ended it."""
    said: list[str] = []
    module, held = readers.load(reader), raws(files)
    image_ids: set[str] = set()
    try:
        for row in readers.call(module, "images", held, options={}) if hasattr(module, "images") else ():
            if not isinstance(row, readers.ReaderNote):
                image_ids.add(row["image_id"])
        if hasattr(module, "boxes"):
            fitting = BoxConverter({image_id: PhotoHeader(20, 10) for image_id in image_ids})
            list(fitting(readers.call(module, "boxes", held, options={})))
            fitting.sentences()
        if hasattr(module, "examples"):
            list(readers.call(module, "examples", held, image_ids | {"train/3", "a"}, options={}))
    except (UserError, BuildError) as error:
        said.append(str(error))
    return said


@pytest.mark.parametrize("reader", [name for name in readers.names() if FILES[name][0]])
@pytest.mark.parametrize("count", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_only_sentences_leave_a_reader(reader: str, count: int) -> None:
    files, others = FILES[reader]
    assert not all_read(reader, {name: make(content) for name, (content, make) in files.items()} | others)
    ended = 0

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=HEALTHY)
    @given(st.integers(0, 2**62))
    def check(seed: int) -> None:
        nonlocal ended
        ended += len(all_read(reader, mutated(files, random.Random(seed)) | others))

    check()
    assert ended > count / 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"answers": [3]}', r"f:1: answers\[0\]: must be text, or"),
        (b'{"answers": "two"}', "f:1: answers: must be list"),
        (b'{"answers": [{"answer": "a", "score": "1"}]}', r"answers\[0\]: score: must be a number"),
        (b'{"answers": [{"answer": "a", "score": 1}, "b"]}', "answers: some have a score, some have none"),
        (b'{"answers": [{"answer": "a", "answer_id": 1}]}', r"answers\[0\]: score: is missing"),
        (b'{"phrases": [{"start": 1}]}', r"phrases\[0\]: end: is missing"),
        (b'{"choices": [{"phrases": []}]}', r"choices\[0\]: text: is missing"),
        (b'{"choices": [{"text": "a", "box": []}]}', "there is no field 'box'; valid: phrases, text"),
        (
            b'{"phrases": [{"start": 1, "end": 2, "boxes": [], "score": 1}]}',
            "there is no field 'score'; valid: boxes",
        ),
        (b"\xff\xfe{\x00}\x00", "is text in UTF-16; save it as UTF-8"),
        (b'{"text": "x \\ud83d y"}', "f:1: not JSON: .*hex escape"),
        (b'{"phrases": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON: recursion limit"),
        (b'{"image": 1' + b"0" * 400 + b"}", "image: must be string, not 1000"),
    ],
)
def test_nested_values_are_named(row: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        jsonl._answers(checked(row, jsonl.ExampleLine, "f:1")["answers"], "f:1")


def test_answers_in_the_ways_they_are_written() -> None:
    line = {"image": "a.jpg", "text": "how many?", "split": None}

    def row_of(**more: Any) -> dict[str, Any]:
        held = raws({"t.jsonl": b"\xef\xbb\xbf" + as_lines([line | more]), **PHOTOS})
        (row,) = jsonl.examples(held, set(PHOTOS))
        assert isinstance(row, dict)
        return row

    def read(**more: Any) -> list[tuple[str, float]]:
        return [(answer["answer"], answer["score"]) for answer in row_of(**more)["answers"]]

    assert read(answer="two") == [("two", 1.0)]
    assert read(answers=["two", "2", "two"]) == [("two", 1.0), ("2", 1.0)]
    people = ["two"] * 7 + ["2"] * 2 + ["some"]
    votes = [("two", 1.0), ("2", 0.6), ("some", 0.3)]
    assert read(answers=people) == votes
    vqa = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(people, 1)]
    assert read(answers=vqa) == votes
    assert row_of(answers=vqa)["given"] == row_of(answers=people)["given"] == people
    assert "given" not in row_of(answers=["two", "2", "two"])
    choices = [{"text": "two"}, {"text": "2"}]
    assert row_of(choices=choices, label="1")["kind"] == "choice"
    assert read(answers=[{"answer": "two", "score": 0.6}]) == [("two", 0.6)]
    assert set(ExampleRow.__annotations__) < set(jsonl.ExampleLine.__annotations__)


def ids_of(reader: str, files: dict[str, bytes], **options: Any) -> list[str]:
    return [row["image_id"] for row in readers.call(readers.load(reader), "images", raws(files), options=options)]


def test_nothing_of_a_line_is_dropped_for_another_way_to_write_it() -> None:
    for row, said in (
        ({"image": "a.jpg", "text": "q", "answer": "x", "answers": []}, "f.jsonl:1: answer: stands beside `answers`"),
        ({"image": "a.jpg", "image_ids": ["b.jpg"], "text": "q"}, "f.jsonl:1: image: stands beside `image_ids`"),
    ):
        with pytest.raises(UserError, match=said):
            list(jsonl.examples(raws({"f.jsonl": as_lines([row])}), set(PHOTOS)))


def test_labels_of_lines_that_differ_in_case_are_counted() -> None:
    lines = [{"image": "a.jpg", "text": "x", "kind": "sentiment", "label": label} for label in ("Yes", "no", "yes")]
    *rows, note = jsonl.examples(raws({"f.jsonl": as_lines(lines)}), set(PHOTOS))
    assert (len(rows), note.figure, note.count) == (3, "labels_alike", 2)
    assert note.sentence.endswith("'Yes' and 'yes', for example; the first: f.jsonl:3: label")
    with pytest.raises(UserError, match=r"f\.jsonl:1: label: must be string, not NaN"):
        list(jsonl.examples(raws({"f.jsonl": as_lines([lines[0] | {"label": float("nan")}])}), set(PHOTOS)))


def test_a_split_is_the_longest_beginning_that_fits() -> None:
    files = {"train/1.jpg": b"", "train_val/2.jpg": b"", "3.jpg": b""}
    rows = jsonl.images(raws(files), splits={"train": "train", "val": "train_val", "test": ""})
    assert [row["split"] for row in rows] == ["test", "train", "val"]
    with pytest.raises(UserError, match=r"options\.splits\.val: 'train' is that of train too"):
        list(jsonl.images(raws(files), splits={"train": "train", "val": "train"}))


def coco_file(*images: tuple[int, str], **more: Any) -> bytes:
    return whole({"images": [{"id": number, "file_name": name} for number, name in images], **more})


def test_every_file_of_a_split_lists_its_images() -> None:
    files = {f"{part}/all.json": coco_file(*rows) for part, rows in (("x", [(1, "a.jpg")]), ("y", [(2, "b.jpg")]))}
    assert ids_of("coco", files | PHOTOS, splits={"train": "all.json"}) == ["1", "2"]
    named = {name.replace("all", "instances_train"): content for name, content in files.items()}
    named["captions_train.json"] = coco_file((1, "a.jpg"), (3, "b.jpg"))  # boxes say which images there are
    assert ids_of("coco", named | PHOTOS) == ["1", "2"]
    named["y/instances_train.json"] = coco_file((1, "a.jpg"), (2, "b.jpg"))  # one of them in both
    assert ids_of("coco", named | PHOTOS) == ["1", "2"]
    named["y/instances_train.json"] = coco_file((1, "b.jpg"))
    with pytest.raises(UserError, match=r"y/instances_train\.json: images\[0\]: a second image '1'; take `options:"):
        ids_of("coco", named | PHOTOS)


def test_ids_by_name_are_plain_and_never_empty() -> None:
    files = {"instances_train.json": coco_file((1, "x\\a"), (2, "./b.jpg")), **PHOTOS}
    assert ids_of("coco", files, ids="file_name") == ["x/a", "b"]
    files["instances_train.json"] = coco_file((1, "a.jpg"), (1, "b.jpg"))
    with pytest.raises(UserError, match=r"images\[1\]: a second image with the id 1; mend one"):
        ids_of("coco", files, ids="file_name")
    assert ids_of("folder", {"a.jpg": b"", "a.png": b"", "a.jpg.webp": b"", "b.c.png": b""}) == [
        *("a.jpg", "a.jpg.webp", "a.png", "b.c"),
    ]


def test_captions_without_text_are_counted() -> None:
    captions = [{"id": at, "image_id": 1, "caption": said} for at, said in enumerate((" ", "a cat "))]
    files = {"captions_train.json": coco_file((1, "a.jpg"), annotations=captions)}
    row, note = coco.examples(raws(files), {"1"})
    assert isinstance(row, dict)
    assert row["text"] == "a cat"
    said = "1 caption without text; the first: captions_train.json: annotations[0]"
    assert note == readers.ReaderNote("empty_captions", 1, said, left_out=True)


def test_a_listed_name_is_never_cut_to_another_images() -> None:
    lists = b"photo 2\nmy photo 1\ncat -1\nJPEGImages/dog.jpg Annotations/dog.xml\n"
    names = ("photo", "my photo 1", "cat", "dog")
    files = {f"Annotations/{name}.xml": xml().encode() for name in names}
    files |= {f"JPEGImages/{name}.jpg": b"" for name in names} | {"ImageSets/Main/train.txt": lists}
    *rows, note = voc.images(raws(files))
    assert {row["image_id"]: row["split"] for row in rows if isinstance(row, dict)} == {
        **dict.fromkeys(names, "train"),
        "photo": None,
    }
    assert note == readers.ReaderNote("listed_but_missing", 1, "lists of splits name 1 image without an XML: 'photo 2'")


def test_no_encoding_and_no_number_of_pythons_own() -> None:
    """Undoing punycode took 400 s for 2.6 MB."""
    slow = b'<?xml version="1.0" encoding="punycode"?><a>' + b"a" * 2_000_000 + b"-" + b"z" * 600_000 + b"</a>"
    for data in (slow, slow.replace(b"punycode", b"unicode_escape")):
        with pytest.raises(UserError, match="which is no known encoding"):
            parsed(data, "a.xml")
    files = {"a.xml": xml(item(1, 1, 9, 9)).replace("<xmin>1<", "<xmin>1_0<").encode(), "a.jpg": b""}
    with pytest.raises(UserError, match="bndbox/xmin: '1_0' is no number"):
        list(voc.boxes(raws(files)))
