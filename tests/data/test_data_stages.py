"""Sources to tables by the real stages, in a real store; local folders; the jsonl and easy-VQA readers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data.http_script import good, serving
from data.test_data_golden import same
from PIL import Image

from tasks.download import download
from tasks.examples import examples
from tasks.images import images
from vbert.artifacts.making.build import Machine
from vbert.artifacts.making.graph import Engine
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.store import Store
from vbert.data import folders
from vbert.data.examples import Examples, write_examples
from vbert.data.folders import folder_digest
from vbert.data.images import Images
from vbert.data.raw import RawFiles
from vbert.data.readers import easy_vqa as reader
from vbert.data.readers.easy_vqa import question_type
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec, dataset
from vbert.errors import BuildError, UserError
from vbert.regions.interop import npy_files


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def described(spec: DatasetSpec, limit: int | None = None) -> tuple[Images, Examples]:
    """The data set's artifacts-to-be, as the graph makes them."""
    of = spec.collection()
    photos = {name: download(of.sources[name].pinned()).named(name) for name in of.read_by("images")}
    texts = {name: download(spec.sources[name].pinned()).named(name) for name in spec.read_by("examples")}
    index = images(photos, of.reader("images"), limit, of.reading("images"))
    return index, examples(texts, index, spec.reader("examples"), spec.reading("examples"))


def built(store: Store, *wanted: Artifact, workers: int = 1) -> list[Any]:
    Engine(store, Machine(loader_workers=workers)).ensure_all(wanted)
    return [artifact.bound(store) for artifact in wanted]


