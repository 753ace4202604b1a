"""What the report shows of an objective's predictions, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ConfusionMatrix:
    """counts[i][j]: examples of label i that label j was predicted for; the last column counts those without a
    prediction."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class WorkTable:
    """Figures by how much work they take. rows: (what is done, units of work, figures in the order of `names`). rate:
    the figure of the evaluation's manifest that says how many units a second it did."""

    title: str
    first: str  # the name of the first column
    unit: str
    names: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float]]]
    rate: str


Section = ConfusionMatrix | WorkTable


def confusion(
    rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], labels: Sequence[str]
) -> ConfusionMatrix:
    """Of the labelled examples, by the head's labels and those that occur besides."""
    pairs = Counter(
        (row["label"], "" if p.get("quarantined") else p["answer"])
        for row, p in zip(rows, predictions, strict=True)
        if row["label"] is not None
    )
    every = list(dict.fromkeys([*labels, *sorted({true for true, _ in pairs})]))
    return ConfusionMatrix(every, [[pairs[true, guess] for guess in (*every, "")] for true in every])
