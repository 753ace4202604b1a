"""VCR's files: names of persons, tags and their boxes, questions with each answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.data_steps import built, described
from data.own_world import png
from data.text_world import spec_of

from vbert.artifacts.store.store import Store
from vbert.errors import UserError

OBJECTS = ["person", "person", "person", "chair", "person"]
CORNERS = [[1.0 + n, 2.0, 9.0 + n, 20.5, 0.9] for n in range(len(OBJECTS))]
QUESTION: dict[str, Any] = {
    "annot_id": "val-0",
    "img_fn": "film/still@0.jpg",
    "metadata_fn": "film/still@0.json",
    "objects": OBJECTS,
    "question": ["Why", "is", [1], "near", [0, 3], "?"],
    "answer_choices": [[[1], "likes", [2], "."], ["No", "."], [[4], [2]], ["Yes", "."]],
    "rationale_choices": [["Because", [2], "."], ["It", "is", "."], [[0]], [[1], "and", [4]]],
    "answer_label": 0,
    "rationale_label": 3,
}


def stills(folder: Path, metadata: dict[str, Any] | None = None, **files: list[dict[str, Any]]) -> Path:
    for name, rows in files.items():
        for row in rows:
            at = folder / "vcr1images" / row["img_fn"]
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(png(len(name), (40, 30)))
            beside = {"boxes": CORNERS, "segms": [], "names": OBJECTS, "width": 40, "height": 30} | (metadata or {})
            at.with_suffix(".json").write_text(json.dumps(beside))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read(folder: Path, store: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The examples by id, and the boxes of the stills."""
    spec = spec_of("vcr", folder)
    spec = spec.model_copy(update={"examples": spec.examples and spec.examples.model_copy(update={"options": options})})
    images, texts = built(Store(store), *described(spec))
    return {row["example_id"]: row for row in texts.table().to_pylist()}, images.boxes().to_pylist()


def tags(text: str, phrases: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """(word, x1 of its box) of every phrase"""
    return [(text[phrase["start"] : phrase["end"]], phrase["boxes"][0][0]) for phrase in phrases]


def test_persons_have_names_and_boxes(tmp_path: Path) -> None:
    """Persons 1 and 0 are named by their order in the text; in the choices they keep their names, and others are new:
    by counting on, or as the original has it from Casey again."""
    rows, boxes = read(stills(tmp_path / "vcr", val=[QUESTION]), tmp_path / "store")
    assert list(rows) == ["val-0/answer", "val-0/rationale_0"]
    row = rows["val-0/answer"]
    assert row["text"] == "Why is Casey near Riley chair ?"
    assert tags(row["text"], row["phrases"]) == [("Casey", 2.0), ("Riley", 1.0), ("chair", 4.0)]
    first, _, third, _ = row["choices"]
    assert (first["text"], tags(**first)) == ("Casey likes Jessie .", [("Casey", 2.0), ("Jessie", 3.0)])
    assert tags(**third) == [("Jessie", 5.0), ("Jackie", 3.0)]
    assert (row["kind"], row["label"], row["group"], row["question_type"]) == ("choice", "0", "val-0", "answer")
    why = rows["val-0/rationale_0"]
    assert why["text"] == "Why is Casey near Riley chair ? Casey likes Jessie ."
    assert [choice["text"] for choice in why["choices"]] == ["Because Jessie .", "It is .", "Riley", "Casey and Jackie"]
    assert (why["label"], why["group"], why["question_type"]) == ("3", "val-0", "rationale")

    rows, _ = read(tmp_path / "vcr", tmp_path / "store", names="original")
    first, _, third, _ = rows["val-0/answer"]["choices"]
    assert first["text"] == "Casey likes Casey ."
    assert tags(**third) == [("Casey", 5.0), ("Riley", 3.0)]
    texts = [choice["text"] for choice in rows["val-0/rationale_0"]["choices"]]
    assert texts == ["Because Jessie .", "It is .", "Riley", "Casey and Casey"]

    assert [(box["class"], box["x1"], box["x2"]) for box in boxes] == [
        ("image", 0, 40), *((kind, 1 + n, 9 + n) for n, kind in enumerate(OBJECTS))
    ]  # fmt: skip


def test_an_example_is_about_the_objects_that_are_named(tmp_path: Path) -> None:
    """The whole still first; all persons where everyone is meant, or nobody."""
    plain = QUESTION | {"question": ["Why", "?"], "answer_choices": [["a"]] * 4, "rationale_choices": [["b"]] * 4}
    questions = [QUESTION, plain | {"annot_id": "val-1"}, plain | {"annot_id": "val-2", "question": ["Is", [3], "?"]}]
    questions.append(questions[2] | {"annot_id": "val-3", "rationale_choices": [["Everyone", "."]] * 4})
    rows, boxes = read(stills(tmp_path / "vcr", val=questions), tmp_path / "store")
    starts = {name: [box[0] for box in row["boxes"]] for name, row in rows.items() if name.endswith("answer")}
    every, persons = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5]
    assert starts == {f"val-{n}/answer": found for n, found in enumerate((every, persons, [0, 4], every))}
    given = {tuple(box[c] for c in ("x1", "y1", "x2", "y2")) for box in boxes}
    assert all({tuple(box) for box in row["boxes"]} <= given for row in rows.values()), (
        "regions are found by their boxes"
    )


