"""Soft accuracy, bootstrap intervals and the evaluation's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vbert.metrics.bootstrap import interval
from vbert.metrics.evaluation import Evaluation, write_evaluation
from vbert.metrics.vqa import soft_accuracy


def test_soft_accuracy() -> None:
    answers = [{"answer": "yes", "score": 1.0}, {"answer": "no", "score": 0.3}]
    assert [soft_accuracy(a, answers) for a in ("yes", "no", "maybe")] == [1.0, 0.3, 0.0]


def test_interval_is_near_the_normal_one() -> None:
    scores = (np.random.default_rng(0).random(2000) < 0.8).astype(float).tolist()
    mean = float(np.mean(scores))
    low, high = interval(scores, 2000)
    half = 1.96 * float(np.sqrt(mean * (1 - mean) / 2000))
    assert low == pytest.approx(mean - half, abs=2e-3)
    assert high == pytest.approx(mean + half, abs=2e-3)
    assert interval(scores, 2000) == (low, high)


@pytest.mark.parametrize("scores", [[1.0], [1.0] * 5, [0.25] * 3])
def test_interval_of_equal_scores_is_their_value(scores: list[float]) -> None:
    assert interval(scores, 100) == (scores[0], scores[0])


def test_interval_is_exact_for_two_values() -> None:
    """Of {0, 1} the resampled means are 0, ½, 1 with ¼, ½, ¼: the 2.5 % and 97.5 % points are 0 and 1."""
    assert interval([0.0, 1.0], 4000) == (0.0, 1.0)


def test_evaluation_files(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path,
        predictions=[{"example_id": "a", "answer": "猫", "score": 0.5}],
        scores={"accuracy": [1.0, 0.0, None, 1.0], "accuracy/none": [None] * 4},
        resamples=100,
        counts={"examples": 4},
        files={"results.json": b"[]"},
    )
    found = Evaluation.at(tmp_path)
    assert found.metrics() == {"accuracy": pytest.approx(2 / 3)}
    assert found.counts() == {"accuracy": 3, "examples": 4}
    assert found.intervals()["accuracy"][0] <= 2 / 3 <= found.intervals()["accuracy"][1]
    assert found.predictions() == [{"example_id": "a", "answer": "猫", "score": 0.5}]
    assert found.names() == ["metrics.json", "predictions.jsonl", "results.json"]
