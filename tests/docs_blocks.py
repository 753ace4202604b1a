"""The code blocks of README and docs, and what is said of each in a comment before it.

`<!-- not run: REASON -->` before a block: it can't run here. `<!-- file: PATH -->`: it is that file's content.
`<!-- line: PATH, behind: LINE -->`: it is put into that file, below the line.
Blocks of a page in RUN_WHOLE are run from the first to the last in one folder, by a test of their own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_WHOLE = ("docs/start.md", "docs/cookbook.md")
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
REMARK = re.compile(r"<!-- (not run|file|line): ((?:(?!-->).)+?) -->\n+$", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """after: the language of the block before it, with at most a sentence between."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    file: str | None
    within: str | None
    after: str | None

    def runs_alone(self) -> bool:
        """Whether it is run for itself: not with its whole page, and not as a part of a file."""
        return not (self.not_run or self.file or self.within or self.page in RUN_WHOLE)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text, before, end = page.read_text(), None, 0
    for found in FENCE.finditer(text):
        language = found[2].strip()
        if language.startswith("{"):  # a directive
            continue
        indent = len(found[1])
        inner = "\n".join(line[indent:] for line in found[3].splitlines())
        remark = REMARK.search(text[: found.start()])
        said = {remark[1]: " ".join(remark[2].split())} if remark else {}
        near = before if text.count("\n", end, found.start()) <= 3 else None
        line = text.count("\n", 0, found.start()) + 1
        name = str(page.relative_to(ROOT))
        yield Block(name, line, language, inner, said.get("not run"), said.get("file"), said.get("line"), near)
        before, end = language, found.end()


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def shell_lines(block: Block) -> list[str]:
    """The commands of a shell block: without comments, continued lines joined, parts of `&&` for themselves."""
    text = block.text.replace("\\\n", "")
    written = [re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines()]
    return [part.strip() for line in written if line for part in line.split(" && ")]


def words(line: str) -> list[str]:
    return shlex.split(line.partition(" > ")[0])
