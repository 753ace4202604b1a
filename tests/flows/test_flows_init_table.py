"""`vbert init --table`: from a folder and a table to a report with two commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.graph import graph
from flows.recipe import resolve
from vbert.artifacts.making.plan import walk

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty photos, red and blue; the last eight rows have no label and are the test split."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    lines = ["key,file,said,colour,part"]
    for n in range(40):
        colour = sorted(COLOURS)[n % 2]
        Image.new("RGB", (48, 48), (*COLOURS[colour][:1], n, COLOURS[colour][2])).save(tmp_path / "photos" / f"{n}.png")
        lines.append(
            f'row {n},{n}.png,"it is,\nnumber {n}",{colour if n < 32 else ""},{"test" if n >= 32 else "train"}'
        )
    (tmp_path / "My data.csv").write_text("\ufeff" + "\n".join(lines))
    return tmp_path / "My data.csv"


COLUMNS = ["--image", "file", "--text", "said", "--label", "colour", "--split", "part", "--id", "key"]


def test_a_spec_and_a_recipe_are_written(table: Path, vbert: Any) -> None:
    code, said, _ = vbert("init", "--table", table, "--images", "photos", *COLUMNS, "--detector", "shapes_cnn")
    assert (code, said.splitlines()) == (
        0, ["my_table/my_data.yaml", "my_table/recipe.yaml", "next: `vbert run my_table/recipe.yaml`"]
    )  # fmt: skip
    titles = {artifact.title for artifact in walk(graph(resolve("my_table/recipe.yaml")))}
    assert {"detector", "regions[my_data]", "finetune[classification]", "evaluate[classification]"} <= titles
    assert "evaluate[classification val]" in titles
    code, _, error = vbert("init", "--table", table, "--images", "photos", *COLUMNS)
    assert (code, "my_table exists; give another folder with --to" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--label", "color"], "My data.csv: label: there is no column 'color'; did you mean 'colour'?"),
        (["--label", "colour", "--text", "saidd"], "text: there is no column 'saidd'; did you mean 'said'?"),
        (["--label", "colour", "--answer", "said"], "give one of --answer, --label, --caption"),
        (["--text", "said"], "give one of --answer, --label, --caption"),
        (["--label", "colour", "--split", "said"], "said: 'it is,\\nnumber 0' is no split; valid: train, test, val"),
        (
            ["--label", "colour", "--detector", "shapes_cn"],
            "'shapes_cn' in data_specs/detectors; did you mean 'shapes_cnn'",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(
    arguments: list[str], said: str, table: Path, vbert: Any
) -> None:
    code, _, error = vbert("init", "--table", table, "--images", "photos", "--image", "file", *arguments)
    assert code == 2
    assert said in error
    assert not Path("my_table/recipe.yaml").exists()


@pytest.mark.slow
def test_two_commands_to_a_report(table: Path, vbert: Any) -> None:
    """Rows without a label are predicted, by the table's own ids."""
    assert vbert("init", "--table", table, "--images", "photos", *COLUMNS, "--detector", "shapes_cnn")[0] == 0
    fewer = ["--set", "detector.train.steps=20", "--set", "downstream.classification.steps=40"]
    code, out, error = vbert("run", "my_table/recipe.yaml", "--local", "--json", *fewer)
    assert code == 0, error
    assert json.loads(out.splitlines()[-1])
    assert len(list(Path("store/artifacts/report").glob("*/*/report.html"))) == 1
    predicted = [path.read_text() for path in Path("store/artifacts/evaluate").glob("*/*/predictions.csv")]
    (test,) = (rows for rows in map(str.splitlines, predicted) if rows[1].startswith("row 3"))
    assert test[0] == "id,label"
    assert sorted(row.partition(",")[0] for row in test[1:]) == sorted(f"row {n}" for n in range(32, 40))
