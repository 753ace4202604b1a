"""The reader of tables: a folder of images and a CSV, TSV or JSON-lines file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.data_steps import built, described
from data.own_world import png
from data.text_world import rows_of

from vbert.artifacts.store.store import Store
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec
from vbert.errors import BuildError, UserError

CSV = (
    'id,file,tweet,mood,part\r\na,cats/1.png,"two lines,\r\n""quoted""",good ,train\r\n'
    "b,2,größer,bad,valid\r\nc,x/3.PNG,,,test\r\n"
)


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., DatasetSpec]:
    """A spec of three photos and of files by name."""

    def made(options: dict[str, Any], files: dict[str, str | bytes], **more: Any) -> DatasetSpec:
        (tmp_path / "photos" / "cats").mkdir(parents=True, exist_ok=True)
        for name in ("cats/1.png", "2.png", "3.png"):
            (tmp_path / "photos" / name).write_bytes(png(len(name)))
        (tmp_path / "tables").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "tables" / name).write_bytes(text.encode() if isinstance(text, str) else text)
        part = {"reader": "table", "options": options}
        sources = {name: Source(path=str(tmp_path / name)) for name in ("photos", "tables")}
        return DatasetSpec.model_validate(
            {"name": "own", "title": "Own", "licence": "x", "sources": sources, "images": part, "examples": part} | more
        )

    return made


COLUMNS = {"image": "file", "text": "tweet", "label": "mood", "split": "part", "id": "id"}


@pytest.mark.parametrize("form", ["csv", "bom", "semicolon", "tsv", "jsonl"])
def test_one_table_in_all_forms(form: str, world: Callable[..., DatasetSpec], tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"t.csv": CSV}
    if form == "bom":
        files = {"t.csv": b"\xef\xbb\xbf" + CSV.encode()}
    if form == "semicolon":
        files = {"t.csv": CSV.replace(",", ";").replace("lines;", "lines,")}
    if form == "tsv":
        files = {"t.tsv": CSV.replace(",", "\t").replace("lines\t", "lines,")}
    if form == "jsonl":
        lines = [("a", "cats/1.png", 'two lines,\r\n"quoted"', "good ", "train"), ("b", 2, "größer", "bad", "valid")]
        lines += [("c", "x/3.PNG", "", None, "test")]  # type: ignore[list-item]
        names = ("id", "file", "tweet", "mood", "part")
        files = {"t.jsonl": "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)}
    rows, figures, images = rows_of(world(COLUMNS, files), tmp_path / "store")
    assert rows == [
        dict(zip(("example_id", "kind", "image_ids", "split", "text", "label"), row, strict=True))
        for row in (
            ("a", "sentiment", ["cats/1.png"], "train", 'two lines,\r\n"quoted"', "good"),
            ("b", "sentiment", ["2.png"], "val", "größer", "bad"),
            ("c", "sentiment", ["3.png"], "test", "", None),
        )
    ]
    assert {name: figures[name] for name in ("stray_blanks", "empty_texts", "val")} == {
        "stray_blanks": 1, "empty_texts": 1, "val": 1
    }  # fmt: skip
    assert {name: images[name] for name in ("train", "val", "test")} == {"train": 1, "val": 1, "test": 1}


def test_questions_pairs_captions_and_files_of_splits(world: Callable[..., DatasetSpec], tmp_path: Path) -> None:
    asked = "image,image_2,text,answer,label\n1.png,2.png,how many?,two,0\n3.png,2.png,which?, ,1\n"
    store = tmp_path / "store"
    rows, figures, _ = rows_of(world({"answer": "answer"}, {"t.csv": asked}), store)
    assert [(row["kind"], row["answers"]) for row in rows] == [
        ("question", [{"answer": "two", "score": 1.0}]), ("question", None)
    ]  # fmt: skip
    assert [row["example_id"] for row in rows] == ["t.csv:2", "t.csv:3"]
    rows, _, _ = rows_of(world({"image_2": "image_2", "label": "label"}, {"t.csv": asked}), store)
    assert [(row["kind"], *row["image_ids"], row["label"]) for row in rows] == [
        ("pair", "cats/1.png", "2.png", "0"), ("pair", "3.png", "2.png", "1")
    ]  # fmt: skip
    flags = asked.replace("two,0", ",TRUE").replace(" ,1", ",False")
    rows, _, _ = rows_of(world({"image_2": "image_2", "label": "label"}, {"t.csv": flags}), store)
    assert [row["label"] for row in rows] == ["true", "false"]
    more = {"u.csv": asked.replace("3.png", "gone.png")}
    options = {"caption": "text", "splits": {"train": "t.csv", "test": ["u.csv"]}}
    rows, figures, _ = rows_of(world(options, {"t.csv": asked} | more), store)
    assert [(row["kind"], row["split"], row["text"]) for row in rows] == [
        ("caption", "train", "how many?"), ("caption", "train", "which?"), ("caption", "test", "how many?")
    ]  # fmt: skip
    assert figures["texts_without_image"] == figures["left_out"] == 1
    held_out = world({"label": "label", "kind": "pair"}, {"t.csv": asked}, validation={"of": "train", "share": 0.99})
    (tmp_path / "tables" / "u.csv").unlink()
    assert {row["split"] for row in rows_of(held_out, store)[0]} == {"val"}


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        (COLUMNS | {"label": "moot"}, CSV, r"t\.csv: label: there is no column 'moot'; did you mean 'mood'"),
        (COLUMNS | {"caption": "tweet"}, CSV, "label and caption are given; give one"),
        (COLUMNS, CSV.replace("valid", "half"), r"t\.csv:4: part: 'half' is no split; valid: train, test, val"),
        (COLUMNS, CSV + "d,1\n", r"t\.csv:6: has 2 cells, the first line has 5"),
        (
            COLUMNS,
            CSV + 'd,"1"x,t,m,train\n',
            r"t\.csv:6: ',' expected after '\"'; if quotes are plain",
        ),
        (COLUMNS, CSV.encode().replace(b"\xc3", b"\xff"), r"t\.csv:4: is not UTF-8; save"),
        (COLUMNS, CSV.replace("id,", "file,"), r"t\.csv:1: two columns are called 'file'"),
        (COLUMNS, CSV.replace("c,x", "a,x"), r"t\.csv:5: id: 'a' is that of t\.csv:2 too; give each row an id"),
        (COLUMNS, CSV.partition("\r")[0], r"t\.csv: has columns and no row below them"),
        (
            COLUMNS | {"image": "mood"},
            CSV,
            r"2: image: there is no 'good '; one is '2.png', and so it is with 3 of 3",
        ),
        ({"image": "file", "answer": "mood"}, CSV, "an answer needs its question"),
        (COLUMNS | {"kind": "mood"}, CSV, "kind 'mood' is none of caption, question"),
        (COLUMNS | {"labels": "mood"}, CSV, "no option 'labels' for images; did you mean 'answer'"),
    ],
)
def test_wrong_tables_are_named(
    options: dict[str, Any], text: str | bytes, said: str, world: Callable[..., DatasetSpec], tmp_path: Path
) -> None:
    with pytest.raises((UserError, BuildError), match=said):
        built(Store(tmp_path / "store"), *described(world(options, {"t.csv": text})))


