"""Readers of questions: VQA v2's files, VQA-RAD's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.own_world import png
from data.text_world import SHARED, rows_of, spec_of

from vbert.errors import BuildError, UserError


def people(*answers: str, question_id: int, **more: Any) -> dict[str, Any]:
    given = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(answers, 1)]
    return {"question_id": question_id, "image_id": question_id // 1000, "answers": given, **more}


Written = Callable[..., Path]


@pytest.fixture
def vqa(tmp_path: Path) -> Written:
    def written(
        questions: dict[str, Any], annotations: dict[str, Any], photos: str = "COCO_{}2014_{:012d}.png"
    ) -> Path:
        folder = tmp_path / "vqa"
        folder.mkdir(exist_ok=True)
        for word, rows in questions.items():
            name = f"v2_OpenEnded_mscoco_{word}2014_questions.json"
            (folder / name).write_text(json.dumps({"info": {}, "data_subtype": word, "questions": rows}))
            for row in rows:
                split = word.partition("-")[0]
                (folder / photos.format(split, row["image_id"])).write_bytes(png(row["image_id"]))
        for word, rows in annotations.items():
            name = f"v2_mscoco_{word}2014_annotations.json"
            (folder / name).write_text(json.dumps({"info": {}, "annotations": rows}))
        return folder

    return written


def ask(question_id: int, text: str = "Is it?") -> dict[str, Any]:
    return {"image_id": question_id // 1000, "question": text, "question_id": question_id}


TEN = ["Two", "two.", "2", "a 2"] + ["the"] * 2 + ["three", "none", "0", "four cats"]


def test_two_official_splits_may_be_one(vqa: Written, tmp_path: Path) -> None:
    """`merged` comes before `validation`: held-out photos may be of both."""
    ids = {"train": range(1000, 61000, 1000), "val": range(61000, 121000, 1000)}
    questions = {word: [ask(number) for number in numbers] for word, numbers in ids.items()}
    annotations = {
        word: [people(*["yes"] * 10, question_id=row["question_id"]) for row in rows]
        for word, rows in questions.items()
    }
    merged = {"merged": {"val": "train"}, "validation": {"of": "train", "share": 0.1}}
    rows, figures, photos = rows_of(spec_of("vqa_v2", vqa(questions, annotations), **merged), tmp_path / "store")
    held_out = {int(row["example_id"]) for row in rows if row["split"] == "val"}
    assert held_out & set(ids["train"])
    assert held_out & set(ids["val"])
    assert (
        (figures["train"], figures["val"]) == (photos["train"], photos["val"]) == (120 - len(held_out), len(held_out))
    )


def test_answers_of_ten_people_are_kept_and_normalised(vqa: Written, tmp_path: Path) -> None:
    """Raw ones in `given`, in order; normalised ones score min(0.3 n, 1); none is empty."""
    questions = {"train": [ask(1000), ask(1001)], "test": [ask(2000), ask(2001)], "test-dev": [ask(2001)]}
    annotations = [people(*TEN, question_id=1000, question_type="is it ", answer_type="yes/no")]
    annotations += [people(*["yes"] * 10, question_id=1001)]
    rows, figures, _ = rows_of(spec_of("vqa_v2", vqa(questions, {"train": annotations})), tmp_path / "store")
    first, second, third, fourth = rows
    assert first["given"] == TEN
    expected = {"2": 1.0, "3": 0.3, "0": 0.6, "4 cats": 0.3}
    assert {a["answer"]: pytest.approx(a["score"]) for a in first["answers"]} == expected
    assert (first["example_id"], first["image_ids"], first["split"]) == ("1000", ["1"], "train")
    assert (first["question_type"], first["answer_type"]) == ("is it", "yes/no")
    assert second["answers"] == [{"answer": "yes", "score": 1.0}]
    assert [row["part"] for row in rows] == [None, None, None, "test-dev"]
    assert third["answers"] is fourth["answers"] is fourth["given"] is None
    counted = {name: figures[name] for name in ("train", "test", "empty_answers", "stray_blanks", "unlabelled")}
    assert counted == {"train": 2, "test": 2, "empty_answers": 2, "stray_blanks": 1, "unlabelled": 2}
    assert any(note.startswith("2 answers that normalise to nothing") for note in figures["notes"])


@pytest.mark.parametrize(
    ("questions", "annotations", "said"),
    [
        ({"train": [ask(1000), ask(1001)]}, {"train": [people("a", question_id=1000)]}, "question 1001 has no annot"),
        (
            {"train": [ask(1000)]},
            {"train": [people("x", question_id=n) for n in (1000, 9)]},
            "1 annotation of questions",
        ),
        (
            {"train": [ask(1000)]},
            {"train": [people("x", question_id=1000)] * 2},
            "a second annotation of question 1000",
        ),
        ({"train": [ask(1000)]}, {"train": [people(question_id=1000)]}, r"annotations\[0\]: answers: there is none"),
        (
            {"train": [ask(1000)]},
            {"train": [people(question_id=1000) | {"answers": [{"answer": "x"}] * 2}]},
            r"annotations\[0\]: answers\[0\]: answer_id: is missing \(question 1000\); number the answers of",
        ),
        (
            {"train": [ask(1000)]},
            {"train": [people(question_id=1000) | {"answers": [{"answer": "x", "answer_id": 3}] * 2}]},
            r"answers\[1\]: answer_id: 3 occurs twice \(question 1000\); number",
        ),
        ({"train": [ask(1000)], "train2": [ask(7)]}, {}, "no source holds the photo"),
        ({"other": [ask(1000)]}, {}, r"hold no …train2014_questions\.json and the like"),
    ],
)
def test_files_that_do_not_fit_each_other(
    questions: dict[str, Any], annotations: dict[str, Any], said: str, vqa: Written, tmp_path: Path
) -> None:
    folder = vqa(questions, annotations)
    (folder / "COCO_train22014_000000000000.png").unlink(missing_ok=True)
    with pytest.raises((UserError, BuildError), match=said):
        rows_of(spec_of("vqa_v2", folder), tmp_path / "store")


def test_a_single_answer_is_right(vqa: Written, tmp_path: Path) -> None:
    """By VQA's rule it would score 0, and nothing could be learnt."""
    folder = vqa({"train": [ask(1000)]}, {"train": [people("Yes.", question_id=1000)]})
    rows, figures, _ = rows_of(spec_of("vqa_v2", folder), tmp_path / "store")
    assert rows[0]["answers"] == [{"answer": "yes", "score": 1.0}]
    assert "given" not in rows[0], "null in all rows"
    assert figures["single_answers"] == 1
    assert any(note.startswith("1 question with a single answer, which scores 1") for note in figures["notes"])


