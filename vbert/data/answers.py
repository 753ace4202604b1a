"""Answer vocabularies as published: which answer each row of a VQA head stands for. Their order is part of a model."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vbert.errors import UserError

MAX_BYTES = 16 << 20


def read_answers(path: Path) -> list[str]:
    """The answers in the file; see `answers_of`. Raises UserError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"answers: {path}: {error.strerror}; give the file of the answer vocabulary") from None
    return answers_of(data, str(path))


def answers_of(data: bytes, path: str) -> list[str]:
    """The answers in the order of a head's rows, of one of: text, one a line (Pythia's answers_vqa.txt); a JSON list
    (LXMERT's trainval_label2ans.json); a JSON object of answer → row (UNITER's ans2label.json). path: for errors.
    Raises UserError."""
    if len(data) > MAX_BYTES:
        raise UserError(f"answers: {path}: larger than {MAX_BYTES >> 20} MiB: no answer vocabulary")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"answers: {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    answers = _in_rows(_of_json(text, path), path) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    seen: dict[str, int] = {}
    for row, answer in enumerate(answers):
        if seen.setdefault(answer, row) != row:
            raise UserError(f"answers: {path}: {answer!r} stands in rows {seen[answer]} and {row}: each needs its own")
    if len(answers) < 2:
        raise UserError(f"answers: {path}: {len(answers)} answers; a vocabulary has two or more")
    return answers


def lacking(wanted: Sequence[str], answers: Collection[str]) -> str:
    """What the answers of a file lack of the training labels `wanted`, as a part of an error's sentence: how many,
    three of them, and whether stray blanks are why; "" where all are there."""
    absent = [label for label in wanted if label not in answers]
    if not absent:
        return ""
    named = ", ".join(repr(label) for label in absent[:3]) + (", …" if len(absent) > 3 else "")
    blanks = next((answer for answer in answers if answer != answer.strip() and answer.strip() in absent), None)
    why = "" if blanks is None else f" (its {blanks!r} has stray blanks: take them out)"
    return f"{len(absent)} of the {len(wanted)} training labels: {named}{why}"


def _of_json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"answers: {path}: not JSON: {error}") from None


def _in_rows(given: Any, path: str) -> list[str]:
    if isinstance(given, dict):
        rows = list(given.values())
        if any(type(row) is not int for row in rows) or sorted(rows) != list(range(len(rows))):
            raise UserError(f"answers: {path}: the rows of its answers must be 0 to {len(rows) - 1}, each once")
        return sorted(given, key=lambda answer: given[answer])
    for row, answer in enumerate(given):
        if not isinstance(answer, str):
            raise UserError(f"answers: {path}: row {row} is {answer!r:.80}, not an answer in quotes")
    return list(given)
