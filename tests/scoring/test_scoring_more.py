"""`vbert score` of captions, retrieval, phrases and expressions: figures by hand, and what is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import official_ranked, score_world
from scoring.official_inputs import digest

from vbert.metrics import captions as caption_metrics

OFFICIAL = json.loads((Path(__file__).parent / "official_ranked.json").read_text())
CAPTIONS = "captioning --annotations captions.json --predictions captions_results.json"
RETRIEVAL = "retrieval --annotations captions.json --predictions scores.npz"
RANKINGS = "retrieval --annotations captions.json --predictions rankings.jsonl"
PHRASES = "grounding --annotations flickr30k_entities --split test.txt --predictions phrases.json"
EXPRESSIONS = 'refcoco --annotations instances.json --refs "refs(unc).p" --split testA --predictions expressions.json'


@pytest.fixture
def world(vbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the small files; without Java, which would take seconds."""
    monkeypatch.setattr(caption_metrics, "java", lambda: None)
    score_world.write(tmp_path)
    return tmp_path


@pytest.fixture
def score(vbert: Any, world: Path) -> Callable[[str], Any]:
    def call(line: str) -> Any:
        code, out, said = vbert("score", *shlex.split(line), "--json")
        assert code == 0, said
        return json.loads(out.splitlines()[-1])

    return call


@pytest.fixture
def refused(vbert: Any, world: Path) -> Callable[[str, int], str]:
    def call(line: str, expected: int = 2) -> str:
        code, out, said = vbert("score", *shlex.split(line))
        assert (code, out) == (expected, ""), said
        return str(said)

    return call


def test_figures_are_those_of_the_official_evaluators(world: Path, score: Callable[[str], Any]) -> None:
    official_ranked.write(world / "official")
    assert digest(world / "official") == OFFICIAL["inputs"]
    for protocol, expected in OFFICIAL["grounding"].items():
        line = "grounding --annotations official/grounding --predictions official/grounding/p.json"
        found = score(f"{line} --protocol {protocol}")
        assert found["per_type"] == {kind: pytest.approx(its) for kind, its in expected["per_type"].items()}
        assert {name: found[name] for name in ("r1", "r5", "r10", "upper_bound")} == pytest.approx(
            {name: value for name, value in expected.items() if name != "per_type"}
        )
    for folds, name in ((1, "retrieval"), (5, "folds")):
        line = "retrieval --annotations official/retrieval/captions.json --predictions official/retrieval/scores.npz"
        found = score(f"{line} --folds {folds}")
        for side, expected in OFFICIAL[name].items():
            shares = {key: value if key == "median" else value / 100 for key, value in expected.items()}
            assert found[side] == pytest.approx(shares)
        assert found["tied"] == 0
    files = "--annotations official/refcoco/instances.json --refs 'official/refcoco/refs(unc).p'"
    found = score(f"refcoco {files} --split testA --predictions official/refcoco/p.json")
    assert found["accuracy"] == pytest.approx(OFFICIAL["refcoco"])


def test_captions(score: Callable[[str], Any]) -> None:
    found = score(CAPTIONS)
    figures = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "tokenizer", "absent"]
    assert list(found) == [*figures, "scored", "of", "missing"]
    assert found["tokenizer"] == "vbert"
    assert set(found["absent"]) == {"METEOR", "SPICE"}
    assert found["Bleu_1"] == pytest.approx(np.exp(1 - 11 / 10) * 8 / 10)  # the closest lengths are 5, 3 and 3
    assert found["of"] == found["scored"] == 3


def test_retrieval_of_a_matrix(score: Callable[[str], Any]) -> None:
    found = score(RETRIEVAL)
    assert list(found) == ["text_to_image", "image_to_text", "rsum", "candidates", "tied", "scored", "of", "missing"]
    # texts 1, 2 and 4 find their image first, 3 and 5 second; images 10 and 20 have two texts and one above, 30 its own
    assert found["text_to_image"] == {"r1": 3 / 5, "r5": 1, "r10": 1, "median": 1}
    assert found["image_to_text"] == {"r1": pytest.approx(1 / 3), "r5": 1, "r10": 1, "median": 2}
    assert found["rsum"] == pytest.approx(60 + 400 + 100 / 3)
    assert found["tied"] == 1  # image 20: text 5 is level with its own 3
    assert found["candidates"] == {"text_to_image": 3, "image_to_text": 5}
    assert found["of"] == 8


