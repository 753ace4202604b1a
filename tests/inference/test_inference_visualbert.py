"""`VisualBert`: what it says of photos, in every form that photos come in, and what it can't."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference.inference_world import HEADS, LABELS, SETTINGS, make_detector, make_export, photos
from PIL import Image
from refused import refused
from regions.regions_tiny import collection, extracted

import vbert
from vbert.inference.results import Answer, Caption, Match, Verdict
from vbert.inference.visualbert import VisualBert, able
from vbert.regions.detector import DetectorWeights
from vbert.regions.shards import Shards

QUESTIONS = ["what is red?", "is the circle on the left?", "what is blue and happy?", "red?"]
# How each objective's model is asked, and what of.
ASK: dict[str, Callable[[VisualBert, Any], Any]] = {
    "vqa": lambda model, image: model.answer(image, "what is red?"),
    "nlvr2": lambda model, image: model.true(image, image, "both are red"),
    "classification": lambda model, image: model.classify(image, "so happy"),
    "choice": lambda model, image: model.choose(image, "what is it?", ["red", "a blue circle"]),
    "grounding": lambda model, image: model.ground(image, "the circle on the left", "circle"),
    "retrieval": lambda model, image: model.match(image, "a red square"),
    "captioning": lambda model, image: model.caption(image, length=4),
    "mlm_itm": lambda model, image: model.fill(image, "a [MASK] circle"),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> DetectorWeights:
    return make_detector(tmp_path_factory.mktemp("detector") / "weights")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, detector: DetectorWeights) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {name: make_export(folder / name, name, detector) for name in HEADS}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, detector: DetectorWeights, files: list[Path]) -> Shards:
    """What the stage `regions` makes of the photos."""
    folder = tmp_path_factory.mktemp("shards")
    images = collection(folder / "images", {path.name: path.read_bytes() for path in files})
    return extracted(folder / "shards", images, detector, SETTINGS)


@pytest.fixture(scope="module")
def vqa(exports: dict[str, Path]) -> VisualBert:
    return VisualBert.load(exports["vqa"], device="cpu")


@pytest.mark.parametrize("objective", HEADS)
def test_any_form_of_an_image_is_the_same_image(objective: str, exports: dict[str, Path], files: list[Path]) -> None:
    model = VisualBert.load(exports[objective], device="cpu")
    path, ask = files[0], ASK[objective]
    picture = Image.open(path)
    alpha = picture.convert("RGBA")
    forms = [str(path), path.read_bytes(), picture, alpha, np.array(picture)]
    expected = ask(model, path)
    assert [ask(model, form) == expected for form in forms] == [True] * len(forms)
    other = ask(model, files[1])
    assert other != expected, "another image is answered by other numbers"


@pytest.mark.parametrize("objective", HEADS)
def test_an_answer_hangs_on_no_other(objective: str, exports: dict[str, Path], files: list[Path]) -> None:
    """Exactly: each image alone, all in one list, and in another order."""
    model, ask = VisualBert.load(exports[objective], device="cpu"), ASK[objective]
    alone = [ask(model, path) for path in files]
    assert ask(model, files) == alone
    assert ask(model, files[::-1]) == alone[::-1]
    states = [model.encode(path, "a red square and a blue circle").last_hidden_state for path in files]
    together = model.encode(files, "a red square and a blue circle")
    assert all(torch.equal(a, b.last_hidden_state) for a, b in zip(states, together, strict=True))


def test_without_independent_rows_bits_hang_on_the_batch(exports: dict[str, Path], files: list[Path]) -> None:
    """The test above could not fail otherwise."""
    model = VisualBert.load(exports["vqa"], device="cpu")
    model.computing = torch.no_grad  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(768, 3072, generator=generator), torch.randn(32, 3072, generator=generator)
    alone = torch.nn.functional.linear(weights[1][:1], weights[0])
    assert not torch.equal(alone, torch.nn.functional.linear(weights[1], weights[0])[:1])
    with VisualBert.load(exports["vqa"], device="cpu").computing():
        alone = torch.nn.functional.linear(weights[1][:1], weights[0])
        assert torch.equal(alone, torch.nn.functional.linear(weights[1], weights[0])[:1])


def test_what_is_said_is_what_the_classes_say(exports: dict[str, Path], files: list[Path]) -> None:
    def loaded(name: str) -> VisualBert:
        return VisualBert.load(exports[name], device="cpu")

    answers = loaded("vqa").answer(files[0], "what is red?")
    assert [type(one) for one in answers] == [Answer] * 4
    assert {one.text for one in answers} == set(LABELS)
    assert sum(one.score for one in answers) == pytest.approx(1, abs=1e-5)
    assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)
    assert len(loaded("vqa").answer(files[0], "what is red?", top=2)) == 2
    verdict = loaded("nlvr2").true(files[0], files[1], "both are red")
    assert isinstance(verdict, Verdict)
    assert bool(verdict) == (verdict.score > 0.5)
    assert loaded("nlvr2").true(files[0], None, "it is red") != verdict
    assert loaded("classification").sentiment(files[0], "happy") == loaded("classification").classify(files[0], "happy")
    both = loaded("choice").choose(files[0], QUESTIONS[:2], [["red", "blue"], ["a", "b", "c"]])
    assert [len(one) for one in both] == [2, 3]
    match = loaded("retrieval").match(files[0], "a red square")
    assert isinstance(match, Match)
    assert match.score == pytest.approx(1 / (1 + np.exp(-match.logit)), abs=1e-6)
    assert isinstance(loaded("captioning").caption(files[0]), Caption)
    first, second = loaded("mlm_itm").fill(files[0], "[MASK] circle and [MASK]", top=3)
    assert (len(first), len(second)) == (3, 3)
    assert isinstance(loaded("mlm_itm").match(files[0], "a red square"), Match)


def test_grounding_gives_boxes_in_pixels_of_the_photo(exports: dict[str, Path], files: list[Path]) -> None:
    model = VisualBert.load(exports["grounding"], device="cpu")
    found, regions = model.ground(files[0], "the circle on the left", "circle"), model.regions(files[0])
    assert sum(one.score for one in found) == pytest.approx(1, abs=1e-5)
    assert sorted(one.region for one in found) == list(range(len(regions.features)))
    assert all(one.box == pytest.approx(regions.boxes[one.region], abs=1e-3) for one in found)
    assert [one.name for one in found] == [regions.classes[one.region] for one in found]
    texts = ["the circle on the left", "the left"]
    several = model.ground(files[0], texts, ["circle", ""])
    assert several[0] == found
    assert several[1] == model.ground(files[0], "the left")
    long = "red " * 30 + "circle"
    assert model.ground(files[0], [long, texts[0]], ["circle", "circle"], strict=False) == [None, found]
    with refused("phrase", "24"):
        model.ground(files[0], long, "circle")
    with refused("squares", texts[0]):
        model.ground(files[0], texts[0], "squares")


def test_states_are_those_of_pieces_and_regions(vqa: VisualBert, files: list[Path]) -> None:
    one = vqa.encode(files[0], "这是一只猫。")
    assert one.pieces[0] == "[CLS]"
    assert one.pieces[-1] == "[SEP]"
    assert len(one.pieces) == 8, "a Chinese character is a word of its own"
    assert one.last_hidden_state.shape == (len(one.pieces) + len(one.boxes), 32)
    assert (one.text.shape[0], one.regions.shape[0], one.pooled.shape) == (8, len(one.boxes), (32,))
    assert not one.last_hidden_state.requires_grad
    assert torch.isfinite(one.last_hidden_state).all()


def test_regions_are_those_of_the_stage(vqa: VisualBert, files: list[Path], shards: Shards) -> None:
    for path in files:
        own, there = vqa.regions(path), shards[path.name]
        assert own.features.tobytes() == there.features.tobytes()
        assert own.boxes is not None
        assert there.boxes is not None
        assert own.boxes.tobytes() == there.boxes.tobytes()
        assert (own.classes, own.scores, own.width) == (there.classes, there.scores, there.width)


def test_regions_stand_for_images(vqa: VisualBert, files: list[Path], shards: Shards) -> None:
    questions = QUESTIONS[:3]
    expected = vqa.answer(files[:3], questions)
    names = [path.name for path in files[:3]]
    assert vqa.answer(names, questions, regions=shards) == expected
    assert vqa.answer(None, questions, regions=[shards[name] for name in names]) == expected
    assert vqa.answer(None, questions[0], regions=vqa.regions(files[0])) == expected[0]
    with refused("nothere.png"):
        vqa.answer("nothere.png", "what?", regions=shards)
    with refused("list"):
        vqa.answer(None, "what?", regions=[[1.0]])
    wide = vqa.regions(files[0])
    with refused("31", "32"):
        vqa.answer(None, "what?", regions=type(wide)(wide.features[:, :31], wide.boxes, wide.json))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda one: replace(one, features=one.features * np.float16("nan")), ("feature", "NaN")),
        (lambda one: replace(one, features=one.features[0]), ("[32]", "[regions, 32]")),
        (lambda one: replace(one, features=one.features.astype(int)), ("int64",)),
        (lambda one: replace(one, boxes=one.boxes * np.float32("inf")), ("box", "finite")),
        (lambda one: replace(one, boxes=one.boxes[:-1]), ("[3, 4]", "4 regions")),
        (lambda one: replace(one, boxes=one.boxes + 50), ("box", "40 pixels wide")),
        (lambda one: replace(one, boxes=one.boxes - np.float32([0, 60, 0, 60])), ("box", "48 pixels high")),
        (lambda one: replace(one, json=b"{}"), ("width",)),
    ],
)
def test_regions_that_no_image_has_are_refused(
    vqa: VisualBert, files: list[Path], change: Callable[[Any], Any], names: tuple[str, ...]
) -> None:
    regions = vqa.regions(files[0])
    with refused("regions", *names):
        vqa.answer(None, "what?", regions=change(regions))
    with refused("regions 1", *names):
        vqa.answer(None, "what?", regions=[regions, change(regions)])


@pytest.mark.parametrize("top", [0, -1, 1.5, "2", None, True])
def test_a_number_of_answers_is_a_whole_one(
    vqa: VisualBert, exports: dict[str, Path], files: list[Path], top: Any
) -> None:
    with refused("top", repr(top)):
        vqa.answer(files[0], "what?", top=top)
    with refused("top", repr(top)):
        VisualBert.load(exports["mlm_itm"], device="cpu").fill(files[0], "[MASK]", top=top)
    assert len(vqa.answer(files[0], "what?", top=np.int64(2))) == 2


def test_paths_that_are_none_are_refused(vqa: VisualBert, files: list[Path]) -> None:
    why = vqa.explain(files[0], "what?", method="attention")
    for given, names in ((None, ("NoneType", "path")), (5, ("int", "path")), ("", ("path", "empty"))):
        for load in (VisualBert.load, vbert.VisualBert.load):
            with refused("model", *names):
                load(given)
        with refused("picture", *names):
            why.save(given)  # type: ignore[arg-type]
    with refused("image", "path", "empty"):
        vqa.answer("", "what?")


def test_an_answer_is_explained(exports: dict[str, Path], vqa: VisualBert, files: list[Path], tmp_path: Path) -> None:
    why = vqa.explain(files[0], "what is red?")
    (best,) = vqa.answer(files[0], "what is red?", top=1)
    assert (why.answer, why.score) == (best.text, best.score)
    assert len(why.regions) == len(vqa.regions(files[0]).features)
    assert [word.text for word in why.words] == ["what", "is", "red"]
    for name in ("why.png", "why.svg", "why.json"):
        assert why.save(tmp_path / name).stat().st_size > 100
    one, other = vqa.explain(files[0], ["what is red?", "is it red?"], method="attention", layer=0)
    assert one.method == "attention"
    assert (len(one.words), len(other.words)) == (3, 3)
    with refused("rolout", "rollout"):
        vqa.explain(files[0], "what?", method="rolout")
    with refused("list", "one method"):
        vqa.explain(files[0], "what?", method=["attention"])
    with refused("text", "answer"):
        vqa.explain(files[0])
    pretrained = VisualBert.load(exports["mlm_itm"], device="cpu")
    assert pretrained.explain(files[0], "it is red").answer in ("match", "no match")
    word = pretrained.explain(files[0], "it is [MASK]", method="attention")
    assert word.answer == pretrained.fill(files[0], "it is [MASK]")[0][0].text


def test_what_it_was_not_trained_for_is_said(exports: dict[str, Path], vqa: VisualBert, files: list[Path]) -> None:
    with refused("caption", "vqa", "answer"):
        vqa.caption(files[0])
    with refused("match", "vqa", "answer"):
        vqa.match(files[0], "x")
    with refused("true", "vqa", "answer"):
        vqa.true(files[0], files[0], "x")
    assert vqa.can == ("answer", "explain", "encode", "regions")
    with pytest.raises(AttributeError, match="answer"):
        vqa.anser  # noqa: B018
    entailment = VisualBert.load(exports["classification"], device="cpu")
    entailment.head["labels"] = ["contradiction", "entailment", "neutral"]
    assert "sentiment" not in entailment.can
    with refused("contradiction", "classify"):
        entailment.sentiment(files[0], "x")


def test_heads_that_a_checkpoint_lacks_are_not_asked() -> None:
    head = {"kind": "pretraining", "objective": "mlm_itm"}
    for untrained, left in (
        ([], {"match", "fill"}),
        (["matching"], {"fill"}),
        (["masked_language", "matching"], set()),
    ):
        assert {"match", "fill"} & set(able({**head, "untrained": untrained})) == left


def test_names_of_the_literature_are_answered_by_ours(vqa: VisualBert, files: list[Path]) -> None:
    with refused("pixel_values", "regions"):
        vqa.answer(pixel_values=files[0], question="what?")
    with refused("visual_embeds", "regions"):
        vqa.encode(files[0], "what?", visual_embeds=None)
    with refused("questoin", "'question'"):
        vqa.answer(files[0], questoin="what?")
    with pytest.raises(AttributeError, match="encoder"):
        vbert.VisualBertTokenizer  # noqa: B018
    with pytest.raises(AttributeError, match=r"VisualBert\.load"):
        vbert.VisualBertForQuestionAnswering  # noqa: B018
    for name in ("uclanlp/visualbert-base-uncased", "uclanlp/visualbert-vqa"):
        with refused(name, "uclanlp_visualbert_vqa"):
            vbert.VisualBert.load(name)


@pytest.mark.parametrize(
    ("image", "names"),
    [
        ("nothere.jpg", ("nothere.jpg", "No such file")),
        (b"", ("empty",)),
        (b"GIF89a", ("the image",)),
        (7, ("int",)),
        (np.zeros((4, 4, 3)), ("float64", "uint8")),
        (np.zeros((4, 4, 4), np.uint8), ("[4, 4, 4]",)),
        (np.zeros((0, 4, 3), np.uint8), ("[0, 4, 3]",)),
        (None, ("NoneType",)),
    ],
)
def test_what_is_no_image_is_refused(vqa: VisualBert, image: Any, names: tuple[str, ...]) -> None:
    with refused(*names):
        vqa.answer(image, "what?")


def test_questions_that_are_none_are_refused(vqa: VisualBert, files: list[Path]) -> None:
    for question, names in (("", ("question", "empty")), ("  ", ("empty",)), (None, ("NoneType",)), (7, ("int",))):
        with refused(*names):
            vqa.answer(files[0], question)
    with refused("2 images", "3 question"):
        vqa.answer(files[:2], QUESTIONS[:3])
    assert vqa.answer([], []) == []
    assert vqa.answer(None, [], regions=[]) == []
    for images, regions in (([], None), (None, [])):
        with refused("empty list", "question"):
            vqa.answer(images, "what?", regions=regions)


def test_texts_too_long_for_a_table_are_refused(vqa: VisualBert, exports: dict[str, Path], files: list[Path]) -> None:
    assert vqa.answer(files[0], "red " * 2500) == vqa.answer(files[0], "red " * 2000), "cut at max_text"
    with refused("question", "10,000"):
        vqa.answer(files[0], "red " * 2500 + "?")
    choosing = VisualBert.load(exports["choice"], device="cpu")
    for ask in (choosing.choose, lambda *given: choosing.explain(*given[:2], choices=given[2])):
        with refused("choices", "10,000"):
            ask(files[0], "what?", ["a", "red " * 2500])


def test_a_cut_picture_that_pillow_opened_is_named(vqa: VisualBert, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1000])
    with refused("cut.jpg", "damaged: a picture that ends in the middle of its pixels"):
        vqa.regions(Image.open(tmp_path / "cut.jpg"))


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, exports: dict[str, Path]) -> None:
    with refused("nothere", "vbert export"):
        VisualBert.load(tmp_path / "nothere")
    with refused("head.json"):
        VisualBert.load(tmp_path)
    damaged = shutil.copytree(exports["vqa"], tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with refused("model.safetensors"):
        VisualBert.load(damaged)


def test_without_its_detector_it_says_so(exports: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    bare = shutil.copytree(exports["vqa"], tmp_path / "bare", ignore=shutil.ignore_patterns("detector", "export.json"))
    model = VisualBert.load(bare, device="cpu")
    with refused("small", "regions="):
        model.answer(files[0], "what?")
    whole = VisualBert.load(exports["vqa"], device="cpu")
    assert model.answer(None, "what?", regions=whole.regions(files[0])) == whole.answer(files[0], "what?")


def test_a_control_is_refused(tmp_path: Path, detector: DetectorWeights) -> None:
    folder = make_export(tmp_path, "vqa", detector, images="shuffled")
    with refused("control", "shuffled"):
        VisualBert.load(folder)


def test_an_artifact_knows_its_detector(finished_store: Path, files: list[Path]) -> None:
    """Of fine-tuning and of pre-training, by the paths in a store."""
    asked: dict[str, Callable[[VisualBert], Any]] = {
        "finetune": lambda model: model.answer(files[0], "what?"),
        "pretrain": lambda model: model.match(files[0], "a circle"),
    }
    for stage, ask in asked.items():
        (path,) = (finished_store / "artifacts" / stage).iterdir()
        model = VisualBert.load(path, device="cpu")
        assert model.detector is not None
        assert stage in model.title
        assert ask(model)


def test_importing_costs_no_torch() -> None:
    code = "import sys, vbert; vbert.VisualBert; print([m for m in ('torch', 'pandas', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