def png(number: int, size: tuple[int, int] = (4, 3)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of 20 images, examples and boxes of one's own, with its spec; the spec's path."""
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    for number in range(20):
        (photos / "cats" / f"{number}.png").write_bytes(png(number))
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / ".hidden.png").write_bytes(b"left out")
    (photos / "boxes.jsonl").write_text('{"image": "cats/1.png", "box": [0, 0, 3.5, 2], "class": "cat"}\n')
    lines: list[dict[str, object]] = [
        {"image": f"cats/{n}.png", "text": f"a cat of {n}", "split": "train" if n < 15 else "test"} for n in range(20)
    ]
    lines.append({"image": "cats/3.png", "text": "how many cats?", "answer": "one", "example_id": "q"})
    lines.append({"image_ids": ["cats/1.png", "cats/2.png"], "kind": "pair", "text": "both", "label": "true"})
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        """
name: mine
title: Mine
licence: private
sources: {photos: {path: photos}, texts: {path: texts.jsonl}}
images: {reader: jsonl, sources: [photos]}
examples: {reader: jsonl, sources: [texts]}
"""
    )
    return spec


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
    with pytest.raises(UserError, match="photos has changed since it was planned"):
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
    with pytest.raises(UserError, match=r"photos has changed since it was planned: cats/1\.png was the last"):
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
    with pytest.raises(UserError, match="reader 'jsonl' has no option 'split' for images; did you mean 'splits'"):
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


# Identity of local folders


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(str(number))
        os.utime(folder / f"{number}.txt", (1e9, 1e9))
    read: list[str] = []
    real = folders._sha256
    monkeypatch.setattr(folders, "_sha256", lambda path: [read.append(Path(path).name), real(path)][1])
    first = folder_digest(folder, tmp_path / "memory")
    assert len(read) == 5
    assert folder_digest(folder, tmp_path / "memory") == first
    assert len(read) == 5
    (folder / "3.txt").write_text("x")
    assert folder_digest(folder, tmp_path / "memory") != first
    assert read[5:] == ["3.txt"]
    # Just written: it may change again within its time stamp, so its digest isn't remembered yet.
    folder_digest(folder, tmp_path / "memory")
    assert read[6:] == ["3.txt"]


def test_same_content_under_other_names_is_another_folder(tmp_path: Path) -> None:
    for name, file in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("1")
    a, b, c = (folder_digest(tmp_path / name, tmp_path / "m") for name in "abc")
    assert a == b != c


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x").write_text("1")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "images").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "up").symlink_to(tmp_path / "f")
    assert list(folders.file_digests(tmp_path / "f", tmp_path / "m")) == ["images/x"]


def test_what_the_run_itself_makes_in_the_folder_is_not_of_it(tmp_path: Path) -> None:
    """`cd photos; vbert preprocess . --out features > log`: the store, the shards, the log."""
    photos, memory = tmp_path / "photos", tmp_path / "m"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "1.png").write_text("1")
    before = folder_digest(photos, memory)
    store = Store(photos / "sub" / "store")
    store.prepare()
    store.note_run("run", {})
    out = photos / "features"
    out.mkdir()
    for name in ("000000.tar", "offsets.parquet", "contract.json", "quarantine.parquet"):
        (out / name).touch()
    assert folder_digest(photos, memory) == before
    assert list(folders.file_digests(out, memory)) == sorted(path.name for path in out.iterdir())
    code = "import sys, pathlib, vbert.data.folders as f; print(f.folder_digest(*map(pathlib.Path, sys.argv[1:])))"
    with (photos / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code, str(photos), str(memory)], stdout=log, check=True)
    assert (photos / "log").read_text().strip() == before
    assert folder_digest(photos, memory) != before  # another's file


def test_one_folder_under_two_names_is_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train → x` and `val → x`: both are there, as two copies would be."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.npy").write_text("1")
    for name in ("train", "val"):
        (tmp_path / "links" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "links" / name).symlink_to(tmp_path / "x")
        (tmp_path / "copies" / name).mkdir(parents=True)
        (tmp_path / "copies" / name / "1.npy").write_text("1")
    links, copies = (folders.file_digests(tmp_path / name, tmp_path / "m") for name in ("links", "copies"))
    assert list(links) == ["train/1.npy", "val/1.npy"]
    assert links == copies
    assert [name for name, _ in npy_files.index({"features": tmp_path / "links"})] == ["train/1", "val/1"]
    monkeypatch.setattr(folders, "MAX_WAYS", 3)
    for one in "abcd":
        (tmp_path / "maze" / one).mkdir(parents=True)
        for other in "abcd":
            (tmp_path / "maze" / one / other).symlink_to(tmp_path / "maze" / other)
    with pytest.raises(UserError, match="in more than 3 ways"):
        folders.file_digests(tmp_path / "maze", tmp_path / "m")


def test_a_damaged_or_unwritable_memory_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").write_text("1")
    first = folder_digest(tmp_path / "f", tmp_path / "m")
    for note in (tmp_path / "m").iterdir():
        note.write_text("{")
    assert folder_digest(tmp_path / "f", tmp_path / "m") == first
    (tmp_path / "file").write_text("")
    assert folder_digest(tmp_path / "f", tmp_path / "file" / "m") == first
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        folder_digest(tmp_path / "empty")


# Examples


def test_wrong_examples_are_named(tmp_path: Path) -> None:
    good = {"example_id": "e", "kind": "caption", "image_ids": ["a"], "split": "train", "text": "a red cat"}
    assert write_examples(tmp_path, [good]) == {"train": 1}
    for row, said in [
        (good | {"image_ids": []}, "'e': no image_ids"),
        (good | {"text": None}, "no 'text'"),
        (good | {"phrases": [{"start": 5, "end": 20, "boxes": []}]}, "'e': phrase 5–20 is outside its text of 9"),
        (good | {"phrases": [{"start": 0, "end": 2, "boxes": [[1, 2, 3]]}]}, "box is x1, y1, x2, y2"),
        (good | {"colour": "red"}, "unknown column 'colour'"),
        (good | {"text": 3}, "examples: "),
    ]:
        with pytest.raises(BuildError, match=said):
            write_examples(tmp_path, [row])
    with pytest.raises(BuildError, match="the id 'e' occurs twice"):
        write_examples(tmp_path, [good, good])


# easy-VQA, the real one


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what is the blue shape?", "shape"),
        ("what shape does the image contain?", "shape"),
        ("what is the color of the triangle?", "color"),
        ("what color is the shape?", "color"),
        ("is there a red shape in the image?", "yes/no color"),
        ("is no teal shape present?", "yes/no color negated"),
        ("does the image not contain a circle?", "yes/no shape negated"),
        ("is a rectangle present?", "yes/no shape"),
    ],
)
def test_question_types(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_unknown_question_is_refused() -> None:
    with pytest.raises(BuildError, match=r"q\.json: 'is it a dog\?' is no question of easy-VQA"):
        question_type("is it a dog?", "q.json")


@pytest.fixture(scope="module")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Images, Examples, RawFiles]:
    store = Store(tmp_path_factory.mktemp("easy_vqa") / "store")
    index, texts = described(dataset("easy_vqa"))
    try:
        built(store, download(dataset("easy_vqa").sources["package"]))
    except BuildError as error:
        pytest.skip(f"easy-vqa can't be fetched here: {error}")
    built(store, texts)
    return index.bound(store), texts.bound(store), index.bound(store).raws["package"]


def test_easy_vqa_has_its_published_counts(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, _ = easy_vqa
    spec = dataset("easy_vqa")
    table, rows = index.table().to_pylist(), texts.table().to_pylist()
    official = Counter(row["image_id"].split("/")[0] for row in table)
    assert official == spec.images.counts == {"train": 4000, "test": 1000}
    assert spec.examples is not None
    assert Counter(row["example_id"].split("/")[0] for row in rows) == spec.examples.counts
    assert len({row["example_id"] for row in rows}) == 48_248
    assert len({answer["answer"] for row in rows for answer in row["answers"]}) == 13
    yes_no = Counter(row["split"] == "test" for row in rows if row["question_type"].startswith("yes/no"))
    assert yes_no == {False: 28_407, True: 7_136}  # as its README says
    assert {(row["width"], row["height"]) for row in table} == {(64, 64)}


def test_easy_vqa_rows_are_golden(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    raws = {"package": easy_vqa[2]}
    rows = list(reader.images(raws))
    found = [rows, list(reader.examples(raws, {row["image_id"] for row in rows}))]
    same(found, "59d02caaef32a8040510519c4f8303ce92e4025965c689fbcdb15ebf7f5c625d", "vbert/data/readers/easy_vqa.py")


def test_easy_vqa_answers_fit_their_questions(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    for row in easy_vqa[1].table().to_pylist():
        (answer,) = row["answers"]
        kind = row["question_type"]
        assert (answer["answer"] in ("yes", "no")) == kind.startswith("yes/no")
        assert (answer["answer"] in ("circle", "rectangle", "triangle")) == (kind == "shape")
        assert answer["score"] == 1.0


def test_easy_vqa_validation_is_of_training_images_alone(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, _ = easy_vqa
    splits = dict(zip(*index.table().select(["image_id", "split"]).to_pydict().values(), strict=True))
    assert 160 < Counter(splits.values())["val"] < 240
    assert all(split == "test" for image_id, split in splits.items() if image_id.startswith("test/"))
    for row in texts.table().to_pylist():
        assert row["split"] == splits[row["image_ids"][0]]


def test_easy_vqa_rows_are_those_of_its_files(easy_vqa: tuple[Images, Examples, RawFiles]) -> None:
    index, texts, raw = easy_vqa
    rows = {row["example_id"]: row for row in texts.table().to_pylist()}
    for split in ("train", "test"):
        questions = json.loads(raw.read(f"easy_vqa/data/{split}/questions.json"))
        for position, (text, answer, number) in enumerate(questions):
            row = rows[f"{split}/{position:05d}"]
            assert (row["text"], row["answers"][0]["answer"]) == (text, answer)
            assert row["image_ids"] == [f"{split}/{number}"]
    assert index.read("test/3") == raw.read("easy_vqa/data/test/images/3.png")
