"""Scores of VCR: arrays of scores, or a leaderboard file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.errors import UserError
from vbert.metrics import choice
from vbert.metrics.means import mean
from vbert.scoring import formats
from vbert.scoring.files import NPY, lines, number, read, records, refuse
from vbert.scoring.score import Figures, Missing, Score, match

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHOICES = 4
Label = Annotated[int, Field(ge=0, lt=CHOICES)]
ANSWER_COLUMNS = [f"answer_{k}" for k in range(CHOICES)]


@with_config(ConfigDict(strict=True))
class Example(TypedDict):
    annot_id: str
    answer_label: Label
    rationale_label: Label


def rationale_columns(answer: int) -> list[str]:
    """The leaderboard's columns of the rationales given an answer."""
    return [f"rationale_conditioned_on_a{answer}_{k}" for k in range(CHOICES)]


def score_vcr(
    annotations: Path,
    answers: Path | None = None,
    rationales: Path | None = None,
    predictions: Path | None = None,
    missing: Missing = "error",
) -> Score:
    """Q→A, QA→R (given the right answer) and Q→AR, of arrays [n, 4] in the order of the annotations, or of a
    leaderboard file, which has rationales given each answer; of answers or rationales alone where it has no others.

    Raises UserError for a file that isn't of the format, IdsDiffer for ids that don't agree.
    """
    if (answers is None) != (rationales is None) or (answers is None) == (predictions is None):
        raise UserError("give --answers and --rationales, or --predictions alone")
    rows = [row for _, row in lines(annotations, Example, formats.VCR_EXAMPLES)]
    ids = [row["annot_id"] for row in rows]
    if predictions is not None:
        return _leaderboard(rows, ids, predictions, annotations, missing)
    assert answers is not None
    assert rationales is not None
    matched = match(ids, ids, "error", annotations, annotations)
    hits = choice.right(_array(answers, len(rows), annotations), [row["answer_label"] for row in rows])
    reasons = choice.right(_array(rationales, len(rows), annotations), [row["rationale_label"] for row in rows])
    return matched.score(_figures(hits, reasons))


def _figures(answers: Sequence[float] | None, rationales: Sequence[float] | None) -> Figures:
    figures: Figures = {}
    if answers is not None:
        figures["answer"] = mean(answers)
    if rationales is not None:
        figures["rationale"] = mean(rationales)
    if answers is not None and rationales is not None:
        figures["joint"] = mean(choice.joint(answers, rationales))
    return figures


def _leaderboard(rows: Sequence[Example], ids: Sequence[str], path: Path, annotations: Path, missing: Missing) -> Score:
    of_rationales = [column for answer in range(CHOICES) for column in rationale_columns(answer)]
    every = records(path, ("annot_id",), (*ANSWER_COLUMNS, *of_rationales), formats.VCR_LEADERBOARD)
    there = {column for _, row in every for column in row}
    with_answers, with_rationales = not there.isdisjoint(ANSWER_COLUMNS), not there.isdisjoint(of_rationales)
    if not with_answers and not with_rationales:
        with_answers = with_rationales = True
    columns = [*(ANSWER_COLUMNS if with_answers else ()), *(of_rationales if with_rationales else ())]
    given = records(path, ("annot_id", *columns), (), formats.VCR_LEADERBOARD)
    values = {row["annot_id"]: {c: number(row[c], where, c) for c in columns} for where, row in given}
    matched = match(ids, [row["annot_id"] for _, row in given], missing, annotations, path)
    scored = [row for row in rows if row["annot_id"] in values]

    def right(columns_of: Callable[[Example], Sequence[str]], labels: Sequence[int]) -> list[float]:
        scores = [[values[row["annot_id"]][column] for column in columns_of(row)] for row in scored]
        hits = dict(zip((row["annot_id"] for row in scored), choice.right(scores, labels), strict=True))
        return [hits.get(name, 0.0) for name in matched.scored]

    hits = right(lambda row: ANSWER_COLUMNS, [row["answer_label"] for row in scored]) if with_answers else None
    reasons = None
    if with_rationales:
        labels = [row["rationale_label"] for row in scored]
        reasons = right(lambda row: rationale_columns(row["answer_label"]), labels)
    return matched.score(_figures(hits, reasons))


def _array(path: Path, examples: int, annotations: Path) -> NDArray[Any]:
    """[examples, 4], finite numbers, of an `.npy` that holds no pickle."""
    import warnings
    from tokenize import TokenError

    import numpy as np

    if not read(path).startswith(NPY):
        refuse(path, formats.VCR_ARRAY)
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError, TypeError, SyntaxError, TokenError, MemoryError) as error:
        if "object" in str(error).lower():
            raise UserError(f"{path}: holds a pickle (an array of objects), which is not read: save numbers") from None
        raise UserError(f"{path}: no whole .npy: {str(error).splitlines()[0]:.200}") from None
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: must hold real numbers, not {array.dtype}")
    if array.shape != (examples, CHOICES):
        raise UserError(
            f"{path}: must have the shape ({examples}, {CHOICES}), one row for each line of {annotations}, "
            f"not {array.shape}"
        )
    if (bad := np.argwhere(~np.isfinite(array))).size:
        row, column = bad[0]
        said = "NaN" if np.isnan(array[row, column]) else "infinite"
        raise UserError(f"{path}: row {row:,}, column {column}: is {said}; {len(bad):,} of its numbers are not finite")
    return np.asarray(array)
