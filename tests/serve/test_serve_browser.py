"""The page in a real browser: by keyboard, dropped and pasted, narrow and dark, checked by axe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accessibility import violations
from serve.serving import Running, photo


@pytest.fixture
def tab(browser: Any, server: Running) -> Iterator[Any]:
    """The page, ready; at the end neither its console nor a dialog has said anything, and it asked nobody else."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda one: None if one.url.startswith((server.url, "data:", "blob:")) else told.append(one.url),
    )
    page.goto(server.url)
    page.wait_for_selector("[data-ready]")
    yield page
    assert [one for one in told if "422 (" not in one and "415 (" not in one] == []  # what a refusal is logged as
    context.close()


def answered(page: Any) -> str:
    page.locator("#state", has_text=re.compile(r"\d s$")).wait_for()
    return str(page.inner_text("#said"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_task_by_its_example_narrow_and_wide_without_violation(tab: Any, server: Running, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    examples = tab.evaluate("about.examples.map((one) => one.task)")
    tasks = dict.fromkeys(examples)
    assert len(tasks) >= 7
    for task in tasks:
        tab.locator("#shown button").nth(examples.index(task)).click()
        assert answered(tab)
        assert tab.locator("#drawn svg").count() == (2 if task == "true" else 1)
        assert tab.locator("#drawn rect").count() == 2 * tab.locator("#drawn svg").count()
        tab.evaluate("document.getElementById('state').textContent = ''")
        if task != "search":
            tab.click("#why button")
            tab.locator("#why .words button").first.hover()
            heat = [
                float(one)
                for one in tab.locator("#drawn rect").evaluate_all("all => all.map(e => e.style.fillOpacity)")
            ]
            assert heat[0] < heat[1]  # a third as much of the word's
        for width in (360, 1440):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") == width, task
    for width in (360, 1440):
        tab.set_viewport_size({"width": width, "height": 900})
        assert violations(tab) == []
    tab.goto(f"{server.url}docs")
    tab.set_viewport_size({"width": 360, "height": 900})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert violations(tab) == []


def test_the_keyboard_alone_asks_and_reads(tab: Any, tmp_path: Path) -> None:
    """From the top of the page by Tab, arrows and Enter; the photo by the button that Space opens."""
    path = tmp_path / "photo.png"
    path.write_bytes(photo())

    def focus(name: str) -> None:
        for _ in range(12):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.id") == name:
                assert tab.evaluate(
                    "(e => [e, e.nextElementSibling, e.parentElement].some((one) => one && getComputedStyle(one)"
                    ".outlineStyle !== 'none'))(document.activeElement)"
                )
                return
        raise AssertionError(f"{name} is not reached by Tab")

    focus("task-answer")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.id") != "task-answer"
    tab.keyboard.press("ArrowLeft")
    focus("photo-image")
    with tab.expect_file_chooser() as chooser:
        tab.keyboard.press("Space")
    chooser.value.set_files(path)
    focus("field-question")
    tab.keyboard.type("what is it?")
    tab.keyboard.press("Enter")
    assert "50.0 %" in answered(tab)
    assert tab.get_attribute("#said", "aria-live") == "polite"
    for _ in range(6):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab") if tab.evaluate("document.activeElement.tagName") != "BUTTON" else None
    assert tab.evaluate("document.activeElement.textContent").startswith("red square")
    assert tab.locator("#drawn rect.lit").count() == 1


DROPPED = """([kind, bytes]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], "", { type: "image/png" }));
  const at = kind === "paste" ? document : document.querySelector(".slot");
  const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: carried, bubbles: true })
    : new DragEvent("drop", { dataTransfer: carried, bubbles: true });
  at.dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(tab: Any, kind: str) -> None:
    tab.evaluate(DROPPED, [kind, list(photo(40, 30))])
    tab.fill("#field-question", "what is it?")
    tab.click("#go")
    assert answered(tab)
    assert tab.get_attribute("#drawn svg", "viewBox") == "0 0 40 30"


def test_what_is_missing_or_refused_is_said(tab: Any) -> None:
    tab.click("#go")
    assert "choose one" in tab.inner_text("#problem")
    assert tab.evaluate("document.activeElement.id") == "photo-image"
    tab.evaluate(DROPPED, ["drop", [1, 2, 3]])
    tab.click("#go")
    assert "Question" in tab.inner_text("#problem")
    assert tab.evaluate("document.activeElement.id") == "field-question"
    tab.fill("#field-question", "<img src=x onerror=alert(1)>")
    tab.click("#go")
    tab.locator("#problem", has_text="not an image").wait_for()
    assert tab.get_attribute("#problem", "role") == "alert"
    assert violations(tab) == []
