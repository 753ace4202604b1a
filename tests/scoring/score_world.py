"""A few predictions and annotations in every format that `vbert score` reads, small enough to score by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ANSWERS = {1: ["net"] * 8 + ["mesh", "a net"], 2: ["2"] * 5 + ["two"] * 5, 3: ["yes"] * 10}
GUESSES = {1: "Mesh", 2: "Two.", 3: "Yes"}  # 0.3, 1, and 0: unanimous answers are compared as they are


def write(folder: Path) -> None:
    """All of them, by the names in README."""
    vqa(folder)
    aokvqa(folder)
    one_answer(folder)
    nlvr2(folder)
    nlvr(folder)
    classification(folder)
    vcr(folder)


def as_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def as_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def vqa(folder: Path) -> None:
    as_json(folder / "questions.json", {"questions": [{"question_id": n, "question": "?"} for n in ANSWERS]})
    rows = [
        {
            "question_id": n,
            "question_type": "what is" if n == 1 else "how many",
            "answer_type": "other",
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(answers, 1)],
        }
        for n, answers in ANSWERS.items()
    ]
    as_json(folder / "annotations.json", {"annotations": rows})
    as_json(folder / "results.json", [{"question_id": n, "answer": answer} for n, answer in GUESSES.items()])


def aokvqa(folder: Path) -> None:
    """b is a difficult one: its direct answer doesn't count."""
    rows = [
        {
            "question_id": name,
            "choices": ["ski", "cat", "dog", "hat"],
            "correct_choice_idx": n,
            "direct_answers": ["ski", "ski", *["skis"] * 8],
            "difficult_direct_answer": name == "b",
        }
        for n, name in enumerate("abc")
    ]
    as_json(folder / "aokvqa_v1p0_val.json", rows)
    guesses = {name: {"multiple_choice": "cat", "direct_answer": "ski"} for name in "abc"}
    as_json(folder / "aokvqa.json", guesses)


def one_answer(folder: Path) -> None:
    truth = {"1": "yes", "2": "red", "3": "two"}
    as_json(folder / "truth.json", truth)
    as_json(folder / "answers.json", truth | {"3": "Two"})
    questions = {n: {"answer": a, "question": "?", "imageId": "7", "isBalanced": True} for n, a in truth.items()}
    questions |= {n: questions["1"] | {"isBalanced": False} for n in ("8", "9")}  # these don't count
    as_json(folder / "gqa.json", questions)
    guesses = [{"questionId": n, "prediction": a} for n, a in (truth | {"3": "Two", "9": "no"}).items()]
    as_json(folder / "gqa_predictions.json", guesses)


def nlvr2(folder: Path) -> None:
    """Set 1's sentence is right of both pairs, set 2's of one of two."""
    names = ("dev-1-0-0", "dev-1-1-0", "dev-2-0-0", "dev-2-3-0")
    rows = [
        {"identifier": name, "sentence": f"Sentence {name[4]}.", "label": label, "left_url": "http://x"}
        for name, label in zip(names, ("True", "False", "True", "True"), strict=True)
    ]
    as_lines(folder / "dev.json", rows)
    as_lines(folder / "balanced_dev.json", rows[2:])
    (folder / "annotated_dev_examples.txt").write_text(
        "Sentence 1.\n* negation\n* coordination\n\nSentence 2.\n* negation\n\nElsewhere.\n* coordination"
    )
    guesses = zip(names, ("true", "FALSE", "True", "False"), strict=True)
    (folder / "nlvr2.csv").write_text("".join(f"{name},{guess}\n" for name, guess in guesses))


def nlvr(folder: Path) -> None:
    """Of presentation 7 one picture of twelve is wrong, of 8 none."""
    names = ("7-0", "7-2", "8-0")
    as_lines(folder / "nlvr_dev.json", [{"identifier": n, "label": "true", "structured_rep": []} for n in names])
    guesses = {f"dev-{name}-{k}.png": "True" for name in names for k in range(6)} | {"dev-7-2-5.png": "false"}
    (folder / "nlvr.csv").write_text("".join(f"{name},{guess}\n" for name, guess in guesses.items()))


def classification(folder: Path) -> None:
    labels = (0, 1, 1, 0)
    as_lines(
        folder / "labels.jsonl", [{"id": n, "img": "x.png", "label": y, "text": "?"} for n, y in enumerate(labels)]
    )
    (folder / "only_labels.csv").write_text("id,label\n0,0\n1,1\n2,0\n3,0\n")
    (folder / "labels.csv").write_text("id,proba,label\n0,0.2,0\n1,0.9,1\n2,0.2,0\n3,0.1,0\n")


def vcr(folder: Path) -> None:
    """Answers right of v1 and v2, rationales of v1 and v3."""
    import numpy as np

    rows = [{"annot_id": f"v{n}", "answer_choices": [], "answer_label": 1, "rationale_label": 2} for n in (1, 2, 3)]
    as_lines(folder / "val.jsonl", rows)
    answers = np.array([[0, 1, 0, 0], [0.1, 0.7, 0.1, 0.1], [1, 0, 0, 0]], np.float32)
    rationales = np.array([[0, 0, 9, 0], [5, 0, 0, 0], [-2, -2, -1, -2]], np.float32)
    np.save(folder / "answers.npy", answers)
    np.save(folder / "rationales.npy", rationales)
    names = [f"answer_{k}" for k in range(4)]
    names += [f"rationale_conditioned_on_a{a}_{k}" for a in range(4) for k in range(4)]
    lines = [",".join(["annot_id", *names])]
    for row, answer, rationale in zip(rows, answers, rationales, strict=True):
        given = [rationale if a == row["answer_label"] else rationale[::-1] for a in range(4)]
        lines.append(",".join([str(row["annot_id"]), *(str(x) for scores in (answer, *given) for x in scores)]))
    (folder / "leaderboard.csv").write_text("\n".join(lines))
