"""The documentation as pages: it builds without a warning, names every field and command, and a browser is content."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from test_examples import COMMANDS, arguments

from flows.fields import fields_at

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pages as `make docs` builds it, once a run, shared by its workers."""
    shared = tmp_path_factory.getbasetemp()
    out = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "docs"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    with FileLock(f"{out}.lock"):
        if not out.exists():
            done = subprocess.run([*command, "docs", str(out)], cwd=ROOT, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
    return out


def text(page: Path) -> str:
    return html.unescape(re.sub("<[^>]+>", "", page.read_text()))


def test_the_reference_names_every_field(pages: Path) -> None:
    for root in ("recipe", "datasets", "detectors", "models"):
        words = set(text(pages / f"reference/{root}.html").split())
        paths = [None if root == "recipe" else root]
        while paths:
            for field in fields_at(path := paths.pop()):
                assert field.path in words or field.path == path
                if field.inside and field.path != path:
                    paths.append(field.path)


def test_the_reference_names_every_command_with_its_options(pages: Path) -> None:
    sections = re.split(r"<section id=", (pages / "reference/commands.html").read_text())
    told = {re.sub("<[^>]+>", "", found[1]): part for part in sections if (found := re.search("<h2>(.+?)<a", part))}
    assert set(told) == set(COMMANDS)
    for command in COMMANDS:
        names = {name for one in arguments(command) for name in one.names if name.startswith("-")}
        assert {name for name in names if name not in told[command]} == set()


def test_the_tree_names_every_module_at_its_place(pages: Path) -> None:
    there = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in there if name.startswith(("flows/", "tasks/", "vbert/")) and name.endswith(".py")}
    named, folders = set[str](), list[str]()
    page = (pages / "tree.html").read_text().partition("<h2>")[2]
    for package, nested, item in re.findall(r'#(\w+)" title|<(/?ul)|<li><p><code[^>]*><span class="pre">([^<]+)', page):
        if package:
            folders = [f"{package}/"]
        elif nested == "ul":
            folders.append("")
        elif nested == "/ul":
            folders.pop()
        elif item.endswith("/"):
            folders[-1] = item
        elif item:
            named.add("".join([*folders[:-1], item]))
    assert named == {name for name in ours if not name.endswith("__init__.py")}


def test_it_needs_no_network(pages: Path) -> None:
    loaded = r"<(?:script|img|iframe)[^>]* src=\"(?:https?:)?//|<link[^>]* rel=\"(?:stylesheet|preload)\"[^>]*//"
    assert [str(page) for page in pages.rglob("*.html") if re.search(loaded, page.read_text())] == []


def test_every_column_of_a_table_has_a_name(pages: Path) -> None:
    nameless = [page.name for page in pages.rglob("*.html") if '<th class="head"><p></p></th>' in page.read_text()]
    assert nameless == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_and_axe_are_content(browser: Any, pages: Path, scheme: str, width: int) -> None:
    """No violation, nothing in the console, nothing fetched, no page wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    faults: list[str] = []
    tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    tab.on("console", lambda message: faults.append(f"{tab.url}: {message.text}"))
    tab.on("pageerror", lambda error: faults.append(f"{tab.url}: {error}"))
    tab.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else faults.append(one.url))
    for page in sorted(pages.rglob("*.html")):
        tab.goto(page.as_uri())
        found = Axe().run(tab, options={"preload": False}).response["violations"]
        faults += [f"{page.name}: {one['id']}: {one['nodes'][0]['html']:.200}" for one in found]
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
            faults.append(f"{page.name}: {wide} pixels wide")
    assert faults == []
    tab.context.close()
