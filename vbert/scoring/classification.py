"""Scores of classification: any labels, in CSV or JSON lines."""

from __future__ import annotations

from pathlib import Path

from vbert.errors import UserError
from vbert.metrics import classification
from vbert.scoring.files import by_label, number, records, unknown_label
from vbert.scoring.formats import LABELS
from vbert.scoring.score import Figures, IdsDiffer, Missing, Score, match

PROBABILITY = "proba"
FLAGS = {"0", "1"}  # labels of which 1 is the positive one, unless another is named


def score_classification(
    annotations: Path,
    predictions: Path,
    id_column: str = "id",
    label_column: str = "label",
    positive: str | None = None,
    missing: Missing = "error",
) -> Score:
    """Accuracy, macro-F1 and weighted F1; with `positive` also AUROC, by the predictions' column `proba`, that label's
    probability. Of labels 0 and 1 with a `proba`, 1 is the positive one.

    Predictions have the annotations' columns, or `id` and `label`, as an evaluation's submission. A missing prediction
    that counts as wrong is of no label, and its probability stands on the wrong end. Raises UserError for a file that
    isn't of the format, IdsDiffer for ids that don't agree.
    """
    rows = records(annotations, (id_column, label_column), (), LABELS)
    if not rows:
        raise IdsDiffer(f"{annotations}: holds no example")
    truth = {row[id_column]: row[label_column] for _, row in rows}
    labels = sorted(set(truth.values()))
    known = by_label(labels)
    named = positive is not None
    if positive is not None and (chosen := known(positive)) is None:
        raise UserError(f"--positive: {unknown_label(positive, labels)}")
    wanted = (id_column, label_column) if positive is None else (id_column, label_column, PROBABILITY)
    given = records(predictions, wanted, (PROBABILITY,), LABELS, {id_column: "id", label_column: "label"})
    if positive is None and set(labels) == FLAGS and any(PROBABILITY in row for _, row in given):
        if empty := [where for where, row in given if PROBABILITY not in row]:
            raise UserError(f"{empty[0]}: {PROBABILITY}: is empty, and others' are not; fill it or take the column out")
        positive = chosen = "1"
    predicted, scores = {}, {}
    for where, row in given:
        if (label := known(row[label_column])) is None:
            raise UserError(f"{where}: {label_column}: {unknown_label(row[label_column], labels)}")
        predicted[row[id_column]] = label
        if positive is not None:
            scores[row[id_column]] = number(row[PROBABILITY], where, PROBABILITY)
    matched = match(
        [row[id_column] for _, row in rows], [row[id_column] for _, row in given], missing, annotations, predictions
    )
    right = [truth[name] for name in matched.scored]
    guessed = [predicted.get(name) for name in matched.scored]
    figures: Figures = {
        "accuracy": classification.accuracy(right, guessed),
        "macro_f1": classification.macro_f1(right, guessed),
        "weighted_f1": classification.weighted_f1(right, guessed),
    }
    if positive is not None:
        sides = [label == chosen for label in right]
        if len(set(sides)) < 2:
            only = f"AUROC needs another label beside {right[0]!r}"
            if named:
                raise UserError(f"{annotations}: {only}; leave out --positive")
            return matched.score(figures, f"{annotations}: {only} among the scored examples, and is left out")
        worst = [float("-inf") if side else float("inf") for side in sides]
        values = [scores.get(name, at_worst) for name, at_worst in zip(matched.scored, worst, strict=True)]
        figures["auroc"] = classification.auroc(sides, values)
    return matched.score(figures)
