"""The README says what is so: its tree is the files, its commands exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_file() -> None:
    tree = README.partition("## The tree")[2]
    named = set(re.findall(r"^\s+([\w.]+\.py)\b", tree, re.MULTILINE))
    files = subprocess.run(
        ["git", "ls-files", "flows", "tasks", "vbert"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    there = {Path(name).name for name in files if name.endswith(".py")} - {"__init__.py"}
    assert named == there


def test_its_commands_exist() -> None:
    from flows.cli import app

    told = set(re.findall(r"^vbert (\w+)", README, re.MULTILINE))
    assert told
    assert told <= set(app.resolved_commands())


def test_what_it_links_to_is_there() -> None:
    paths = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert "docs/report.webp" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
