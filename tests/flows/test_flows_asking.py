"""`vbert init` asks on a terminal, and says what it takes where there is none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.asking import Beginning, ask
from flows.graph import graph
from flows.recipe import resolve
from vbert.errors import UserError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for n in range(8):
        Image.new("RGB", (48, 48), (n * 30, 40, 40)).save(tmp_path / "photos" / f"{n}.png")
    rows = [f"{n}.png,what is it?,{'dark' if n < 4 else 'light'},train" for n in range(8)]
    (tmp_path / "mine.csv").write_text("\n".join(["file,said,shade,part", *rows]))
    return tmp_path


def asked(*answers: str) -> tuple[Beginning, list[str]]:
    """What is begun with these answers, and what was said meanwhile."""
    left, said = list(answers), list[str]()
    begun = ask(lambda prompt: (said.append(prompt), left.pop(0))[1], said.append)
    assert left == []
    return begun, said


def test_a_table_is_asked_for_column_by_column(photos: Path) -> None:
    wrong = ["1", "mine.cvs", "mine.csv", "elsewhere", "photos", "", "labl"]
    begun, said = asked(*wrong, "label", "shade", "said", "part", "shapes_cnn", "")
    assert begun.columns == {"image": "file", "label": "shade", "text": "said", "split": "part"}
    assert (begun.table, begun.images, begun.to) == (Path("mine.csv"), Path("photos"), Path("my_table"))
    assert "  mine.cvs: no table is there: give a file that ends in .csv, .tsv, .jsonl" in said
    assert "  elsewhere: no such folder" in said
    assert "  'labl' is none of them; did you mean 'label'?" in said
    assert "  columns: file, said, shade, part" in said


def test_a_recipe_and_an_example_are_begun(photos: Path) -> None:
    assert asked("3", "demo", "")[0] == Beginning(Path("demo.yaml"), recipe="demo")
    (photos / "my_data").mkdir()
    (photos / "my_data" / "full").touch()
    begun, said = asked("2", "", "other")
    assert begun == Beginning(Path("other"))
    assert "  my_data exists; give another name" in said


def test_input_that_ends_writes_nothing(photos: Path) -> None:
    def ended(prompt: str) -> str:
        raise EOFError

    with pytest.raises(UserError, match="nothing is written"):
        ask(ended, lambda line: None)


def test_without_a_terminal_it_says_what_it_takes(vbert: Any) -> None:
    code, _, error = vbert("init")
    assert code == 2
    for flag in ("--list", "--data", "--table", "--images", "--answer", "--label", "--caption", "--to"):
        assert flag in error


def test_on_a_terminal_it_writes_what_runs(photos: Path) -> None:
    """A real terminal, as a user has it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "init"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=photos, env=environment)
    os.close(theirs)
    os.write(ours, b"1\nmine.csv\nphotos\nfile\nlabel\nshade\nsaid\npart\nshapes_cnn\n\n")
    assert child.wait(60) == 0
    told = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "next: `vbert run my_table/recipe.yaml`" in told
    assert graph(resolve("my_table/recipe.yaml")).title == "report"
