"""The page in a browser: opened from disk, without a network, on a narrow screen, with strings that attack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accessibility import violations
from report.report_world import HOSTILE, PAGE_SETTINGS, made_by, make_world, write_page

from flows.recipe import resolve
from flows.reproduce import commands_to_reproduce
from vbert.report.page import PAGE


def opened(browser: Any, path: Path, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    """The page opened from disk, what its console said, and what it asked for beside itself and its data URIs."""
    tab = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900}).new_page()
    told: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    tab.goto(path.as_uri())
    charts = tab.locator("[data-chart]").count()
    tab.wait_for_function(f"document.querySelectorAll('[data-chart][data-drawn] svg').length == {charts}")
    return tab, told, asked


def test_browser_opens_it_from_disk_without_network_or_complaint(browser: Any, page: str, tmp_path: Path) -> None:
    path = tmp_path / PAGE
    path.write_text(page, "utf-8")
    seen = {}
    for scheme in ("light", "dark"):
        tab, told, asked = opened(browser, path, scheme)
        assert told == []
        assert asked == [path.as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") == 1280
        seen[scheme] = tab.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert violations(tab) == []
        drawn = tab.evaluate("[...document.querySelectorAll('image')].length")
        assert drawn == page.count("<image ")
        tab.close()
    assert seen["light"] != seen["dark"]


def test_browser_chart_names_the_series_under_the_pointer(browser: Any, page: str, tmp_path: Path) -> None:
    path = tmp_path / PAGE
    path.write_text(page, "utf-8")
    tab, _, _ = opened(browser, path)
    point = tab.locator("[data-chart] .mark-symbol path").last
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = tab.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "undefined" not in tip.inner_text()
    assert "vqa" in tip.inner_text()
    tab.close()


def test_browser_runs_nothing_that_hostile_strings_bring(browser: Any, hostile: Path) -> None:
    tab, told, asked = opened(browser, hostile)
    assert told == []
    assert asked == [hostile.as_uri()]
    assert tab.evaluate("window.pwned") is None
    assert HOSTILE[:20] in tab.inner_text("#predictions")
    tab.close()


NARROW = """() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const broken = [], wide = [], range = document.createRange();
  const scrolls = (one) => one && (getComputedStyle(one).overflowX !== "visible" || scrolls(one.parentElement));
  for (const one of document.body.querySelectorAll("*"))
    if (one.getBoundingClientRect().right > innerWidth + 0.5 && !scrolls(one.parentElement))
      wide.push(one.outerHTML.slice(0, 80));
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); ) {
    if (node.parentElement.closest("script, style, noscript, svg")) continue;
    for (const word of node.data.matchAll(/(?<![\\p{L}\\d])\\p{L}{2,20}(?![\\p{L}\\d])/gu)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) broken.push(word[0]);
    }
  }
  return { width: document.documentElement.scrollWidth, wide, broken };
}"""


def test_browser_at_360_pixels_nothing_is_wider_and_no_word_is_broken(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report like the demo's: its chain and recipe, long names, and regions called `red quadrilateral`."""
    shown = make_world(tmp_path, " quadrilateral")
    (held,) = shown.downstream.values()
    entry = {"objective": "vqa", "data": "easy_vqa", "start": "none", "steps": 600, "learning_rate": 7e-4}
    recipe = resolve("demo_controls", {"limit": 40, "downstream.without_pretraining": entry})
    monkeypatch.setattr("vbert.report.write.trace_lineage", lambda roots: made_by(recipe))
    write_page(
        tmp_path, shown, title="does_pretraining_help", pretrained=shown.pretrained,
        downstream={"vqa/easy_vqa/test": held, "without_pretraining_and_words@2/easy_vqa/test": held},
        settings=PAGE_SETTINGS.model_copy(update={"again": commands_to_reproduce(recipe)}),
    )  # fmt: skip
    tab, told, _ = opened(browser, tmp_path / PAGE)
    tab.set_viewport_size({"width": 360, "height": 800})
    assert told == []
    assert "quadrilateral" in tab.inner_text("#why .found")
    assert "finetune[without_pretraining]" in tab.inner_text("#reproduce .rows")
    assert tab.evaluate(NARROW) == {"width": 360, "wide": [], "broken": []}
    assert violations(tab) == []
    tab.close()
