"""The README says what is so: its tree is the repository, its links lead somewhere. Its commands: test_examples.py."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def tree() -> list[str]:
    """The paths that README's tree names: two spaces deeper is inside, `/` ends a folder."""
    block = README.partition("## The tree")[2].split("```")[1].partition("\n")[2]
    above: list[str] = []
    paths = []
    for indent, name in re.findall(r"^( *)(\S+)", block, re.MULTILINE):
        above[len(indent) // 2 :] = [name]
        paths.append("".join(above))
    return paths


def test_the_tree_is_the_repository_s() -> None:
    """Every module of ours stands in it at its place, and all that stands in it is there."""
    there = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {n for n in there if n.startswith(("flows/", "tasks/", "vbert/")) and n.endswith(".py")}
    named = tree()
    assert sorted(n for n in ours if not n.endswith("__init__.py")) == sorted(n for n in named if n.endswith(".py"))
    folders = {f"{folder}/" for name in there for folder in map(str, Path(name).parents)}
    assert [n for n in named if n not in folders and not any(fnmatch(name, n) for name in there)] == []
    assert len(named) == len(set(named))


def test_what_it_links_to_is_there() -> None:
    paths = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert "docs/report.webp" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
