"""Submission files in CSV: one for each part of a split, of the examples that have regions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from vbert.objectives.entry import Prediction, Predictions, Row, Rows


def by_file(rows: Rows, predictions: Predictions) -> dict[str, list[tuple[str, Row, Prediction]]]:
    """predictions.csv, or for parts predictions-test1.csv and the like → (the example's id in its official file,
    example, prediction). An id that several files hold has its file's name before it, `dev_unseen/123`."""
    files: dict[str, list[tuple[str, Row, Prediction]]] = {}
    for row, p in zip(rows, predictions, strict=True):
        if "quarantined" not in p:
            part, name = row["part"], p["example_id"]
            file = files.setdefault(f"predictions-{part}.csv" if part else "predictions.csv", [])
            file.append((name.removeprefix(f"{part}/"), row, p))
    return files


def as_csv(rows: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()
