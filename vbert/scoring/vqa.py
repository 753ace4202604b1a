"""Scores of the VQA family: VQA v2 and OK-VQA, A-OKVQA, GQA, and exact match of one answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.data.names import count_of
from vbert.errors import UserError, nearest
from vbert.metrics import vqa
from vbert.metrics.means import mean, mean_by
from vbert.scoring import formats
from vbert.scoring.files import Document, check_ids, document, text_of
from vbert.scoring.score import Figures, Missing, Score, match

Protocol = Literal["vqa", "aokvqa", "gqa", "exact"]
ENOUGH = 4  # answers of a question; with fewer, no answer has three others like it
STRICT = ConfigDict(strict=True)


@with_config(ConfigDict(strict=True, extra="allow"))
class Answer(TypedDict):
    answer: str
    answer_id: NotRequired[int | str]


@with_config(STRICT)
class Annotation(TypedDict):
    question_id: int | str
    answers: list[Answer]
    question_type: NotRequired[str]
    answer_type: NotRequired[str]


@with_config(STRICT)
class Annotations(TypedDict):
    annotations: list[Annotation]


@with_config(STRICT)
class Question(TypedDict):
    question_id: int | str


@with_config(STRICT)
class Questions(TypedDict):
    questions: list[Question]


@with_config(STRICT)
class Result(TypedDict):
    question_id: int | str
    answer: str


@with_config(STRICT)
class AokvqaRow(TypedDict):
    question_id: str
    choices: list[str]
    correct_choice_idx: NotRequired[int]
    direct_answers: NotRequired[list[str]]
    difficult_direct_answer: bool


@with_config(STRICT)
class AokvqaPrediction(TypedDict, total=False):
    multiple_choice: str
    direct_answer: str


@with_config(STRICT)
class GqaQuestion(TypedDict):
    answer: str
    isBalanced: NotRequired[bool]


@with_config(STRICT)
class GqaPrediction(TypedDict):
    questionId: str
    prediction: str


def score(
    protocol: Protocol, questions: Path | None, annotations: Path | None, predictions: Path, missing: Missing = "error"
) -> Score:
    """The figures of one file of predictions by a protocol's own rules (`vbert.metrics.vqa`).

    Raises UserError for a file that isn't of the protocol's format, IdsDiffer for ids that don't agree.
    """
    if protocol == "gqa":
        if (questions is None) == (annotations is None):
            raise UserError("GQA's questions hold their answers: give them with one of --questions and --annotations")
    elif annotations is None:
        raise UserError(f"give the annotations with --annotations (protocol {protocol})")
    elif questions is not None and protocol != "vqa":
        raise UserError(f"the protocol {protocol} reads no questions: leave out --questions")
    truth = annotations or questions
    assert truth is not None
    if protocol == "vqa":
        return score_vqa(questions, truth, predictions, missing)
    rules: Mapping[str, Callable[[Path, Path, Missing], Score]] = {
        "aokvqa": score_aokvqa,
        "gqa": score_gqa,
        "exact": score_exact,
    }
    return rules[protocol](truth, predictions, missing)


def score_vqa(questions: Path | None, annotations: Path, predictions: Path, missing: Missing) -> Score:
    """VQA accuracy; `questions`, where given, must be those of the annotations."""
    rows = document(annotations, Annotations, formats.VQA_ANNOTATIONS)
    known = {str(row["question_id"]): row for row in rows.content["annotations"]}
    for at, row in enumerate(rows.content["annotations"]):
        if not row["answers"]:
            rows.refuse(["annotations", at, "answers"], "is empty: there is nothing to score against")
    ids = [str(row["question_id"]) for row in rows.content["annotations"]]
    if questions is not None:
        asked = document(questions, Questions, formats.VQA_QUESTIONS).content["questions"]
        match(ids, [str(row["question_id"]) for row in asked], "error", annotations, questions, forgivable=False)
    given = _results(predictions, formats.VQA_RESULTS)
    matched = match(ids, [name for name, _ in given], missing, annotations, predictions)
    answers = dict(given)
    each = [_accuracy(answers.get(name), known[name]["answers"]) for name in matched.scored]
    figures: Figures = {"accuracy": mean(each)}
    for figure, field in (("per_question_type", "question_type"), ("per_answer_type", "answer_type")):
        kinds = [known[name].get(field) for name in matched.scored]
        typed = [(value, str(kind)) for value, kind in zip(each, kinds, strict=True) if kind is not None]
        figures[figure] = mean_by([value for value, _ in typed], [kind for _, kind in typed])
    return matched.score(figures, *_notes(annotations, [known[name]["answers"] for name in matched.scored]))


def _notes(annotations: Path, every: Sequence[Sequence[Answer]]) -> list[str]:
    """On questions whose right answers the official rule doesn't count as 1."""
    notes = []
    if alike := [answers for answers in every if not _told_apart(answers)]:
        notes.append(
            f"{annotations}: {count_of(alike, 'question')} with answers of the same `answer_id`, or without one: the "
            f"official code then leaves out all equal answers together, and scores less; number them 1 to 10"
        )
    if few := [answers for answers in every if len(answers) < ENOUGH]:
        notes.append(
            f"{annotations}: {count_of(few, 'question')} with fewer than four answers, so that no answer scores 100; "
            f"for one answer a question use --protocol exact with an object of id and answer"
        )
    return notes


