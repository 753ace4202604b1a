"""The official rules of scoring answers, and their submission files: VQA, A-OKVQA, GQA, and the same string."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vbert.metrics import vqa

Protocol = Literal["vqa", "aokvqa", "gqa", "exact"]
Row = Mapping[str, Any]


def _vqa(answer: str, row: Row) -> float:
    """By people's answers where the data has them; else the score that the data gives the answer."""
    return vqa.accuracy(answer, row["given"]) if row["given"] else vqa.soft_accuracy(answer, row["answers"])


def _aokvqa(answer: str, row: Row) -> float:
    return vqa.direct_answer(answer, row["given"])


def _exact(answer: str, row: Row) -> float:
    right = row["given"] or [a["answer"] for a in row["answers"]]
    return max(vqa.exact(answer, one) for one in right)


SCORES: Mapping[str, Callable[[str, Row], float]] = {"vqa": _vqa, "aokvqa": _aokvqa, "gqa": _exact, "exact": _exact}


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
