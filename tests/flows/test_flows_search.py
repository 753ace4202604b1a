"""`vbert search` as a user calls it: its lines, its JSON, its page of pictures, its errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from objectives.objectives_world import MODEL, World
from objectives.retrieval_world import finetune, make_retrieval_world
from PIL import Image

from vbert.objectives.trained import Model
from vbert.regions.shards import INDEX, Shards


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_retrieval_world(tmp_path_factory.mktemp("search") / "world")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return finetune(tmp_path_factory.mktemp("trained"), world, sizes=MODEL, steps=8)


@pytest.fixture
def search(vbert: Any, world: World, trained: Model, tmp_path: Path) -> Any:
    """`vbert search … --model model --features features`, beside a folder `photos` of half of the images."""
    shutil.copytree(trained.path, tmp_path / "model")
    shutil.copytree(world.shards.path, tmp_path / "features", ignore=shutil.ignore_patterns("search-*"))
    (tmp_path / "photos").mkdir()
    for k, image_id in enumerate(world.shards):
        if k % 2:
            Image.new("RGB", (32, 32), "teal").save(tmp_path / "photos" / Path(image_id).name)
    return lambda *words: vbert("search", *words, "--model", "model", "--features", "features")


def last(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_lines_and_json_say_the_same(search: Any) -> None:
    code, out, err = search("a dog", "--top", "4", "--rerank", "2", "--json")
    assert code == 0, err
    said = last(out)
    assert (said["text"], said["like"], said["images"], len(said["found"])) == ("a dog", None, 56, 4)
    assert said["index"]["vectors_made"] == 56
    assert "vectors of 56 of 56 images were made" in err
    assert INDEX.fullmatch(Path(said["index"]["path"]).name)
    rows = [line.split() for line in out.splitlines()[:4]]
    assert [row[1] for row in rows] == [one["image_id"] for one in said["found"]]
    assert [len(row) for row in rows] == [4, 4, 3, 3], "those behind the re-ranked have no score"
    assert [one["score"] is None for one in said["found"]] == [False, False, True, True]
    code, out, err = search("a dog", "--rerank", "0", "--json")
    assert (code, len(last(out)["found"]), last(out)["index"]["vectors_made"], err) == (0, 10, 0, "")


def test_images_like_one(search: Any, world: World) -> None:
    own = world.shards.image_ids()[3]
    code, out, _ = search("--like", own, "--json")
    found = [one["image_id"] for one in last(out)["found"]]
    assert (code, len(found), own in found, last(out)["like"]) == (0, 10, False, own)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), ("text", "--like")),
        (("a dog", "--like", "x"), ("text", "--like")),
        (("  ",), ("empty",)),
        (("猫",), ("猫", "vocabulary")),
        (("--like", "images/COCO_000000000007.png"), ("near", "images/COCO_000000000007.jpg")),
        (("a dog", "--top", "0"), ("--top 0", "1")),
        (("a dog", "--rerank=-1"), ("--rerank -1", "0")),
        (("a dog", "--images", "photos"), ("--images", "--html")),
        (("a dog", "--images", "nowhere", "--html", "a.html"), ("nowhere",)),
        (("a dog", "--images", "model", "--html", "a.html"), ("--images model", "no image")),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_sentence(search: Any, words: tuple[str, ...], named: tuple[str, ...]) -> None:
    code, _, err = search(*words)
    assert (code, err.count("Traceback")) == (2, 0)
    assert [one for one in named if one not in err] == [], err
    assert not Path("a.html").exists()


def test_a_contract_that_doesn_t_fit_names_the_field(search: Any) -> None:
    path = Path("features/contract.json")
    contract = json.loads(path.read_text())
    contract["layer"] = "fc6"
    path.write_text(json.dumps(contract))
    code, _, err = search("a dog")
    assert code == 2
    assert "layer is 'fc7' for the model, 'fc6' for the shards" in err


def page_of(search: Any, *words: str) -> str:
    code, _, err = search(*words, "--html", "out/found.html")
    assert code == 0, err
    return Path("out/found.html").read_text("utf-8")


def test_the_page_holds_pictures_boxes_and_figures(search: Any) -> None:
    page = page_of(search, "a dog <script>alert(1)</script> and a 猫", "--images", "photos", "--top", "8")
    assert "<script" not in page
    assert "a dog &lt;script&gt;" in page
    assert "&#39;猫&#39;" in page, "what the model can't read is told"
    assert "default-src &#39;none&#39;; script-src &#39;none&#39;" in page
    pictured = len(re.findall(r'<image href="data:image/png;base64,', page))
    assert pictured + page.count("No picture of") == 8
    assert 0 < pictured < 8
    assert page.count("similarity <b>") == page.count("score <b>") == 8
    drops = re.findall(r"<span>−([\d.e-]+)</span></li>", page)
    assert drops
    assert re.search(r'<rect class="rim" x="0.00" y="0.00" width="32.00" height="32.00"/>', page), "scaled to the copy"
    assert "http:" not in page
    assert "https:" not in page


def test_without_pictures_the_page_says_so(search: Any, world: World) -> None:
    page = page_of(search, "a dog", "--rerank", "0")
    assert "--images" in page
    assert "<image" not in page
    assert "score <b>" not in page
    assert "ranked by the dual encoder" in page
    own = world.shards.image_ids()[3]
    page = page_of(search, "--like", own, "--images", "photos", "--top", "2")
    assert page.count("<article") == 3, "and the image itself"


def test_preprocessing_again_keeps_the_index(trained: Model, world: World, tmp_path: Path) -> None:
    """What `vbert preprocess` hands out replaces the shards, and not what was kept of a search."""
    from vbert.artifacts.upkeep.export import hand_out
    from vbert.regions.shards import foreign_files

    out = tmp_path / "features"
    hand_out(Shards.at(world.shards.path), out, kept=INDEX)
    kept = out / "search-0123456789abcdef.safetensors"
    kept.write_bytes(b"vectors")
    (out / f".{kept.name}.leftover").write_bytes(b"of one killed")
    assert foreign_files(out) == []
    hand_out(Shards.at(world.shards.path), out, kept=INDEX)
    assert kept.read_bytes() == b"vectors"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(path.name for path in world.shards.path.iterdir()), kept.name]
    )


@pytest.mark.slow
def test_browser_opens_the_page_without_complaint(search: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    page_of(search, 'a dog"><img src=x onerror=alert(1)>', "--images", "photos")
    path = Path("out/found.html").absolute()
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        for width in (1280, 360):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            told: list[str] = []
            asked: list[str] = []
            tab.on("console", lambda message, told=told: told.append(message.text))
            tab.on("dialog", lambda dialog, told=told: (told.append(dialog.message), dialog.dismiss()))
            tab.on("request", lambda one, asked=asked: None if one.url.startswith("data:") else asked.append(one.url))
            tab.goto(path.as_uri())
            assert told == []
            assert asked == [path.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.locator("article").count() == 10
            assert tab.locator("svg rect.rim").first.bounding_box()["width"] > 10
        browser.close()
