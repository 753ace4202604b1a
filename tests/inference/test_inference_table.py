"""`vbert predict --table`: every row answered as it is alone, what can't be asked told, and killed, the same bytes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inference.inference_world import make_detector, make_export, photos
from refused import refused

from vbert.data.raw import RawFiles
from vbert.inference.table import QuestionTable, TableSettings, write_questions
from vbert.inference.visualbert import VisualBert
from vbert.regions.detector import DetectorWeights


class OneFile(RawFiles):
    """A file as `RawFiles` gives it, without a store."""

    def __init__(self, path: Path) -> None:
        self.where = path

    def members(self) -> list[str]:
        return [self.where.name]

    def open(self, name: str) -> Any:
        return self.where.open("rb")

    def local(self) -> Path:
        return self.where


def read(tmp_path: Path, name: str, content: str | bytes, **settings: Any) -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    write_questions(out, OneFile(path), TableSettings(**{"question": "answer", **settings}))
    return QuestionTable.at(out).table().to_pylist()


CSV = 'image,question,other\n1.png,"what, then?",x\n\n2.png,\n3.png,  ,y\n,why?,z\n'


def test_rows_that_cant_be_asked_are_kept_with_the_reason(tmp_path: Path) -> None:
    rows = read(tmp_path, "rows.csv", CSV)
    assert [(row["row"], row["reason"].partition(":")[0]) for row in rows] == [
        (2, ""),
        (4, "row"),
        (5, "question"),
        (6, "image"),
    ]
    assert rows[0] == {"row": 2, "image": "1.png", "question": "what, then?", "reason": ""}


def test_every_kind_of_table_says_the_same(tmp_path: Path) -> None:
    expected = [("1.png", "what?"), ("2.png", "谁？")]
    lines = [{"image": image, "question": question, "n": 7} for image, question in expected]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "made.parquet")
    contents: dict[str, str | bytes] = {
        "a.csv": "\ufeffimage;question\n" + "".join(f"{a};{b}\n" for a, b in expected),
        "b.tsv": "image\tquestion\n" + "".join(f"{a}\t{b}\n" for a, b in expected),
        "c.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "d.parquet": (tmp_path / "made.parquet").read_bytes(),
    }
    for name, content in contents.items():
        rows = read(tmp_path, name, content)
        assert [(row["image"], row["question"], row["reason"]) for row in rows] == [(a, b, "") for a, b in expected]


def test_lists_and_phrases_are_checked_row_by_row(tmp_path: Path) -> None:
    rows = ["image,question,choices", "1,w,a|b", '2,w,"[""a"", ""b""]"', "3,w,a", '4,w,"[1, 2]"']
    found = read(tmp_path, "rows.csv", "\n".join(rows) + "\n", question="choose")
    assert [row["choices"] for row in found] == ['["a", "b"]', '["a", "b"]', None, None]
    assert [bool(row["reason"]) for row in found] == [False, False, True, True]
    found = read(
        tmp_path, "rows.jsonl", '{"image": "1", "text": "a cat", "phrase": "dog"}\nnot json\n[1]\n', question="ground"
    )
    assert [row["reason"].partition(":")[0] for row in found] == ["phrase", "row", "row"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "names"),
    [
        ("rows.csv", "image,frage\n1,w\n", (), ("rows.csv", "question", "--column question=COLUMN")),
        ("rows.csv", "image,frage\n1,w\n", (("question", "frag"),), ("frag", "'frage'")),
        ("rows.csv", "image,question\n1,w\n", (("questoin", "image"),), ("questoin", "'question'")),
        ("rows.csv", "image,question\n", (), ("no row",)),
        ("rows.csv", "image,image,question\n1,2,w\n", (), ("rows.csv:1", "image")),
        ("rows.csv", b"image,question\n\xff,w\n", (), ("rows.csv:2", "UTF-8")),
        ("rows.csv", 'image,question\n1,w\n2,"what\n3,w\n', (), ("rows.csv:3", "quote")),
        ("rows.txt", "image,question\n1,w\n", (), (".csv", ".parquet")),
        ("rows.parquet", b"PAR1nothing", (), ("rows.parquet", "Parquet")),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, name: str, content: str | bytes, columns: tuple[tuple[str, str], ...], names: tuple[str, ...]
) -> None:
    with refused(*names):
        read(tmp_path, name, content, columns=columns)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> DetectorWeights:
    return make_detector(tmp_path_factory.mktemp("detector") / "weights")


def test_rows_are_answered_as_they_are_alone(vbert: Any, tmp_path: Path, detector: DetectorWeights) -> None:
    model, files = make_export(tmp_path / "m", "vqa", detector), photos(tmp_path / "photos")
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "photos/bare").write_bytes(files[0].read_bytes())
    rows = [(path.name, f"is number {n} red?") for n, path in enumerate(files)] + [("3", "ending left out")]
    rows += [("bare", "why?"), ("broken.png", "why?"), (files[0].name, " ")]
    with open("rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "question"), *rows])
    words = ("predict", model, "--table", "rows.csv", "--images", "photos", "--out")
    code, out, err = vbert(*words, "p.parquet", "--json")
    assert code == 0, err
    said = json.loads(out.splitlines()[-1])
    assert (said["rows"], said["answered"], said["reasons"]) == (10, 7, {"image": 2, "question": 1})
    found = pq.read_table("p.parquet").to_pylist()
    assert [(row["image"], row["question"]) for row in found] == rows
    asked = VisualBert.load(model, device="cpu")
    for row, (name, question) in zip(found[:7], rows, strict=False):
        (best,) = asked.answer(tmp_path / "photos" / (name if "." in name else f"{name}.png"), question, top=1)
        assert (row["answer"], row["score"], row["reason"]) == (best.text, best.score, "")
    assert "without an image ending" in found[7]["reason"]
    assert "not an image: a PNG picture whose header is broken" in found[8]["reason"]
    code, out, err = vbert(*words, "p.csv", "--strict")
    assert code == 1
    assert "3 of 10 rows" in err
    with open("p.csv", newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == [row["answer"] or "" for row in found]


@pytest.mark.slow
def test_killed_three_times_it_ends_in_the_same_bytes(tmp_path: Path, detector: DetectorWeights) -> None:
    model, files = make_export(tmp_path / "m", "vqa", detector), photos(tmp_path / "photos", 20)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        rows = [(files[n % 20].name, f"is number {n} red?") for n in range(5000)]
        csv.writer(file).writerows([("image", "question"), *rows])

    def start(store: str) -> subprocess.Popen[bytes]:
        words = ["predict", model, "--table", "rows.csv", "--images", "photos", "--out", f"{store}.parquet"]
        command = [sys.executable, "-m", "flows.cli", *map(str, words), "--store", store]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)

    assert start("whole").wait(600) == 0
    kills = 0
    for wanted in (1, 3, 6):
        process = start("killed")
        while process.poll() is None and len(_units(tmp_path / "killed")) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert kills == 3, "it was done before it was killed"
    assert start("killed").wait(600) == 0
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def _units(store: Path) -> list[Path]:
    return [path for path in store.glob("unfinished/predict/*/units/*") if not path.name.startswith(".")]
