"""The page from loose artifacts: its contents, its safety, its sentences about absent artifacts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.report_world import HOSTILE, PAGE_SETTINGS, World, made_by, measured_explanations, write_page

from flows.recipe import resolve
from vbert.data.examples import Examples, write_examples
from vbert.data.images import Images
from vbert.data.raw import RawFiles
from vbert.report.baselines import DetectorBaselines

TAGS_WITH_SOURCES = {"img", "iframe", "object", "embed", "link", "form", "base", "video", "audio", "source"}


def test_what_matching_reaches_stands_beside_what_needs_no_images(world: World, tmp_path: Path) -> None:
    said = Elements(write_page(tmp_path, world, pretrained=world.pretrained)[0]).text
    section = " ".join(said[said.index("The share of held-out pairs") :].split())
    for part in (
        "with the image’s own regions81.0 %74.0 %",
        "a bag of words, text alone50.0 %62.0 %",
        "left and right 58 %",
        "it has hardly learnt to look at images",
    ):
        assert part in section


class Elements(HTMLParser):
    """(tag, attributes) of every element, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.parts: list[str] = []
        self.inside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text += data
            self.parts.append(data)

    @property
    def words(self) -> str:
        """The text with one space between elements."""
        return " ".join(" ".join(self.parts).split())


def test_it_tells_the_metric_its_interval_the_types_and_the_detector(page: str) -> None:
    text = Elements(page).words
    assert "accuracy vqa on toy test 33.33 % 95 % interval" in text
    assert re.search(r"95 % interval \d+\.\d\d % to \d+\.\d\d %", text)
    assert "mean of 6 examples: 6 answered, 1 with their image in quarantine, which count as wrong" in text
    assert re.search(r"Clopper–Pearson for \d independent examples from 6 images", text)
    assert "kind 0 3 examples 100.0 %" in text
    assert "mAP@0.5 (val) 95.12 %" in text
    assert "red box 0.97" in text
    assert "4 of 6 answers are wrong" in text


def test_wrong_predictions_come_first_the_most_certain_before_the_others(page: str) -> None:
    text = Elements(page).words
    shelf = text[text.index("Wrong the most certain mistakes") : text.index("Least certain")]
    assert re.findall(r"predicted yes (\d+\.\d) % right (\w+)", shelf) == [("55.0", "red"), ("54.0", "no")]


def test_predictions_are_explained_by_words_and_regions(page: str) -> None:
    drawings = re.findall(r'<svg[^>]* class="why" id="(why-\d)".*?</svg>', page, re.DOTALL)
    assert drawings == [f"why-{k}" for k in range(PAGE_SETTINGS.attention)]
    one = page[page.index('id="why-0"') : page.index('id="why-1"')]
    assert re.findall(r'<g class="w w\d" tabindex="0" role="img" aria-label="(\w+): ', one)[:3] == ["is", "it", "red"]
    assert one.count('class="of of0"') == 1  # the regions of the first word
    assert "#why-0 .w0:is(:hover,:focus)~.pic .of0{opacity:1}" in one
    assert len(re.findall(r"<title>\d (?:box|disc): [+-]\d+\.\d{3}</title>", one)) == 2
    assert len(re.findall(r'<li class="tone-7">', one)) == 2


def test_measured_explanations_stand_beside_random_order(world: World, tmp_path: Path) -> None:
    explained = {"vqa/toy/test": measured_explanations(tmp_path)}
    page, _ = write_page(tmp_path / "page", world, explained=explained)
    text = Elements(page).words
    part = text[text.index("Explanations measured · vqa on toy test, 60 examples") :]
    rows = re.findall(r"(removal|attention|random)(?: \((default|control)\))? (0\.\d{3}) \(", part)
    assert rows == [("removal", "default", "0.250"), ("attention", "", "0.375"), ("random", "control", "0.500")]
    assert "0.500 (0.480 to 0.520)" in part  # removal's gap, and over random order
    assert "60 examples of 40 images" in part
    assert "Not measured alone: words, regions" in part
    specs = re.findall(r'id="why-1-1-\d">(.*?)</script>', page)
    charts = [next(iter(json.loads(spec)["datasets"].values())) for spec in specs]
    values = [{row["n"]: row["v"] for row in rows if row["s"] == 50} for rows in charts]
    assert values == [
        {"random": 0.5, "removal": 0.25, "attention": 0.375},
        {"random": 0.5, "removal": 0.75, "attention": 0.5},
    ]