def test_files_are_named_for_splits(vqa: Written, tmp_path: Path) -> None:
    """As OK-VQA, whose val2014 is its test split."""
    folder = vqa({"train": [ask(1000)], "val": [ask(2000)]}, {"val": [people("x", question_id=2000)]})
    names = [f"v2_OpenEnded_mscoco_{word}2014_questions.json" for word in ("train", "val")]
    rows, _, _ = rows_of(spec_of("vqa_v2", folder, {"splits": {"test": names}}), tmp_path / "store")
    assert [row["split"] for row in rows] == ["test", "test"]
    with pytest.raises(UserError, match=r"options\.splits\.test: no file ends in 'val2014\.json'"):
        rows_of(spec_of("vqa_v2", folder, {"splits": {"test": "val2014.json"}}), tmp_path / "store")
    with pytest.raises(UserError, match="is there twice, or named for two splits"):
        rows_of(spec_of("vqa_v2", folder, {"splits": {"test": names, "val": names[0]}}), tmp_path / "store")


@pytest.mark.skipif(not (SHARED / "vqa_v2").exists(), reason="no VQA v2 miniature beside the checkout")
def test_a_miniature_of_vqa_v2(tmp_path: Path) -> None:
    options = {"splits": {"train": "questions.json"}}
    rows, figures, _ = rows_of(spec_of("vqa_v2", SHARED / "vqa_v2", options), tmp_path / "store")
    assert [row["example_id"] for row in rows] == ["458752000", "458752001", "458752002"]
    assert rows[0]["given"].count("net") == 6
    assert rows[0]["answers"][0] == {"answer": "net", "score": 1.0}
    assert figures["train"] == 3


