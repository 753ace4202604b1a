"""`vbert predict --table`: what it writes to and reads from is checked before any image is looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inference.inference_world import make_detector, make_export, photos
from refused import refused

from flows.predictions import check_out
from vbert.regions.detector import DetectorWeights

TABLE = "image,question\n0.png,what?\n"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> DetectorWeights:
    return make_detector(tmp_path_factory.mktemp("detector") / "weights")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, detector: DetectorWeights) -> Path:
    return make_export(tmp_path_factory.mktemp("model") / "m", "vqa", detector)


def test_the_table_is_not_written_over(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("row,image,question,reason\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to(table)
    os.link(table, tmp_path / "same.csv")
    for name in ("rows.csv", "folder/../rows.csv", "link.csv", "same.csv"):
        with refused(name, "table"):
            check_out(tmp_path / name, table)


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(TABLE)
    row = {"row": 1, "answer": "no", "reason": ""}
    for columns, ours in ((row, True), ({"image": "a"}, False)):
        pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "a.parquet")
        (tmp_path / "a.csv").write_text(",".join(columns) + "\n")
        (tmp_path / "a.jsonl").write_text(json.dumps(columns) + "\n")
        for ending in (".parquet", ".csv", ".jsonl"):
            out = tmp_path / f"a{ending}"
            if ours:
                check_out(out, table)
            else:
                with refused(out.name):
                    check_out(out, table)
    (tmp_path / "a.parquet").write_bytes(b"PAR1nothing")
    with refused("a.parquet"):
        check_out(tmp_path / "a.parquet", table)
    (tmp_path / "empty.csv").touch()
    check_out(tmp_path / "empty.csv", table)
    other = tmp_path / "new/.a.csv.part"  # of one who writes there at this moment
    other.parent.mkdir()
    other.touch()
    check_out(tmp_path / "new/a.csv", table)
    assert list((tmp_path / "new").iterdir()) == [other]


def test_a_table_of_which_no_row_is_asked_is_a_failure(vbert: Any, tmp_path: Path, model: Path) -> None:
    photos(tmp_path / "photos", 1)
    (tmp_path / "rows.csv").write_text("image,question\n7.png,what?\n8.png,what?\n0.png,\n")
    code, _, err = vbert("predict", model, "--table", "rows.csv", "--images", "photos", "--out", "p.jsonl")
    assert code == 1
    assert "none of 3 rows" in err
    assert "2 for this reason: image: there is no such image" in err
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 3


def test_a_number_of_answers_is_a_whole_one(vbert: Any, tmp_path: Path, model: Path) -> None:
    (photo,) = photos(tmp_path / "photos", 1)
    for top in ("0", "-1"):
        code, _, err = vbert("predict", model, "--image", photo, "--question", "what?", f"--top={top}")
        assert code == 2, err
        assert "top" in err


@pytest.mark.parametrize(
    ("name", "content", "out", "names"),
    [
        ("rows.txt", TABLE, "p.csv", ("rows.txt", ".csv")),
        ("rows.csv", "image,frage\n0.png,what?\n", "p.csv", ("rows.csv", "question")),
        ("rows.csv", "image,question\n", "p.csv", ("rows.csv", "no row")),
        ("rows.parquet", "PAR1nothing", "p.csv", ("rows.parquet", "Parquet")),
        ("rows.csv", TABLE, "photos/0.png/p.csv", ("photos/0.png/p.csv", "written")),
        ("rows.csv", TABLE, "photos.csv", ("photos.csv", "folder")),
        ("photos", None, "p.csv", ("photos", "is a folder", "file")),
    ],
)
def test_images_are_not_looked_at_for_nothing(
    vbert: Any, tmp_path: Path, model: Path, name: str, content: str | None, out: str, names: tuple[str, ...]
) -> None:
    photos(tmp_path / "photos", 1)
    (tmp_path / "photos.csv").mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = vbert("predict", model, "--table", name, "--images", "photos", "--out", out)
    assert code != 0
    assert [one for one in names if one not in err] == [], err
    assert not list(tmp_path.glob("store/artifacts/regions/*"))
