"""Soft accuracy, bootstrap intervals and the evaluation's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vbert.metrics.bootstrap import interval, interval_of
from vbert.metrics.evaluation import Evaluation, write_evaluation
from vbert.metrics.metric import ExampleScores
from vbert.metrics.vqa import soft_accuracy


def test_soft_accuracy() -> None:
    answers = [{"answer": "yes", "score": 1.0}, {"answer": "no", "score": 0.3}]
    assert [soft_accuracy(a, answers) for a in ("yes", "no", "maybe")] == [1.0, 0.3, 0.0]


def answers(p: float, correlation: float, images: int, rng: np.random.Generator) -> tuple[list[float], list[str]]:
    """Ten answers an image, right with probability `p` and an intra-image correlation (beta-binomial)."""
    spread = 1 / correlation - 1
    chances = rng.beta(p * spread, (1 - p) * spread, images)
    right = rng.random((images, 10)) < chances[:, None]
    return right.ravel().astype(float).tolist(), [f"{i}" for i in range(images) for _ in range(10)]


@pytest.mark.parametrize(
    ("p", "correlation", "images", "least"),
    [
        (0.8, 0.5, 80, 0.92),
        (0.6, 0.2, 25, 0.91),
        (0.98, 0.3, 200, 0.91),
        (0.999, 0.9, 200, 0.95),
        (0.002, 0.5, 100, 0.95),
    ],
)
def test_intervals_cover_where_answers_about_an_image_go_together(
    p: float, correlation: float, images: int, least: float
) -> None:
    """In simulation, nearly all right and nearly all wrong included; resampling answers: 0.07 to 0.75."""
    rng, hit = np.random.default_rng(0), 0
    for seed in range(200):
        found = interval(*answers(p, correlation, images, rng), 200, seed)
        hit += found.low <= p <= found.high
    assert least <= hit / 200 <= (0.98 if least < 0.95 else 1)


def test_a_perfect_score_has_a_bound_that_holds() -> None:
    """All of 100 images right, ten answers each: as of 100 independent ones, 0.025^(1/100); likewise all wrong."""
    groups = [f"{i}" for i in range(100) for _ in range(10)]
    found = interval([1.0] * 1000, groups, 100)
    assert (found.method, found.groups, found.effective) == ("clopper-pearson", 100, 100)
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 100)), 1)
    found = interval([0.0] * 1000, groups, 100)
    assert (found.low, found.high) == (0, pytest.approx(1 - 0.025 ** (1 / 100)))
    # Images of 1 and of 1,000 answers are not worth two.
    assert interval([1.0] * 1001, ["a", *["b"] * 1000], 100).effective == pytest.approx(1, abs=0.01)
    # Were it so that 3 % of images have wrong answers alone, all of 100 come out right in 4.8 %: the bound covers 0.97.
    assert 0.025 ** (1 / 100) < 0.97


def test_an_interval_of_one_answer_an_image_is_near_the_normal_one() -> None:
    scores = (np.random.default_rng(0).random(2000) < 0.8).astype(float).tolist()
    groups = [f"{i}" for i in range(2000)]
    mean = float(np.mean(scores))
    found = interval(scores, groups, 2000)
    half = 1.96 * float(np.sqrt(mean * (1 - mean) / 2000))
    assert found.low == pytest.approx(mean - half, abs=2e-3)
    assert found.high == pytest.approx(mean + half, abs=2e-3)
    assert found.effective == pytest.approx(2000, rel=1e-3)
    assert interval(scores, groups, 2000) == found


def test_answers_that_are_copies_count_once() -> None:
    rng = np.random.default_rng(1)
    once = (rng.random(300) < 0.7).astype(float)
    alone = interval(once.tolist(), [f"{i}" for i in range(300)], 2000)
    copied = interval(np.repeat(once, 10).tolist(), [f"{i}" for i in range(300) for _ in range(10)], 2000)
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert copied.effective == pytest.approx(300, rel=0.01)


def test_one_image_says_nothing() -> None:
    found = interval([1.0, 0.0, 1.0], ["a"] * 3, 100)
    assert (found.low, found.high, found.method) == (0, 1, "none")


def test_evaluation_files(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path,
        predictions=[{"example_id": "a", "answer": "猫", "score": 0.5}],
        metrics={"accuracy": ExampleScores([1.0, 0.0, None, 1.0]), "accuracy/none": ExampleScores([None] * 4)},
        images=["x", "x", "y", "z"],
        resamples=100,
        counts={"examples": 4},
        files={"results.json": b"[]"},
    )
    found = Evaluation.at(tmp_path)
    assert found.metrics() == {"accuracy": pytest.approx(2 / 3)}
    assert found.counts() == {"accuracy": 3, "examples": 4}
    made = found.intervals()["accuracy"]
    assert made.low < 2 / 3 < made.high
    assert (made.method, made.groups) == ("clopper-pearson", 2)
    assert '"method": "clopper-pearson"' in found.file("metrics.json").read_text()
    assert found.predictions() == [{"example_id": "a", "answer": "猫", "score": 0.5}]
    assert found.names() == ["metrics.json", "predictions.jsonl", "results.json"]


def test_counting_what_is_drawn_gives_the_interval_of_gathering_it() -> None:
    """Whole scores are counted, others gathered; a function of how often examples count draws the same groups."""
    scores, groups = answers(0.6, 0.5, 60, np.random.default_rng(0))
    whole = interval(scores, groups, 500)
    halved = interval([score / 2 for score in scores], groups, 500)
    each = np.array(scores)
    function = interval_of(lambda times: float((times * each).sum() / times.sum()), groups, 500)
    assert whole.method == halved.method == function.method == "bootstrap"
    for other in ((2 * halved.low, 2 * halved.high), (function.low, function.high)):
        assert other == pytest.approx((whole.low, whole.high), abs=1e-12)