def test_folds_are_cut_from_one_file_or_are_files(world: Path, score: Callable[[str], Any]) -> None:
    score_world.four_images(world)
    found = score(f"{RETRIEVAL} --folds 2")
    stored = np.load("scores.npz")
    for name, rows in (("a", [0, 1]), ("b", [2, 3])):
        ids = {"image_ids": stored["image_ids"][rows], "text_ids": stored["text_ids"][rows]}
        np.savez(f"{name}.npz", scores=stored["scores"][np.ix_(rows, rows)], **ids)
    files = score("retrieval --annotations captions.json --predictions b.npz a.npz")
    assert files == found
    assert files["image_to_text"]["r1"] == files["text_to_image"]["r1"] == pytest.approx((1 + 1 / 2) / 2)
    assert files["candidates"] == {"text_to_image": 2, "image_to_text": 2}
    assert files["of"] == 8


def test_fewer_candidates_are_told_and_one_image_alone_is_no_search(
    world: Path, vbert: Any, refused: Callable[..., str]
) -> None:
    score_world.four_images(world)
    code, _, said = vbert("score", *RETRIEVAL.split(), "--folds", "2")
    assert code == 0
    assert "text_to_image: each text was ranked among 2 of the 4 images" in said
    assert "image_to_text: each image was ranked among 2 of the 4 texts" in said
    np.savez("scores.npz", scores=np.ones((3, 4)), image_ids=[10, 20, 30], text_ids=[1, 2, 3, 4])
    code, _, said = vbert("score", *RETRIEVAL.split(), "--missing", "skip")
    assert "each image was ranked among 3 of the 4 texts" in said  # a text without its image is no candidate
    np.savez("scores.npz", scores=np.ones((1, 4)), image_ids=[10], text_ids=[1, 2, 3, 4])
    assert "scores.npz: each text would be ranked among 1 image" in refused(f"{RETRIEVAL} --missing skip", 2)


def test_rankings_of_all_are_not_split_over_files(world: Path, score: Any, refused: Callable[..., str]) -> None:
    """Within the images of its own file each would be easier."""
    score_world.four_images(world)
    lines = [{"text_id": n, "images": [30, 40, 10, 20] if n < 3 else [10, 20, 10 * n]} for n in (1, 2, 3, 4)]
    score_world.as_lines(world / "a.jsonl", lines[:2])
    score_world.as_lines(world / "b.jsonl", [{"text_id": n, "images": [40, 30]} for n in (3, 4)])
    line = "retrieval --annotations captions.json --predictions b.jsonl a.jsonl"
    said = refused(line, 1)
    assert "a.jsonl:1: images: 2 ids outside the fold of this file, whose lines ask about 2 images: 30, 40;" in said
    assert "give rankings of all in one file" in said
    score_world.as_lines(world / "a.jsonl", [{"text_id": n, "images": [10, 20]} for n in (1, 2)])
    assert score(line)["text_to_image"]["r1"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64, np.uint8, np.float16])
def test_scores_of_any_type_are_compared_as_they_are(kind: type, world: Path, score: Callable[[str], Any]) -> None:
    """The truth is last of all; so it is below zero, where there is such."""
    stored, owners = np.load("scores.npz"), [0, 0, 1, 1, 2]
    scores = np.full((3, 5), 7 if kind == np.uint8 else -7)
    scores[owners, range(5)] -= 5
    np.savez("scores.npz", **{**stored, "scores": scores.astype(kind)})
    found = score(RETRIEVAL)
    assert found["image_to_text"]["r1"] == found["text_to_image"]["r1"] == 0


def test_rankings_and_their_order_in_the_file(world: Path, vbert: Any, score: Callable[[str], Any]) -> None:
    found = score(RANKINGS)
    assert found["text_to_image"] == {"r1": 2 / 5, "r5": 1, "r10": 1, "median": 2}
    assert found["image_to_text"] == {"r1": pytest.approx(1 / 3), "r5": 1, "r10": 1, "median": 2}
    assert "tied" not in found
    truncated = [{"text_id": n, "images": [10, 20]} for n in (1, 2, 3, 4, 5)]
    score_world.as_lines(world / "rankings.jsonl", truncated)
    code, out, said = vbert("score", *RANKINGS.split(), "--json")
    assert (code, json.loads(out)["text_to_image"]) == (0, {"r1": 2 / 5})
    assert "text_to_image: median is absent: in 1 ranking the right one is behind the end" in said
    assert "r5 is absent: in a ranking of 2" in said
    assert "image_to_text is absent" in said