def test_each_answer_is_given_for_the_leaderboard(tmp_path: Path) -> None:
    unlabelled = {k: v for k, v in QUESTION.items() if "label" not in k} | {"annot_id": "test-0", "img_fn": "f/t.jpg"}
    unlabelled |= {"metadata_fn": "f/t.json"}
    folder = stills(tmp_path / "vcr", val=[QUESTION], test=[unlabelled])
    rows, _ = read(folder, tmp_path / "store")
    assert [name for name in rows if name.startswith("test")] == ["test-0/answer"] + [
        f"test-0/rationale_{n}" for n in range(4)
    ]
    assert {row["label"] for name, row in rows.items() if name.startswith("test")} == {None}
    assert rows["test-0/rationale_1"]["text"] == "Why is Casey near Riley chair ? No ."
    rows, _ = read(folder, tmp_path / "store", every_answer=["val"])
    labels = [rows[f"val-0/rationale_{n}"]["label"] for n in range(4)]
    assert labels == ["3", None, None, None], "an answer that is wrong has no right reason"


def test_more_persons_than_names(tmp_path: Path) -> None:
    objects = ["person"] * 17
    row = QUESTION | {"objects": objects, "question": [list(range(17))]}
    beside = {"boxes": [[1, 2, 3, 4, 1]] * 17, "names": objects}
    folder = stills(tmp_path / "vcr", beside, val=[row])
    said = {}
    for names in ("distinct", "original"):
        said[names] = read(folder, tmp_path / "store", names=names)[0]["val-0/answer"]["text"].split()
    assert said["distinct"].index("Casey", 1) == 14
    assert [at for at, name in enumerate(said["original"]) if name == "Peyton"] == [6, 10]


@pytest.mark.parametrize(
    ("row", "metadata", "said"),
    [
        (QUESTION | {"question": [[9]]}, {}, r"val\.jsonl:1: question: there is no object 9, of 5"),
        (QUESTION | {"answer_choices": [["a"]] * 3}, {}, r"val\.jsonl:1: answer_choices: must be 4, not 3"),
        (QUESTION | {"answer_label": 4}, {}, r"val\.jsonl:1: answer_label: must be from 0 to 3, not 4"),
        (QUESTION | {"objects": OBJECTS[::-1]}, {}, r"val\.jsonl:1: objects: are not the names in .*still@0\.json"),
        (
            QUESTION | {"metadata_fn": "film/x.json"},
            {},
            r"val\.jsonl:1: metadata_fn: there is no 'film/x\.json'; near: ",
        ),
        (QUESTION, {"boxes": CORNERS[:4]}, r"still@0\.json: there are 4 boxes and 5 names"),
        (QUESTION, {"boxes": [[1, 2, 3]] * 5}, r"still@0\.json: boxes\[0\]: must be x1, y1, x2, y2 and a score"),
        (QUESTION, {"width": 80, "height": 60}, r"40×30"),
    ],
)
def test_wrong_files_are_named(row: dict[str, Any], metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(stills(tmp_path / "vcr", metadata, val=[row]), tmp_path / "store")