RADIOLOGY: list[dict[str, Any]] = [
    {"qid": 1, "image_name": "a.png", "question": "Where?", "answer": 4, "answer_type": "OPEN", "phrase_type": "para"},
    {"qid": 2, "image_name": "b.png ", "question": "Any?", "answer": "Yes", "answer_type": "CLOSED "},
    {"qid": 3, "image_name": "a.png", "question": "where? ", "answer": "The", "answer_type": "OPEN"},
]


def radiology(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
        for row in rows:
            name = row["image_name"].strip()
            (folder / name).write_bytes(png(ord(name[0])))
    return folder


def test_radiology_in_both_forms_and_splits(tmp_path: Path) -> None:
    test = [RADIOLOGY[0] | {"qid": 9, "question": "How?"}]
    folder = radiology(tmp_path / "two", trainset=RADIOLOGY, testset=test)
    rows, figures, _ = rows_of(spec_of("vqa_rad", folder), tmp_path / "store")
    assert [(row["example_id"], row["split"], row["image_ids"]) for row in rows] == [
        ("1", "train", ["a.png"]), ("2", "train", ["b.png"]), ("3", "train", ["a.png"]), ("9", "test", ["a.png"])
    ]  # fmt: skip
    assert [row["answers"] for row in rows[:3]] == [
        [{"answer": "4", "score": 1.0}], [{"answer": "yes", "score": 1.0}], []
    ]  # fmt: skip
    assert rows[1]["answer_type"] == "CLOSED"
    odd = {name: figures.get(name) for name in ("stray_blanks", "empty_answers", "duplicate_questions")}
    assert odd == {"stray_blanks": 1, "empty_answers": 1, "duplicate_questions": 1}
    by_image = spec_of("vqa_rad", folder, {"split": "image", "test": 0.5}, validation={"of": "train", "share": 0.2})
    rows, _, _ = rows_of(by_image, tmp_path / "store")
    of = {
        row["image_ids"][0]: {other["split"] for other in rows if other["image_ids"] == row["image_ids"]}
        for row in rows
    }
    assert all(len(splits) == 1 for splits in of.values())

    framed = [row | {"question_frame": "Where is it?", "phrase_type": "freeform"} for row in RADIOLOGY[:1]]
    framed += [row | {"question_frame": "NULL", "phrase_type": "test_para"} for row in RADIOLOGY[1:2]]
    whole = radiology(tmp_path / "one", **{"VQA_RAD Dataset Public": framed})
    rows, _, _ = rows_of(spec_of("vqa_rad", whole), tmp_path / "store")
    assert [(row["example_id"], row["split"], row["text"]) for row in rows] == [
        ("1", "train", "Where?"), ("1/frame", "train", "Where is it?"), ("2", "test", "Any?")
    ]  # fmt: skip


@pytest.mark.skipif(not (SHARED / "vqa_rad").exists(), reason="no VQA-RAD miniature beside the checkout")
def test_a_miniature_of_vqa_rad(tmp_path: Path) -> None:
    options = {"split": "image"}
    hold_out = {"of": "train", "share": 0.1}
    spec = spec_of("vqa_rad", SHARED / "vqa_rad", options, validation=hold_out)
    rows, figures, _ = rows_of(spec, tmp_path / "store")
    splits = Counter(row["split"] for row in rows)
    assert splits == {split: figures[split] for split in ("train", "val", "test")}
    assert sum(splits.values()) == 3064
    assert figures["stray_blanks"] == 2
    assert {row["answer_type"] for row in rows} == {"OPEN", "CLOSED"}
    assert figures["duplicate_questions"] > 400


AOKVQA: dict[str, Any] = {
    "image_id": 7,
    "question_id": "22Mba",
    "question": "What is it for?",
    "choices": ["race", "work", "fun", "war"],
    "correct_choice_idx": 0,
    "direct_answers": ["race", "race", "Race", "racing"] + ["the race"] * 6,
    "difficult_direct_answer": False,
}


def written(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_questions_with_direct_answers_and_choices(tmp_path: Path) -> None:
    """Direct answers are not normalised, and score n / 3; difficult ones don't count."""
    hidden = {"correct_choice_idx", "direct_answers"}
    test = {field: value for field, value in AOKVQA.items() if field not in hidden} | {"question_id": "t"}
    difficult = AOKVQA | {"question_id": "d", "difficult_direct_answer": True}
    folder = written(tmp_path / "a", aokvqa_v1p0_val=[AOKVQA, difficult], aokvqa_v1p0_test=[test])
    (folder / "7.png").write_bytes(png(7))
    images = {"reader": "folder", "sources": ["files"]}
    rows, figures, _ = rows_of(spec_of("aokvqa", folder, images=images), tmp_path / "store")
    by_id = {row["example_id"]: row for row in rows}
    assert list(by_id) == ["22Mba", "22Mba/choice", "d", "d/choice", "t", "t/choice"]
    direct, choice = by_id["22Mba"], by_id["22Mba/choice"]
    assert direct["given"] == AOKVQA["direct_answers"]
    assert {a["answer"]: a["score"] for a in direct["answers"]} == pytest.approx(
        {"race": 2 / 3, "Race": 1 / 3, "racing": 1 / 3, "the race": 1.0}
    )
    assert [c["text"] for c in choice["choices"]] == AOKVQA["choices"]
    assert (choice["kind"], choice["label"], by_id["t/choice"]["label"]) == ("choice", "0", None)
    assert by_id["d"]["answers"] is by_id["d"]["given"] is by_id["t"]["answers"] is None
    assert (figures["difficult_answers"], figures["unlabelled"]) == (1, 1)
    one = spec_of("aokvqa", folder, {"forms": ["choice"]}, images=images)
    assert {row["kind"] for row in rows_of(one, tmp_path / "store")[0]} == {"choice"}
    written(folder, aokvqa_v1p0_val=[AOKVQA | {"correct_choice_idx": 4}])
    with pytest.raises(UserError, match=r"val\.json\[0\]: correct_choice_idx: must be from 0 to 3, not 4"):
        rows_of(spec_of("aokvqa", folder, images=images), tmp_path / "store")


def test_questions_of_scene_graphs(tmp_path: Path) -> None:
    row = {
        "question": "Is it?",
        "imageId": "n1",
        "answer": "no",
        "types": {"structural": "verify", "semantic": "attr "},
    }
    test = {"question": "Who?", "imageId": "n2", "isBalanced": True}
    files = {"train_balanced_questions": {"07": row}, "testdev_balanced_questions": {"08": test}}
    folder = written(tmp_path / "gqa", **files, train_all_questions={"09": row})
    for name in ("n1", "n2"):
        (folder / f"{name}.jpg").write_bytes(png(len(name)))
    rows, figures, images = rows_of(spec_of("gqa", folder), tmp_path / "store")
    assert rows[0] == {
        "example_id": "07",
        "kind": "question",
        "image_ids": ["n1"],
        "split": "train",
        "text": "Is it?",
        "answers": [{"answer": "no", "score": 1.0}],
        "question_type": "verify",
        "answer_type": "attr",
    }
    assert (rows[1]["split"], rows[1]["answers"], figures["unlabelled"]) == ("test", None, 1)
    assert (images["train"], images["test"]) == (1, 1)
    written(folder, val_balanced_questions={"10": row})
    with pytest.raises(UserError, match=r"10: photo n1 is in val and in train; part them"):
        rows_of(spec_of("gqa", folder), tmp_path / "store")