def _told_apart(answers: Sequence[Answer]) -> bool:
    return len({each.get("answer_id") for each in answers}) == len(answers)


def _accuracy(answer: str | None, answers: Sequence[Answer]) -> float:
    if answer is None:
        return 0.0
    given = [each["answer"] for each in answers]
    if _told_apart(answers):
        return vqa.accuracy(answer, given)
    fields = [json.dumps({k: v for k, v in each.items() if k != "answer"}, sort_keys=True) for each in answers]
    return vqa.accuracy(answer, given, fields)


FIGURES: tuple[Literal["direct_answer", "multiple_choice"], ...] = ("direct_answer", "multiple_choice")


def score_aokvqa(annotations: Path, predictions: Path, missing: Missing) -> Score:
    """A-OKVQA's two settings, those of which a prediction holds an answer. `scored` and `of` are of both together:
    direct answers leave out difficult questions."""
    rows = document(annotations, list[AokvqaRow], formats.AOKVQA_ANNOTATIONS)
    given = document(predictions, dict[str, AokvqaPrediction], formats.AOKVQA_PREDICTIONS)
    known = {row["question_id"]: (at, row) for at, row in enumerate(rows.content)}
    ids = [row["question_id"] for row in rows.content]
    check_ids(predictions, formats.AOKVQA_PREDICTIONS, ids, given.content)
    match(ids, given.keys_as_written(), "skip", annotations, predictions)
    figures: Figures = {}
    counted, scored, absent = set[str](), set[str](), set[str]()
    for figure in FIGURES:
        answers = {name: str(row[figure]) for name, row in given.content.items() if figure in row}
        if not answers:
            continue
        whole = figure == "multiple_choice"
        of = [name for name in ids if whole or not known[name][1]["difficult_direct_answer"]]
        names = match(of, answers, missing, annotations, f"{predictions} ({figure})", allowed=ids).scored
        right = _multiple_choice if whole else _direct_answer
        figures[figure] = mean(
            [right(given, name, answers[name], rows, *known[name]) if name in answers else 0.0 for name in names]
        )
        counted.update(of)
        scored.update(names)
        absent.update(name for name in of if name not in answers)
    if not figures:
        raise UserError(f"{predictions}: no prediction holds a direct_answer or a multiple_choice")
    return Score(figures, len(scored), len(counted), len(absent))


def _multiple_choice(
    given: Document[Any], name: str, answer: str, rows: Document[Any], at: int, row: AokvqaRow
) -> float:
    right = row.get("correct_choice_idx")
    if right is None:
        rows.refuse([at, "correct_choice_idx"], "is missing: is this a split without answers?")
    if not 0 <= right < len(row["choices"]):
        rows.refuse([at, "correct_choice_idx"], f"{right} is none of the {len(row['choices'])} choices")
    if answer not in row["choices"]:
        given.refuse(
            [name, "multiple_choice"], f"{answer!r:.80} is none of its choices; {nearest(answer, row['choices']):.300}"
        )
    return vqa.exact(answer, row["choices"][right])


def _direct_answer(given: Document[Any], name: str, answer: str, rows: Document[Any], at: int, row: AokvqaRow) -> float:
    if not row.get("direct_answers"):
        rows.refuse([at, "direct_answers"], "is missing: is this a split without answers?")
    return vqa.direct_answer(answer, row["direct_answers"])


def score_gqa(questions: Path, predictions: Path, missing: Missing) -> Score:
    """GQA's accuracy (its `eval.py`): the same string; questions that aren't balanced need no answer, nor count."""
    rows = document(questions, dict[str, GqaQuestion], formats.GQA_QUESTIONS)
    given = document(predictions, list[GqaPrediction], formats.GQA_PREDICTIONS).content
    truth = {name: row["answer"] for name, row in rows.content.items() if row.get("isBalanced", True)}
    names = rows.keys_as_written()
    match(names, names, "error", questions, questions)
    pairs = [(row["questionId"], row["prediction"]) for row in given]
    return _exact(truth, pairs, missing, questions, predictions, allowed=rows.content)


def score_exact(annotations: Path, predictions: Path, missing: Missing) -> Score:
    """The share of equal strings. Both files are `{id: answer}` or VQA's results."""
    truth = _results(annotations, formats.ANSWERS)
    doubled = [name for name, _ in truth]
    match(doubled, doubled, "error", annotations, annotations)
    return _exact(dict(truth), _results(predictions, formats.ANSWERS), missing, annotations, predictions)


def _exact(
    truth: Mapping[str, str],
    given: Sequence[tuple[str, str]],
    missing: Missing,
    expecting: Path,
    giving: Path,
    allowed: Iterable[str] = (),
) -> Score:
    matched = match(truth, [name for name, _ in given], missing, expecting, giving, allowed)
    answers = dict(given)
    return matched.score(
        {"accuracy": mean([vqa.exact(answers[n], truth[n]) if n in answers else 0.0 for n in matched.scored])}
    )


def _results(path: Path, wanted: formats.Format) -> list[tuple[str, str]]:
    """(id as text, answer) of VQA's results; where `wanted` is ANSWERS, of `{id: answer}` too."""
    if wanted is formats.ANSWERS and not text_of(path, wanted).lstrip().startswith("["):
        keyed = document(path, dict[str, str], wanted)
        return [(name, keyed.content[name]) for name in keyed.keys_as_written()]
    rows = document(path, list[Result], wanted).content
    return [(str(row["question_id"]), row["answer"]) for row in rows]
