"""The official rules of scoring choices, and their submission files: VCR's leaderboard, A-OKVQA's multiple choice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vbert.errors import UserError
from vbert.metrics import vqa
from vbert.objectives.submissions import as_csv

if TYPE_CHECKING:
    from vbert.metrics.metric import Metric

Protocol = Literal["none", "vcr", "aokvqa"]
Row = Mapping[str, Any]


def metrics(protocol: str, rows: Sequence[Row], predictions: Sequence[Row]) -> dict[str, Metric]:
    """accuracy, also by question type (VCR's answer and rationale); joint: the share of groups of several labelled
    examples that are wholly right (Q→AR)."""
    from vbert.metrics.metric import ExampleScores, by_part

    if all(row["label"] is None for row in rows):
        return {}
    each = [
        None if row["label"] is None else 0.0 if "quarantined" in p else _score(protocol, row, p["answer"])
        for row, p in zip(rows, predictions, strict=True)
    ]
    found = by_part("accuracy", each, question_type=[row["question_type"] for row in rows])
    groups = Counter(row["group"] for row in rows if row["group"] and row["label"] is not None)
    if any(size > 1 for size in groups.values()):
        found["joint"] = ExampleScores(each, [row["group"] or row["example_id"] for row in rows])
    return found


def _score(protocol: str, row: Row, answer: str) -> float:
    """aokvqa compares texts, of which two choices may have the same. What is no choice's number is wrong."""
    if not (answer.isdecimal() and int(answer) < len(row["choices"])):
        return 0.0
    if protocol == "aokvqa":
        return vqa.exact(row["choices"][int(answer)]["text"], row["choices"][int(row["label"])]["text"])
    return float(answer == row["label"])


def check(protocol: str, rows: Iterable[Row]) -> None:
    """Raises UserError where examples lack what the protocol's submission is written by."""
    for row in rows if protocol == "vcr" else ():
        if not row["group"]:
            raise UserError(
                f"protocol: vcr writes a line for each `group` (annot_id), and example {row['example_id']!r} has none; "
                "give the field `group`, or write protocol: none"
            )


def submission(protocol: str, rows: Sequence[Row], predictions: Sequence[Row]) -> dict[str, bytes]:
    """aokvqa: predictions.json, `multiple_choice` by question, the choice's text. vcr: predictions.csv of VCR's
    leaderboard. Examples without regions are left out."""
    made = [(row, p) for row, p in zip(rows, predictions, strict=True) if "quarantined" not in p]
    if protocol == "vcr":
        check(protocol, rows)
        return _leaderboard(made)
    if protocol == "aokvqa":
        chosen = {
            row["example_id"].removesuffix("/choice"): {"multiple_choice": row["choices"][int(p["answer"])]["text"]}
            for row, p in made
        }
        return {"predictions.json": (json.dumps(chosen, ensure_ascii=False) + "\n").encode()}
    return {}


def _leaderboard(made: Sequence[tuple[Row, Row]]) -> dict[str, bytes]:
    """annot_id, answer_0…3, rationale_conditioned_on_a0_0…a3_3: the probabilities of the answers, and of the rationales
    given each answer. A model of `types: [answer]` fills the columns of answers alone, one of `[rationale]` the others.
    Rationales given the right answer alone (a split that isn't among the reader's `every_answer`) fill none."""
    questions: dict[str, dict[str, float]] = {}
    for row, p in made:
        of = "answer"
        if row["question_type"] == "rationale":
            of = f"rationale_conditioned_on_a{row['example_id'].rpartition('_')[2]}"
        scored = {f"{of}_{k}": share for k, share in enumerate(p["probabilities"])}
        questions.setdefault(row["group"], {}).update(scored)
    columns = sorted(set().union(*questions.values()))
    if any(found.keys() != set(columns) for found in questions.values()):
        columns = [column for column in columns if column.startswith("answer")]
    if not columns:
        return {}
    lines = [[name, *(repr(found[column]) for column in columns)] for name, found in questions.items()]
    return {"predictions.csv": as_csv([["annot_id", *columns], *lines])}
