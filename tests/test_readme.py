"""The links of the pages at the top lead somewhere. Their code: test_docs_blocks.py, test_examples.py, test_python.py;
the tree: test_docs_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_it_links_to_is_there(page: str) -> None:
    paths = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", (ROOT / page).read_text())
    assert page != "README.md" or "docs/report.webp" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