def test_a_file_of_test_may_lack_the_labels(world: Callable[..., DatasetSpec], tmp_path: Path) -> None:
    options = {"image": "file", "label": "mood", "splits": {"train": "a.csv", "test": ["b.csv", "c.jsonl"]}}
    files: dict[str, str | bytes] = {"a.csv": "file,mood,text\n1.png,good,x\n", "b.csv": "file,text\n2.png,y\n"}
    files["c.jsonl"] = '{"file": "3.png", "text": "z"}\n{"file": "3.png", "text": "w", "mood": "bad"}\n'
    rows, _, _ = rows_of(world(options, files), tmp_path / "store")
    assert [(row["text"], row["label"]) for row in rows] == [("x", "good"), ("y", None), ("z", None), ("w", "bad")]
    files["a.csv"] = "file,text\n1.png,x\n"
    with pytest.raises(UserError, match=r"a\.csv: label: there is no column 'mood'"):
        rows_of(world(options, files), tmp_path / "store")


def test_labels_as_numbers_and_in_several_cases(world: Callable[..., DatasetSpec], tmp_path: Path) -> None:
    options = {"image": "file", "label": "mood"}
    lines = '{"file": "1.png", "text": "x", "mood": 1.0}\n{"file": "2.png", "text": "y", "mood": 1}\n'
    rows, figures, _ = rows_of(world(options, {"t.jsonl": lines}), tmp_path / "store")
    assert [row["label"] for row in rows] == ["1", "1"]
    assert "labels_alike" not in figures
    (tmp_path / "tables" / "t.jsonl").write_text(lines.replace("1.0", "NaN"))
    with pytest.raises(UserError, match=r"t\.jsonl:1: mood: is nan, no text and no number; write null"):
        rows_of(world(options, {}), tmp_path / "store")
    (tmp_path / "tables" / "t.jsonl").unlink()
    spelt = "".join(f"2.png,{'x' * 140_000},{mood}\n" for mood in ("yes", "No", "no ", "YES", "2.0", "2"))
    rows, figures, _ = rows_of(world(options, {"t.csv": f"file,text,mood\n{spelt}"}), tmp_path / "store")
    assert [row["label"] for row in rows] == ["yes", "No", "no", "YES", "2", "2"]
    assert figures["labels_alike"] == 4
    assert any("'yes' and 'YES', for example; the first: t.csv:5: label" in note for note in figures["notes"])


def test_quotes_may_be_plain_signs(world: Callable[..., DatasetSpec], tmp_path: Path) -> None:
    text = 'image\ttext\tlabel\n2.png\t"so" he said\tgood\n'
    rows, _, _ = rows_of(world({"label": "label", "quotes": False}, {"t.tsv": text}), tmp_path / "store")
    assert rows[0]["text"] == '"so" he said'
