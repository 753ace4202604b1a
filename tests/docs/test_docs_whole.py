"""The pages that are run whole, from the first block to the last, as a reader would: in a new folder, as processes."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import ROOT, Block, blocks

LINE = re.compile(r"(\S+), behind: (.+)", re.DOTALL)
NUMBER = re.compile(r"\b[0-9a-f]{8,}\b|[0-9][0-9,.:]*(?:e-?[0-9]+)?")


class Reader:
    """Does what a page says, in `folder`, with the code of `checkout`."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.said, self.names = folder, "", dict[str, Any]()
        commands = folder.parent / "bin"
        commands.mkdir()
        (commands / "vbert").write_text(f'#!/bin/sh\nPYTHONPATH={checkout} exec {sys.executable} -m flows.cli "$@"\n')
        (commands / "vbert").chmod(0o755)
        path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "COLUMNS": "200"}
        self.environment.pop("VBERT_STORE", None)

    def follow(self, block: Block) -> None:
        if block.not_run:
            return
        if block.within and (place := LINE.fullmatch(block.within)):
            file = self.folder / place[1]
            text = file.read_text()
            assert text.count(f"{place[2]}\n") == 1, f"{block}: {place[2]!r} stands not once in {place[1]}"
            file.write_text(text.replace(f"{place[2]}\n", f"{place[2]}\n{block.text}\n"))
        elif block.file:
            (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.file).write_text(f"{block.text}\n")
        elif block.language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, str(block), "exec"), self.names)
            self.said = out.getvalue()
        elif block.language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}"
            self.said = done.stdout
        elif block.language == "text":
            printed = [shape(line) for line in self.said.splitlines()]
            told = [line for line in block.text.splitlines() if line.strip() not in ("", "…")]
            assert [line for line in told if shape(line) not in printed] == [], f"{block}\n{self.said}"


def shape(line: str) -> str:
    """A line without its numbers and spaces: what of an output is the same on every machine."""
    return " ".join(NUMBER.sub("#", line).split())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["start", "cookbook"])
def test_what_it_says_can_be_done(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = folder = tmp_path / "vbert"
    for part in ("flows", "tasks", "vbert", "data_specs"):  # a copy: the pages add to it
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    reader = Reader(folder, checkout)
    for block in blocks(ROOT / f"docs/{page}.md"):
        reader.follow(block)
