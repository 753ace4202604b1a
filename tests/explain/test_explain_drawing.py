"""Explanations as pictures and numbers, of every objective."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain.explain_world import VQA, explainer, predictions
from objectives.grounding_world import make_grounding_world
from objectives.objectives_world import World, make_world
from objectives.tasks_world import make_tasks_world
from PIL import Image

from vbert.errors import UserError
from vbert.explain import METHODS
from vbert.explain.explanation import Explanation
from vbert.explain.layout import laid_out
from vbert.explain.relevant import RelevantRegion, RelevantWord, strengths
from vbert.explain.told import explanation
from vbert.objectives.captioning import CaptioningEvaluateSettings

HOSTILE = "</text><script>alert(1)</script>\"&'"


def made(word: str = "circle", picture: Image.Image | None = None) -> Explanation:
    words = (RelevantWord("what", 0.1, (0.9, 0.1)), RelevantWord(word, -2.0, (0.2, 0.8)))
    regions = (
        RelevantRegion(0, (2, 2, 12, 12), word, 3.0),
        RelevantRegion(1, (10, 10, 22, 20), "square", -1.5),
        RelevantRegion(2, None, "far", 0.5),
    )
    shown = picture or Image.new("RGB", (24, 24), (90, 120, 200))
    return Explanation(f"what {word}", word, 0.75, 1.1, "removal", words, regions, (shown,))


def test_png_is_lit_where_regions_are_relevant(tmp_path: Path) -> None:
    picture = Image.open(made(picture=Image.new("RGB", (240, 240), "white")).save(tmp_path / "deep" / "why.png"))
    place = laid_out([(240, 240)], ["what", "circle"])
    scale, (left, top) = place.sizes[0][0] / 240, (place.at[0], place.top)

    def light(x: float, y: float) -> float:
        return float(np.mean(picture.convert("RGB").getpixel((left + round(x * scale), top + round(y * scale)))))

    assert light(7, 9) > 250  # within the most relevant region
    assert light(200, 200) < 110  # beside all
    assert light(16, 18) < 110  # within the one that speaks against the answer
    words = [np.array(picture.getpixel((round(at.x + 3), round(at.y + 4))))[:3] for at in place.words]
    assert words[0].min() > 240 > 200 > words[1].min()  # shaded by relevance
    assert words[1][2] > words[1][0]  # against: blue


def test_svg_shows_the_regions_of_a_word_without_a_script() -> None:
    text = made().svg()
    root = ET.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    groups = [one for one in root.iter(f"{name}g") if one.get("class", "").startswith("w w")]
    assert [one.get("aria-label", "") for one in groups] == [
        "what: relevance +0.100; most of all region 1, circle",
        "circle: relevance -2.000; most of all region 2, square",
    ]
    assert all(one.get("tabindex") == "0" for one in groups)
    layers = [one.get("class") for one in root.iter(f"{name}g") if one.get("class", "").startswith(("heat", "of"))]
    assert layers == ["heat", "of of0", "of of1"]
    assert "#why .w1:is(:hover,:focus)~.pic .of1{opacity:1}" in text
    assert "<script" not in text
    assert "data:image/png;base64," in text


def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    one = made(HOSTILE)
    root = ET.fromstring(one.svg())
    assert not [tag for tag in root.iter() if tag.tag.endswith("script")]
    assert HOSTILE in "".join(root.itertext())
    one.save(tmp_path / "why.png")
    assert json.loads(one.save(tmp_path / "why.json").read_text("utf-8"))["answer"] == HOSTILE


def test_numbers_hold_all_of_it() -> None:
    numbers = made().numbers()
    assert json.loads(json.dumps(numbers)) == numbers
    assert [word["relevance"] for word in numbers["words"]] == [0.1, -2.0]
    assert numbers["regions"][2] == {"region": 2, "image": 0, "box": None, "name": "far", "relevance": 0.5}


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a name that ends in \.png, \.svg or \.json"):
        made().save(tmp_path / "why.bmp")


def test_strengths_keep_signs() -> None:
    assert strengths([2.0, -4.0, 0.0]) == [0.5, -1.0, 0.0]
    assert strengths([0.0]) == [0.0]


def test_long_texts_go_on_in_a_line_below() -> None:
    place = laid_out([(100, 50)], ["word"] * 40)
    assert max(at.x + at.width for at in place.words) <= place.width
    assert len({at.y for at in place.words}) > 3
    assert place.height > max(at.y for at in place.words)
    assert laid_out([], ["猫" * 3]).words[0].width > laid_out([], ["cat"]).words[0].width


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("shapes", "tasks", "things"):
        (folder / name).mkdir()
    return {
        "shapes": make_world(folder / "shapes", images=15),
        "tasks": make_tasks_world(folder / "tasks"),
        "things": make_grounding_world(folder / "things", 10),
    }


LABELLED = {"kind": "answer"}
CAPTION = {"kind": "captions", "predict": "mask", "tags": False, "tag_pieces": 9}
PHRASES = {"kind": "phrases", "protocol": "any", "loss": "kl", "iou": "inclusive", "as_original": False}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "vqa": ("shapes", VQA),
    "nlvr2": ("tasks", {**LABELLED, "labels": ["false", "true"]}),
    "classification": ("tasks", {**LABELLED, "labels": ["angry", "glad", "sad"]}),
    "choice": ("tasks", {"kind": "choice", "align": True, "cut": "both"}),
    "grounding": ("things", PHRASES),
    "captioning": ("shapes", CAPTION),
    "retrieval": ("shapes", {"kind": "retrieval", "dual": 0, "negatives": "random"}),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_objective_is_explained_by_every_method(name: str, worlds: dict[str, World]) -> None:
    world, head = HEADS[name]
    of = explainer(worlds[world], name, head, "train")
    row = of.side.rows.row(1)
    if name == "retrieval":
        prediction: dict[str, Any] = {}
    else:
        settings = CaptioningEvaluateSettings(beams=2, length=4, minimum=3) if name == "captioning" else None
        (prediction,) = predictions(of, [1], settings)
    for method in METHODS:
        parts = of.explain(1, prediction, method)
        assert len(parts) == {"grounding": len(row["phrases"] or ()), "captioning": len(parts)}.get(name, 1)
        for part in parts:
            assert np.isfinite([*part.relevant, *part.regions]).all()
            assert len(part.regions) == sum(len(of.side.visuals.shards.read(i).features) for i in row["image_ids"])
            assert all(sum(looks) == pytest.approx(1) for looks in part.looks)
        images = [of.side.visuals.shards.read(image) for image in row["image_ids"]]
        told = explanation(row, prediction, parts, images, method, [None] * len(images))
        ET.fromstring(told.svg())
        assert len(told.regions) == len(parts[0].regions)
        assert {region.image for region in told.regions} == set(range(len(images)))


def test_a_caption_is_explained_piece_by_piece(worlds: dict[str, World]) -> None:
    """The log-probabilities of its pieces sum to the one that decoding gave it."""
    of = explainer(worlds["shapes"], "captioning", CAPTION, "train")
    (made,) = predictions(of, [1], CaptioningEvaluateSettings(beams=1, length=5, minimum=5))
    parts = of.explain(1, made, "attention")
    words = of.side.encoder.text(part.examined.target for part in parts)
    assert words.split() == made["answer"].split() or len(parts) >= 5
    one = parts[-1].examined.input
    assert one.causal
    assert one.text.ids[-1] == of.side.encoder.mask


def test_the_chosen_choice_and_the_chosen_region_are_explained(worlds: dict[str, World]) -> None:
    of = explainer(worlds["tasks"], "choice", HEADS["choice"][1], "train")
    row, inputs = of.side.rows.row(0), of.inputs(0)
    for answer in ("0", "2"):
        (one,) = of.examined(row, inputs, {"answer": answer})
        assert one.input is inputs[int(answer)]
    of = explainer(worlds["things"], "grounding", PHRASES, "train")
    (prediction,) = predictions(of, [0])
    for k, part in enumerate(of.explain(0, prediction, "removal")):
        assert part.examined.target == prediction["ranked"][k][0]
        score = part.score  # log-odds of the probability that decoding told
        assert 1 / (1 + np.exp(-score)) == pytest.approx(prediction["sure"][k], abs=1e-4)
