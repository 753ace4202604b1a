"""Sources to tables by the real stages, in a real store: folders, archives, downloads, and the jsonl reader."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from data.data_steps import built, described
from data.http_script import good, serving
from data.own_world import png
from refused import refused

from tasks.download import download
from vbert.artifacts.store.store import Store
from vbert.data.examples import write_examples
from vbert.data.source import Source
from vbert.data.spec import dataset
from vbert.errors import BuildError, UserError

pytestmark = pytest.mark.usefixtures("own_memory")


def test_a_folder_of_ones_own_becomes_tables(mine: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    index, texts = built(store, *described(dataset(str(mine))))
    table = index.table().to_pylist()
    assert len(table) == 21
    assert {(row["width"], row["height"]) for row in table if row["image_id"] != "broken.jpg"} == {(4, 3)}
    assert next(row for row in table if row["image_id"] == "broken.jpg")["width"] == 0
    assert index.figures["broken"] == 1
    assert index.open("cats/7.png").getpixel((0, 0)) == (7, 7, 7)
    assert index.boxes().to_pylist() == [
        {"image_id": "cats/1.png", "x1": 0, "y1": 0, "x2": 3.5, "y2": 2, "class": "cat", "attributes": []}
    ]
    rows = {row["example_id"]: row for row in texts.table().to_pylist()}
    assert len(rows) == 22
    assert rows["q"]["kind"] == "question"
    assert rows["q"]["answers"] == [{"answer": "one", "score": 1.0}]
    assert rows["texts.jsonl:1"]["kind"] == "caption"
    assert rows["texts.jsonl:22"]["image_ids"] == ["cats/1.png", "cats/2.png"]
    assert Counter(row["split"] for row in rows.values()) == {"train": 17, "test": 5}
    # Held by reference: the store has no byte of the photos.
    assert sum(path.stat().st_size for path in store.root.rglob("*.tar")) == 0
    assert download(dataset(str(mine)).sources["photos"].pinned()).bound(store).names() == ["members.parquet"]


def test_workers_change_no_bits(mine: Path, tmp_path: Path) -> None:
    both = []
    for name, workers in (("one", 1), ("two", 4)):
        index, texts = built(Store(tmp_path / name), *described(dataset(str(mine))), workers=workers)
        both.append([index.file("images.parquet").read_bytes(), texts.file("examples.parquet").read_bytes()])
    assert both[0] == both[1]


def test_a_moved_folder_is_the_same_and_a_changed_one_is_not(mine: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = described(dataset(str(mine)))
    built(store, *first)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    mine.write_text(mine.read_text().replace("path: photos}", "path: elsewhere, file: photos}"))
    moved, _ = described(dataset(str(mine)))
    assert moved == first[0]
    assert moved.bound(store).open("cats/7.png").getpixel((0, 0)) == (7, 7, 7)
    (tmp_path / "elsewhere" / "cats" / "7.png").write_bytes(png(8))
    with pytest.raises(BuildError, match="changed since it was planned"):
        moved.bound(store).read("cats/7.png")
    assert described(dataset(str(mine)))[0] != moved


def test_a_folder_changed_between_plan_and_build_is_told(mine: Path, tmp_path: Path) -> None:
    planned = described(dataset(str(mine)))
    (tmp_path / "photos" / "cats" / "new.png").write_bytes(png(1))
    with refused("photos", error=UserError):
        built(Store(tmp_path / "store"), *planned)


def test_of_images_alone_a_growing_log_is_no_part(mine: Path, tmp_path: Path) -> None:
    """`vbert preprocess . | tee log.txt`: "has changed since it was planned", and another index each time."""
    photos, store = Source(path=str(tmp_path / "photos"), only="images"), Store(tmp_path / "store")
    planned = download(photos.pinned())
    (tmp_path / "photos" / "log.txt").write_text("begins")
    (raw,) = built(store, planned)
    assert "cats/1.png" in raw.members()
    assert all(name.endswith(("png", "jpg")) for name in raw.members())
    assert raw.figures["notes"] == ["2 files of other kinds: .jsonl 1, .txt 1"]
    assert download(photos.pinned()) == planned
    assert raw.local() == tmp_path / "photos"
    (tmp_path / "photos" / "cats" / "1.png").write_bytes(png(99))
    (tmp_path / "photos" / "log.txt").write_text("goes on")
    assert download(photos.pinned()) != planned
    with refused("photos", "cats/1.png", error=UserError):
        built(Store(tmp_path / "other"), planned)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"the folder holds no image, but 1 file of other kinds: \.txt 1\. Images are"):
        Source(path=str(tmp_path / "texts"), only="images").pinned()


def test_local_archives_are_read_where_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("in/a.png", png(5))
    (raw,) = built(Store(tmp_path / "store"), download(Source(path=str(tmp_path / "p.zip")).pinned()))
    assert raw.members() == ["in/a.png"]
    assert raw.read("in/a.png") == png(5)
    assert raw.names() == ["members.parquet"]


def test_a_local_file_changed_in_place_is_read_again(mine: Path, tmp_path: Path) -> None:
    """Of the same length: sizes, names and offsets tell no difference, and what was made of the old one was adopted."""
    store = Store(tmp_path / "store")
    texts = tmp_path / "texts.jsonl"
    for answer in ("one", "two"):
        texts.write_text(json.dumps({"image": "cats/3.png", "text": "how many cats?", "answer": answer}))
        (found,) = built(store, described(dataset(str(mine)))[1])
        assert [a["answer"] for row in found.table().to_pylist() for a in row["answers"]] == [answer]


def test_limit_keeps_so_many_of_each_split_and_drops_the_texts_of_the_rest(mine: Path, tmp_path: Path) -> None:
    mine.write_text(mine.read_text() + "validation: {of: train, share: 0.4}\n")
    store = Store(tmp_path / "store")
    whole, all_texts = built(store, *described(dataset(str(mine))))
    few, texts = built(store, *described(dataset(str(mine)), limit=3))
    assert Counter(few.table().column("split").to_pylist()) == {"train": 3, "val": 3}
    kept = set(few.table().column("image_id").to_pylist())
    assert kept | few.left_out() == set(whole.table().column("image_id").to_pylist())
    expected = [row for row in all_texts.table().to_pylist() if kept.issuperset(row["image_ids"])]
    assert texts.table().to_pylist() == expected
    assert texts.figures["dropped"] == 22 - len(expected)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"image": "cats/99.png", "text": "x"}', "texts.jsonl:1: there is no image 'cats/99.png'; near: 'cats/9.png'"),
        ('{"image": "cats/1.png", "text": " \\n"}', "texts.jsonl:1: text: is missing"),
        ('{"image": "cats/1.png", "text": "x", "answer": " "}', "texts.jsonl:1: answer: is blank"),
        ('{"image": "cats/1.png", "txt": "x"}', "texts.jsonl:1: there is no field 'txt'; did you mean 'text'?"),
        ('{"image": "cats/1.png"}', "texts.jsonl:1: text: is missing"),
        ('{"text": "x"}', "texts.jsonl:1: image_ids: is missing (or `image`)"),
        ('{"image": 3, "text": "x"}', "texts.jsonl:1: image: must be string, not 3"),
        ('\n{"image": ', "texts.jsonl:2: not JSON"),
        ("[1]", "texts.jsonl:1: must be an object"),
        ('{"image": "cats/1.png", "text": "x", "split": "dev"}', "example 'texts.jsonl:1': split 'dev' is none of"),
        ('{"image": "cats/1.png", "text": "x", "kind": "cap"}', "kind 'cap' is none of caption, question"),
        ('{"image": "cats/1.png", "text": "x", "answers": [{"answer": "a", "score": 2}]}', "has the score 2, not 0–1"),
        ("", "reader 'jsonl' finds none in texts"),
    ],
)
def test_wrong_lines_say_file_and_line(line: str, error: str, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(line + "\n")
    with pytest.raises((UserError, BuildError)) as found:
        built(Store(tmp_path / "store"), *described(dataset(str(mine))))
    assert error in str(found.value)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"image": "cats/1.png", "box": [0, 0, 3], "class": "a"}', "boxes.jsonl:1: box: must be [x1, y1, x2, y2]"),
        (
            '{"image": "cats/1.png", "box": [3, 0, 3, 3], "class": "a"}',
            "1 empty (the first: boxes.jsonl:1), more than the accepted 5 %",
        ),
        (
            '{"image": "cats/99.png", "box": [0, 0, 3, 3], "class": "a"}',
            "boxes.jsonl:1: there is no image 'cats/99.png'; near: 'cats/9.png'",
        ),
        ('{"image": "cats/1.png", "box": [0, 0, 3, 3]}', "boxes.jsonl:1: a box needs `image` and `class`"),
    ],
)
def test_wrong_boxes_say_file_and_line(line: str, error: str, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "boxes.jsonl").write_text(line + "\n")
    with pytest.raises((UserError, BuildError)) as found:
        built(Store(tmp_path / "store"), *described(dataset(str(mine))))
    assert error in str(found.value)


def test_unknown_option_of_a_reader_gives_the_nearest(mine: Path, tmp_path: Path) -> None:
    mine.write_text(mine.read_text().replace("[photos]}", "[photos], options: {split: {train: cats/}}}"))
    with refused("'jsonl'", "'split'", "'splits'", error=UserError):
        built(Store(tmp_path / "store"), *described(dataset(str(mine))))


def test_fetched_archive_goes_on_after_a_failed_attempt(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.bin", os.urandom(100_000))
    data = out.getvalue()
    # The first attempt fails for good after half of it, the second run of the step asks for the rest alone.
    with serving(good(data, upto=50_000), lambda request: request.head(404), good(data)) as server:
        source = Source(url=server.url("/x.zip"), sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        with pytest.raises(BuildError, match="HTTP 404"):
            built(Store(tmp_path / "store"), download(source))
        (raw,) = built(Store(tmp_path / "store"), download(source))
    assert server.seen[-1]["range"] == "bytes=50000-"
    assert server.sent == len(data)
    assert raw.members() == ["a.bin"]


# Examples


def test_wrong_examples_are_named(tmp_path: Path) -> None:
    good = {"example_id": "e", "kind": "caption", "image_ids": ["a"], "split": "train", "text": "a red cat"}
    choice = good | {"kind": "choice", "choices": [{"text": "on"}, {"text": "in", "phrases": None}], "label": "1"}
    for valid in (good, choice, choice | {"label": None}):
        assert write_examples(tmp_path, [valid]) == {"train": 1}
    for row, said in [
        (good | {"image_ids": []}, "'e': no image_ids"),
        (good | {"text": None}, "no 'text'"),
        (good | {"phrases": [{"start": 5, "end": 20, "boxes": []}]}, "'e': phrase 5–20 is outside its text of 9"),
        (good | {"phrases": [{"start": 0, "end": 2, "boxes": [[1, 2, 3]]}]}, "box is x1, y1, x2, y2"),
        (good | {"phrases": [{"start": 0, "end": 5, "boxes": [], "types": [""]}]}, "a type of phrase 0–5 is empty"),
        (good | {"kind": "choice"}, "among two or more `choices`, not 0"),
        (choice | {"label": "2"}, "label '2' is the number of none of its choices, 0–1"),
        (choice | {"choices": [{"text": "on"}, {"text": ""}]}, r"'e': choices\[1\] has no text"),
        (
            choice | {"choices": [{"text": "on"}, {"text": "in", "phrases": [{"start": 0, "end": 3, "boxes": []}]}]},
            r"'e': choices\[1\]: phrase 0–3 is outside its text of 2",
        ),
        (good | {"colour": "red"}, "unknown column 'colour'"),
        (good | {"text": 3}, "examples: "),
    ]:
        with pytest.raises(BuildError, match=said):
            write_examples(tmp_path, [row])
    with refused("'e'", error=BuildError):
        write_examples(tmp_path, [good, good])


# easy-VQA, the real one