def test_figures_are_flat_metrics(world: World, tmp_path: Path) -> None:
    _, figures = write_page(tmp_path, world)
    assert figures == {"vqa/toy/test/accuracy": pytest.approx(1 / 3), "vqa/toy/test/accuracy/kind 0": 1.0}


def test_every_held_out_figure_says_its_split(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbert.report.write.trace_lineage", lambda roots: made_by(resolve("demo")))
    page = write_page(tmp_path, world, pretrained=world.pretrained)[0]
    text = Elements(page).words
    mentions = [text[one.start() : one.start() + 60] for one in re.finditer("[Hh]eld-out", text)]
    assert len(mentions) > 8
    assert [one for one in mentions if not re.match(r"\S+( \w+){0,2} \((val|test)\)", one)] == []
    titles = re.findall(r'<figure class="card chart">\s*<h3[^>]*>(.*?)</h3>', page)
    assert {title for title in titles if "(val)" not in title} == {"Losses", "Loss"}
    assert "mAP@0.5 (val) 95.12 %" in text
    part = text[text.index("Environment and how") :]
    assert re.findall(r"(\w+)(?:\[ \w+\])? \w{8} accuracy 98.0 % (\(\w+\))", part) == [
        ("pretrain", "(val)"), ("finetune", "(val)"), ("evaluate", "(test)"), ("finetune", "(val)"),
        ("evaluate", "(test)"),
    ]  # fmt: skip


def test_a_guess_stands_beside_every_share(world: World, tmp_path: Path) -> None:
    """Answers over all and by kind, attributes, matching."""
    key, held = next(iter(world.downstream.items()))
    rows: list[dict[str, Any]] = held.examples.table().to_pylist()
    (tmp_path / "examples").mkdir()
    training = [{**row, "example_id": f"{split}{i}", "split": split}
                for split in ("train", "val") for i, row in enumerate(rows)]  # fmt: skip
    write_examples(tmp_path / "examples", [*rows, *training])
    held = replace(held, examples=Examples.at(tmp_path / "examples"))
    text = Elements(write_page(tmp_path / "page", world, pretrained=world.pretrained, downstream={key: held})[0]).words
    for said in (
        "the most frequent training answer alone, no : 33.33 %",
        "kind 0 3 examples “no” alone: 33.3 %",
        "Detector attributes 100.0 % held-out (val); “red” alone: 33.3 %",
        "Texts matched 60.0 % held-out (val); the text alone: 58.0 %",
        "vqa 87.50 %. The commonest of training alone: accuracy 33.3 %.",
        "attribute accuracy 80.00 %. The commonest of training alone: attribute accuracy 33.3 %.",
    ):
        assert said in text


def test_two_pages_differ_in_nothing_but_their_time(world: World, page: str, tmp_path: Path) -> None:
    def timeless(text: str) -> str:
        return re.sub(r"made \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)

    assert timeless(write_page(tmp_path, world)[0]) == timeless(page)


def test_it_holds_pictures_and_stays_small(page: str) -> None:
    images = [told for tag, told in Elements(page).found if tag == "image"]
    assert len(images) > 4
    assert all((told["href"] or "").startswith("data:image/png;base64,") for told in images)
    assert len(page.encode()) < 3_000_000


def test_a_budget_of_bytes_leaves_pictures_out_and_says_so(world: World) -> None:
    from vbert.report.thumbnails import ThumbnailAlbum

    album = ThumbnailAlbum(side=320, budget=250)
    first, *rest = [album.picture(world.images, f"{i}") for i in range(6)]
    assert first.uri
    assert rest[-1].uri is None
    assert "as many pictures as it should" in rest[-1].reason


def test_nothing_can_be_fetched_and_only_known_scripts_run(page: str) -> None:
    elements = Elements(page).found
    (policy,) = [told["content"] or "" for tag, told in elements if told.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in rules["script-src"]
    assert len(re.findall(r"'sha256-[^']+'", rules["script-src"])) == 2
    assert not [tag for tag, told in elements if tag == "script" and "src" in told]


@pytest.mark.parametrize("which", ["page", "hostile"])
def test_no_element_comes_from_data(which: str, page: str, hostile: Path) -> None:
    """Hostile strings add no element, no handler, no link; the template's own links stay on the page."""
    text = page if which == "page" else hostile.read_text("utf-8")
    elements = Elements(text).found
    assert not TAGS_WITH_SOURCES & {tag for tag, _ in elements}
    assert not [told for _, told in elements if any(name.startswith("on") for name in told)]
    assert all((told["href"] or "").startswith("#") for tag, told in elements if tag == "a")
    scripts = [told.get("type") for tag, told in elements if tag == "script"]
    assert scripts.count(None) == 2
    assert scripts.count("application/json") == len(scripts) - 2


def test_hostile_strings_are_shown_as_they_are(hostile: Path) -> None:
    text = Elements(hostile.read_text("utf-8")).text
    assert f"is it red{HOSTILE} 5?" in text
    assert f"kind 1{HOSTILE}" in text
    assert f"empty{HOSTILE}" in text  # the quarantine's reason
    assert "{{ 7*7 }}" in text


def test_the_template_refuses_what_is_not_there() -> None:
    from jinja2 import UndefinedError

    from vbert.report.render import render

    with pytest.raises(UndefinedError):
        render(type("Nothing", (), {"charts": [], "shards": [], "detector": {}, "pretrained": None,
                                    "detected": DetectorBaselines(), "hidden": None, "explained": [], "measured": [],
                                    "chain": type("Lineage", (), {"nodes": []})})())  # fmt: skip


def test_lone_surrogates_do_not_stop_it(world: World, tmp_path: Path) -> None:
    page, _ = write_page(tmp_path, world, title="toy \ud800")
    assert '<h1 dir="auto">toy ?</h1>' in page


# ------------------------------------------------------------------------------------------------ what is absent


def said(page: str) -> list[str]:
    """The sentences that stand in for what is absent."""
    return [" ".join(t.split()) for t in re.findall(r'<p class="absent"[^>]*>(.*?)</p>', page, re.DOTALL)]


def test_a_report_of_a_detector_alone(world: World, tmp_path: Path) -> None:
    page, figures = write_page(tmp_path, world, images=None, downstream={})
    assert figures == {}
    sentences = said(page)
    assert "No downstream task was evaluated: this report ends at what was trained before." in sentences
    assert "Nothing was pre-trained." in sentences
    assert "No region features were extracted." in sentences
    assert "the detector&#39;s images are not given" in page


def test_a_detector_from_elsewhere_has_no_curves_and_no_evaluation(world: World, tmp_path: Path) -> None:
    detector = tmp_path / "detector"
    detector.mkdir()
    (detector / "detector.json").write_text(json.dumps({"spec": {}, "classes": ["a", "b"]}))
    page, _ = write_page(tmp_path, world, detector=type(world.detector).at(detector), downstream={})
    assert "was not evaluated here" in page
    assert "Nothing was trained here, so there are no curves." in said(page)
    assert "vegaEmbed=" not in page  # the library is not carried along for nothing


def test_deleted_pictures_leave_words(world: World, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    images = Images.at(world.images.path).over({"own": RawFiles.at(gone)})
    key, held = next(iter(world.downstream.items()))
    page, _ = write_page(tmp_path, world, images=images, downstream={key: replace(held, images=images)})
    assert "No picture of 0:" in page
    assert "is it red 0?" in page
    assert "<image " not in page


def test_predictions_without_labels_are_shown_without_verdict(world: World, tmp_path: Path) -> None:
    from vbert.metrics.evaluation import Evaluation, write_evaluation

    key, held = next(iter(world.downstream.items()))
    for part in ("examples", "evaluation"):
        (tmp_path / part).mkdir()
    rows = [{**row, "answers": None} for row in held.examples.table().to_pylist()]
    write_examples(tmp_path / "examples", rows)
    write_evaluation(tmp_path / "evaluation", predictions=held.evaluation.predictions(), metrics={}, images=[],
                     resamples=0, counts={"examples": 6, "answered": 6, "quarantined": 0}, files={})  # fmt: skip
    unlabelled = replace(
        held, examples=Examples.at(tmp_path / "examples"), evaluation=Evaluation.at(tmp_path / "evaluation")
    )
    page, figures = write_page(tmp_path, world, downstream={key: unlabelled})
    assert figures == {}
    assert "this split has no labels to score them by" in page
    assert "Most certain" in page
    assert "Wrong" not in Elements(page).text


def test_a_model_that_does_not_fit_its_regions_costs_only_the_explanations(world: World, tmp_path: Path) -> None:
    import shutil

    from vbert.regions.shards import Shards

    key, held = next(iter(world.downstream.items()))
    shutil.copytree(held.shards.path, tmp_path / "shards")
    contract = tmp_path / "shards" / "contract.json"
    contract.write_text("{}")
    broken = replace(held, shards=Shards.at(tmp_path / "shards"))
    page, figures = write_page(tmp_path, world, downstream={key: broken})
    assert figures
    assert any("Explanations could not be computed" in sentence for sentence in said(page))
