"""Classification of a text beside its images: sentiment, hateful memes, visual entailment.

`[CLS] text [SEP]`, with a second text `[CLS] text [SEP] text_b [SEP]`; the pooled vector; cross entropy over the labels
of the training examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from vbert.errors import BuildError, nearest
from vbert.objectives import defaults
from vbert.objectives.entry import DownstreamSettings, Head, Prediction, Predictions, Row, Rows
from vbert.objectives.submissions import as_csv, by_file

if TYPE_CHECKING:
    import numpy as np

    from vbert.metrics.metric import Metric
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.sections import Section

KINDS = ("sentiment",)  # a text with a label
SELECTS = "accuracy"


class ClassificationSettings(DownstreamSettings):
    """Of any data set whose examples have a label."""

    AS_TEACHER = ("images", "text", "positive")

    positive: str | None = Field(
        None, description="the label that AUROC and the submission's probability are of; None: neither"
    )


def head(rows: Iterable[Row], settings: ClassificationSettings) -> Head:
    described = defaults.head(rows, settings)
    if (positive := settings.positive) is not None:
        if positive not in described["labels"]:
            raise BuildError(
                f"positive: no training example has the label {positive!r}; {nearest(positive, described['labels'])}"
            )
        described["positive"] = positive
    return described


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    from vbert.objectives.batches import Input, sentence

    row = rows.row(i)
    texts = [(row["text"], "")] + ([(row["text_b"], "")] if row["text_b"] else [])
    return [Input(sentence(encoder, texts, head["max_text"]), row["image_ids"])]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """accuracy, macro_f1 and weighted_f1; with a positive label auroc; each also by part of the split."""
    from vbert.metrics.classification import Confusion, Ranking
    from vbert.metrics.metric import SetMetric, by_part

    if not any(map(defaults.labelled, rows)):
        return {}
    divisions = {column: [row[column] for row in rows] for column in ("question_type", "part")}
    found, parts = by_part("accuracy", defaults.right(rows, predictions), **divisions), divisions["part"]
    for part in (None, *sorted({*parts} - {None})):
        counted = [i for i, row in enumerate(rows) if row["label"] is not None and part in (None, row["part"])]
        pairs, under = [(rows[i], predictions[i]) for i in counted], f"/{part}" if part else ""
        guess = [None if "quarantined" in p else p["answer"] for _, p in pairs]
        confusion = Confusion([row["label"] for row, _ in pairs], guess)
        found[f"macro_f1{under}"] = SetMetric(confusion.macro_f1, counted)
        found[f"weighted_f1{under}"] = SetMetric(confusion.weighted_f1, counted)
        if positive := head.get("positive"):
            chosen, scores = [row["label"] == positive for row, _ in pairs], [proba(*pair, head) for pair in pairs]
            found[f"auroc{under}"] = SetMetric(Ranking(chosen, scores).auroc, counted)
    return found


def proba(row: Row, prediction: Prediction, head: Head) -> float:
    """The probability of the positive label; of an example without regions beyond the wrong end."""
    if "quarantined" in prediction:
        return float("inf") if row["label"] != head["positive"] else float("-inf")
    return float(prediction["probabilities"][head["labels"].index(head["positive"])])


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """predictions.csv: id and label; with a positive label `id,proba,label`, as the Hateful Memes Challenge asks; for
    parts of a split one file each. Examples without regions are left out."""
    positive = head.get("positive")
    header = ["id", "proba", "label"] if positive else ["id", "label"]
    files = {}
    for file, predicted in by_file(rows, predictions).items():
        lines = [[name, *([repr(proba(row, p, head))] if positive else []), p["answer"]] for name, row, p in predicted]
        files[file] = as_csv([header, *lines])
    return files


def sections(rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
    """The confusion matrix."""
    from vbert.objectives.sections import confusion

    return [confusion(rows, predictions, head["labels"])] if any(map(defaults.labelled, rows)) else []
