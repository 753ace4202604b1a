"""The artifact of an evaluation: predictions, metrics with intervals, and the official submission file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.metrics.bootstrap import ConfidenceInterval, interval


class Evaluation(Artifact):
    """predictions.jsonl (example_id, answer, score), metrics.json, and the objective's submission file (results.json).

    >>> evaluation = vbert.run("demo").artifact("evaluate[vqa]", vbert.Evaluation)
    >>> 0 <= evaluation.intervals()["accuracy"].low <= evaluation.metrics()["accuracy"] <= 1
    True
    """

    def metrics(self) -> dict[str, float]:
        """Metric → value, e.g. accuracy, accuracy/shape; empty for examples without labels."""
        return dict(self._read()["metrics"])

    def intervals(self) -> dict[str, ConfidenceInterval]:
        """Metric → 95 % interval, with the method it was made by (`vbert.metrics.bootstrap.interval`)."""
        return {name: ConfidenceInterval(**bounds) for name, bounds in self._read()["intervals"].items()}

    def counts(self) -> dict[str, int]:
        """Metric → number of its examples; `examples`: all; `answered`: those predicted; `quarantined`: those whose
        image has no regions, which count as wrong."""
        return dict(self._read()["counts"])

    def predictions(self) -> list[dict[str, Any]]:
        """In the order of the examples; one in quarantine has an empty answer, the score 0 and `quarantined: true`."""
        return [json.loads(line) for line in self.file("predictions.jsonl").read_text("utf-8").splitlines()]

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file("metrics.json").read_bytes())
        return content


def write_evaluation(
    directory: Path,
    *,
    predictions: Iterable[Mapping[str, Any]],
    scores: Mapping[str, Sequence[float | None]],
    groups: Sequence[str],
    resamples: int,
    counts: Mapping[str, int],
    files: Mapping[str, bytes],
) -> dict[str, float]:
    """Writes the files of an `Evaluation`; scores: metric → each example's in [0, 1], None where it doesn't count.
    groups: each example's image. Returns the metrics."""
    metrics, intervals, numbers = {}, {}, dict(counts)
    for name, each in scores.items():
        counted = [i for i, score in enumerate(each) if score is not None]
        if not counted:
            continue
        values = [score for score in each if score is not None]
        metrics[name] = math.fsum(values) / len(values)
        numbers[name] = len(values)
        if resamples:
            intervals[name] = asdict(interval(values, [groups[i] for i in counted], resamples))
    lines = (json.dumps(prediction, ensure_ascii=False, sort_keys=True) for prediction in predictions)
    (directory / "predictions.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    document = {"metrics": metrics, "intervals": intervals, "counts": numbers}
    (directory / "metrics.json").write_bytes((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return metrics