@pytest.mark.parametrize(
    ("protocol", "figures"),
    [
        ("any", {"r1": 1 / 4, "r5": 2 / 4, "r10": 2 / 4, "upper_bound": 2 / 4}),
        ("merged", {"r1": 1 / 4, "r5": 2 / 4, "r10": 2 / 4, "upper_bound": 2 / 4}),
    ],
)
def test_phrases(protocol: str, figures: dict[str, float], score: Callable[[str], Any]) -> None:
    found = score(f"{PHRASES} --protocol {protocol}")
    assert list(found) == [*figures, "per_type", "phrases", "scored", "of", "missing"]
    assert {name: found[name] for name in figures} == figures
    assert found["phrases"] == 4
    assert found["of"] == 2  # sentences; the third has no phrase with a box
    assert found["per_type"]["people"] == dict.fromkeys(figures, 1 / 2)
    assert found["per_type"]["clothing"] == {"r1": 0, "r5": 1, "r10": 1, "upper_bound": 1}  # a ball is of both types
    assert found["per_type"]["other"]["r5"] == 1 / 2


def test_expressions(score: Callable[[str], Any]) -> None:
    assert score(EXPRESSIONS)["accuracy"] == pytest.approx(1 / 3)  # half is not more than half
    assert score(f"{EXPRESSIONS} --iou exact")["accuracy"] == pytest.approx(2 / 3)


def test_ids_of_expressions_may_be_text(world: Path, score: Callable[[str], Any]) -> None:
    swap('"sent_id": 11', '"sent_id": "11"')(world / "expressions.json")
    swap('"id": 1', '"id": "1"')(world / "instances.json")
    assert score(EXPRESSIONS)["accuracy"] == pytest.approx(1 / 3)


def test_true_boxes_that_readers_leave_out_or_cut_are_counted(world: Path, vbert: Any) -> None:
    """The figures are the published evaluator's, which takes them as they are."""
    file = world / "flickr30k_entities" / "Annotations" / "7.xml"
    swap("<xmax>30</xmax>", "<xmax>10</xmax>")(file)
    swap("<xmax>60</xmax>", "<xmax>102</xmax>")(file)
    code, out, said = vbert("score", *PHRASES.split(), "--json")
    assert (code, json.loads(out)["per_type"]["clothing"]["r5"]) == (0, 0)
    assert "Annotations: 1 box without area, which none is right of, as in 7.xml" in said
    assert "Annotations: 1 box beyond the stated size, taken as the file has it, as in 7.xml" in said


