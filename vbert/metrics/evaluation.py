"""The artifact of an evaluation: predictions, metrics with intervals, and the official submission file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.metrics.bootstrap import ConfidenceInterval
from vbert.metrics.metric import Metric


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
    metrics: Mapping[str, Metric],
    images: Sequence[str],
    resamples: int,
    counts: Mapping[str, int],
    files: Mapping[str, bytes],
) -> dict[str, float]:
    """Writes the files of an `Evaluation`; images: each example's, for the intervals. Returns the metrics' values;
    one without a value (no example counts) is left out."""
    values, intervals, numbers = {}, {}, dict(counts)
    for name, metric in metrics.items():
        value = metric.value()
        if value is None:
            continue
        values[name] = value
        numbers[name] = len(metric.counted())
        if resamples:
            bounds = asdict(metric.interval(images, resamples))
            intervals[name] = {key: bound for key, bound in bounds.items() if (key, bound) != ("of", "images")}
    lines = (json.dumps(prediction, ensure_ascii=False, sort_keys=True) for prediction in predictions)
    (directory / "predictions.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    document = {"metrics": values, "intervals": intervals, "counts": numbers}
    (directory / "metrics.json").write_bytes((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return values
