"""Classification of a text beside its images: sentiment, hateful memes, visual entailment.

`[CLS] text [SEP]`, with a second text `[CLS] text [SEP] text_b [SEP]`; the pooled vector; cross entropy over the labels
of the training examples.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from vbert.errors import BuildError, nearest
from vbert.objectives import defaults
from vbert.objectives.entry import DownstreamSettings, Head, Prediction, Predictions, Row, Rows

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
    """accuracy, macro_f1 and weighted_f1; with a positive label auroc."""
    from vbert.metrics.classification import Confusion, Ranking
    from vbert.metrics.metric import SetMetric

    found = defaults.metrics(rows, predictions, head)
    if not found:
        return {}
    counted = [i for i, row in enumerate(rows) if row["label"] is not None]
    pairs = [(rows[i], predictions[i]) for i in counted]
    guess = [None if "quarantined" in p else p["answer"] for _, p in pairs]
    confusion = Confusion([row["label"] for row, _ in pairs], guess)
    found["macro_f1"] = SetMetric(confusion.macro_f1, counted)
    found["weighted_f1"] = SetMetric(confusion.weighted_f1, counted)
    if positive := head.get("positive"):
        chosen = [row["label"] == positive for row, _ in pairs]
        found["auroc"] = SetMetric(Ranking(chosen, [proba(row, p, head) for row, p in pairs]).auroc, counted)
    return found


def proba(row: Row, prediction: Prediction, head: Head) -> float:
    """The probability of the positive label; of an example without regions beyond the wrong end."""
    if "quarantined" in prediction:
        return float("inf") if row["label"] != head["positive"] else float("-inf")
    return float(prediction["probabilities"][head["labels"].index(head["positive"])])


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """predictions.csv: id and label; with a positive label `id,proba,label`, as the Hateful Memes Challenge asks.
    Examples without regions are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    positive = head.get("positive")
    writer.writerow(["id", "proba", "label"] if positive else ["id", "label"])
    for row, p in zip(rows, predictions, strict=True):
        if "quarantined" in p:
            continue
        writer.writerow([p["example_id"], *([repr(proba(row, p, head))] if positive else []), p["answer"]])
    return {"predictions.csv": out.getvalue().encode()}


def sections(rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
    """The confusion matrix."""
    from vbert.objectives.sections import confusion

    return [confusion(rows, predictions, head["labels"])] if any(map(defaults.labelled, rows)) else []