def swap(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def arrays(**changed: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        stored = dict(np.load(path))
        np.savez(path, allow_pickle=True, **{**stored, **changed})

    return edit


NAN = np.full((3, 5), np.nan)


@pytest.mark.parametrize(
    ("line", "file", "edit", "code", "said"),
    [
        (CAPTIONS, "captions_results.json", swap("20", "10"), 1, "1 doubled, 1 missing"),
        (CAPTIONS, "captions_results.json", swap("20", "21"), 1, "1 unknown, 1 missing"),
        (
            CAPTIONS,
            "captions_results.json",
            swap('"two dogs"', "7"),
            2,
            "captions_results.json:8: [1]: caption: must be",
        ),
        (CAPTIONS, "captions.json", swap('"id": 2', '"id": 1'), 1, "captions.json: doubled: 1"),
        (CAPTIONS, "captions.json", swap('"image_id": 10', '"image_id": 11'), 1, "image 11, which `images`"),
        (RETRIEVAL, "scores.npz", arrays(text_ids=[1, 2, 3, 4, 9]), 1, "text_ids: 1 unknown id: 9"),
        (RETRIEVAL, "scores.npz", arrays(text_ids=[1, 2, 3, 4, 4]), 1, "doubled: 4"),
        (RETRIEVAL, "scores.npz", arrays(image_ids=[1.0, 2.0, 3.0]), 2, "image_ids: must be a list of whole numbers"),
        (RETRIEVAL, "scores.npz", arrays(scores=np.zeros((3, 4))), 2, "must be [images, texts], (3, 5) by the ids"),
        (RETRIEVAL, "scores.npz", arrays(scores=NAN), 2, "row 0, column 0 is NaN; 15 of them"),
        (RETRIEVAL, "scores.npz", arrays(text_ids=np.array([1, "a", 2, 3, {}], object)), 2, "holds a pickle"),
        (RETRIEVAL, "scores.npz", lambda path: path.write_bytes(path.read_bytes()[:300]), 2, "no whole .npz"),
        (RETRIEVAL, "scores.npz", lambda path: path.write_text("1,2"), 2, "scores.npz"),
        (f"{RETRIEVAL} --folds 4", "scores.npz", lambda path: None, 2, "--folds: must be 1, so that each of the 3"),
        (f"{RETRIEVAL} --folds 0", "scores.npz", lambda path: None, 2, "--folds: must be 1, so that"),
        (f"{RETRIEVAL} scores.npz --folds 2", "scores.npz", lambda path: None, 2, "several files are folds"),
        (RANKINGS, "rankings.jsonl", swap("[10, 20, 30]", "[10, 99, 30]"), 1, ":1: images: 1 unknown id: 99"),
        (RANKINGS, "rankings.jsonl", swap("[5, 4, 3", "[5, 5, 3"), 1, "5 stands in it twice"),
        (RANKINGS, "rankings.jsonl", swap('"text_id": 2', '"text_id": 1'), 1, "doubled: 1"),
        (RANKINGS, "rankings.jsonl", swap('"text_id"', '"text"'), 2, "rankings.jsonl:1: there is no field 'text'"),
        (PHRASES, "phrases.json", swap('"sentence_id": 1', '"sentence_id": 0'), 1, "1 doubled, 1 missing"),
        (PHRASES, "phrases.json", swap('"image_id": 7', '"image_id": 8'), 1, "1 unknown, 1 missing"),
        (
            PHRASES,
            "flickr30k_entities/test.txt",
            lambda path: path.write_text("../7\n"),
            2,
            "must be the number of a photo",
        ),
        (PHRASES, "flickr30k_entities/test.txt", lambda path: path.write_text("8\n"), 2, "there is no such file"),
        (EXPRESSIONS, "expressions.json", swap('"sent_id": 12', '"sent_id": 14'), 1, "1 unknown, 1 missing"),
        (EXPRESSIONS, "instances.json", swap('"id": 2', '"id": 1'), 1, "instances.json: doubled: 1"),
        (EXPRESSIONS, "expressions.json", swap("20,\n   18", "20"), 2, "pred_box: must have at least 4 items, not 3"),
        (EXPRESSIONS.replace('"refs(unc).p"', "instances.json"), "dev.json", lambda path: None, 2, "but is JSON"),
        (EXPRESSIONS.replace("testA", "testB"), "expressions.json", lambda path: None, 2, "no split 'testB'"),
        (EXPRESSIONS, "instances.json", swap('"id": 2', '"id": 5'), 1, "lacks 1 annotation"),
        (EXPRESSIONS, "refs(unc).p", lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."), 2, "not read"),
    ],
)
def test_what_is_refused(
    line: str, file: str, edit: Any, code: int, said: str, world: Path, refused: Callable[[str, int], str]
) -> None:
    edit(world / file)
    assert said in refused(line, code)


def test_a_number_of_box_lists_other_than_the_phrases(world: Path, refused: Callable[[str, int], str]) -> None:
    rows = json.loads((world / "phrases.json").read_text())
    rows[1]["boxes"].append([])
    score_world.as_json(world / "phrases.json", rows)
    assert "[1]: boxes: 3 lists of boxes for the 2 phrases of sentence 7/1" in refused(PHRASES, 2)


def test_missing_predictions_are_wrong_or_left_out(world: Path, score: Callable[[str], Any]) -> None:
    score_world.as_json(world / "phrases.json", json.loads((world / "phrases.json").read_text())[:1])
    wrong, skipped = score(f"{PHRASES} --missing wrong"), score(f"{PHRASES} --missing skip")
    assert (wrong["upper_bound"], skipped["upper_bound"]) == (2 / 4, 1)
    score_world.as_json(world / "captions_results.json", [{"image_id": 10, "caption": "A cat on a mat."}])
    assert score(f"{CAPTIONS} --missing skip")["Bleu_4"] == pytest.approx(1)
    assert score(f"{CAPTIONS} --missing wrong")["Bleu_4"] < 0.5
    stored = np.load("scores.npz")
    np.savez("scores.npz", scores=stored["scores"][:, :4], image_ids=[10, 20, 30], text_ids=[1, 2, 3, 4])
    assert score(f"{RETRIEVAL} --missing skip")["text_to_image"]["r1"] == 3 / 4
    wrong = score(f"{RETRIEVAL} --missing wrong")
    assert wrong["text_to_image"] == {
        "r1": pytest.approx(3 / 5),
        "r5": pytest.approx(4 / 5),
        "r10": pytest.approx(4 / 5),
    }
    assert wrong["missing"] == 2  # a text, and the image that has no other
