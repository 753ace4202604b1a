"""The official rules of scoring answers, and their submission files: VQA, A-OKVQA, GQA, and the same string."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from vbert.errors import UserError
from vbert.metrics import vqa

Protocol = Literal["vqa", "aokvqa", "gqa", "exact"]
Row = Mapping[str, Any]


def _vqa(answer: str, row: Row) -> float:
    """By people's answers where the data has them; else the score that the data gives the answer."""
    return vqa.accuracy(answer, row["given"]) if row["given"] else vqa.soft_accuracy(answer, row["answers"])


def _aokvqa(answer: str, row: Row) -> float:
    return vqa.direct_answer(answer, row["given"])


def _exact(answer: str, row: Row) -> float:
    return vqa.exact(answer, _right(row)[0])


def _right(row: Row) -> list[str]:
    return row["given"] or [a["answer"] for a in row["answers"]]


SCORES: Mapping[str, Callable[[str, Row], float]] = {"vqa": _vqa, "aokvqa": _aokvqa, "gqa": _exact, "exact": _exact}


def check(protocol: str, rows: Iterable[Row]) -> None:
    """Raises UserError where the protocol can't score labelled examples: aokvqa needs people's answers, gqa and exact
    one answer a question."""
    for row in rows if protocol != "vqa" else ():
        if protocol == "aokvqa" and not row["given"]:
            raise UserError(
                f"protocol: aokvqa counts people's answers (`given`), and example {row['example_id']!r} has none; "
                "write protocol: vqa or exact"
            )
        if protocol in ("gqa", "exact") and (different := len(set(_right(row)))) > 1:
            raise UserError(
                f"protocol: {protocol} compares with one answer a question, and example {row['example_id']!r} has "
                f"{different} different ones; write protocol: vqa"
            )


def submission(protocol: str, predictions: Sequence[Row]) -> dict[str, bytes]:
    """vqa: results.json, question_id (a number where the example's id is one) and answer. gqa: predictions.json,
    questionId and prediction. aokvqa: predictions.json, `direct_answer` by question. exact: answers by question."""
    content: Any
    if protocol == "vqa":
        content = [{"question_id": _number(p["example_id"]), "answer": p["answer"]} for p in predictions]
    elif protocol == "gqa":
        content = [{"questionId": p["example_id"], "prediction": p["answer"]} for p in predictions]
    elif protocol == "aokvqa":
        content = {p["example_id"]: {"direct_answer": p["answer"]} for p in predictions}
    else:
        content = {p["example_id"]: p["answer"] for p in predictions}
    name = "results.json" if protocol == "vqa" else "predictions.json"
    return {name: (json.dumps(content, ensure_ascii=False) + "\n").encode()}


def _number(example_id: str) -> int | str:
    return int(example_id) if example_id.isdigit() else example_id
