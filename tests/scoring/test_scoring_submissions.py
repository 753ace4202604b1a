"""The submission of a published `Evaluation`, scored by `vbert score`, gives metrics.json again, digit for digit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics import vqa_answers
from scoring.score_world import as_json, as_lines

from vbert.metrics.evaluation import Evaluation, write_evaluation


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Evaluation]:
    """The evaluation of predictions by an objective, as the stage writes it."""

    def publish(
        name: str, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], head: dict[str, Any]
    ) -> Evaluation:
        objective = import_module(f"vbert.objectives.{name}")
        write_evaluation(
            tmp_path,
            predictions=predictions,
            metrics=objective.metrics(rows, predictions, head),
            images=[row["example_id"] for row in rows],
            resamples=0,
            counts={"examples": len(rows)},
            files=objective.submission(rows, predictions, head),
        )
        return Evaluation.at(tmp_path)

    return publish


@pytest.fixture
def score(vbert: Any) -> Callable[[str], dict[str, Any]]:
    def call(line: str) -> dict[str, Any]:
        code, out, said = vbert("score", *line.split(), "--json")
        assert code == 0, said
        return dict(json.loads(out.splitlines()[-1]))

    return call


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """As metrics.json has them: the parts of a figure beside the whole, figure/part."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {f"accuracy/{part}": share for part, share in value.items()}
        elif name not in ("scored", "of", "missing"):
            found[name] = value
    return found


def test_vqa(tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]) -> None:
    from vbert.data.readers._answers import soft_targets
    from vbert.data.readers._odd import Odd

    questions, annotations, results = vqa_answers.make(1500)
    rows, predictions = [], []
    for annotation, result in zip(annotations["annotations"], results, strict=True):
        for at, answer in enumerate(annotation["answers"]):
            answer["answer_id"] = at
        given = [answer["answer"] for answer in annotation["answers"]]
        types = {key: annotation[key] for key in ("question_type", "answer_type")}
        name = str(annotation["question_id"])
        rows.append({"example_id": name, "given": given, "answers": soft_targets(given, Odd(), name)} | types)
        predictions.append({"example_id": name, "answer": result["answer"], "score": 0.5})
    predictions[7] = {"example_id": "7", "answer": "", "score": 0.0, "quarantined": True}
    evaluation = published("vqa", rows, predictions, {})
    for name, document in (("questions", questions), ("annotations", annotations)):
        as_json(tmp_path / f"{name}.json", document)
    found = score("vqa --questions questions.json --annotations annotations.json --predictions results.json")
    assert flat(found) == evaluation.metrics()
    assert found["scored"] == evaluation.counts()["accuracy"] == 1500


def test_one_answer(
    tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    rows = [
        {"example_id": f"q{n}", "given": None, "answers": [{"answer": answer, "score": 1.0}]}
        | {"question_type": None, "answer_type": None}
        for n, answer in enumerate(["yes", "no", "red"])
    ]
    predictions = [{"example_id": f"q{n}", "answer": "yes", "score": 0.5} for n in range(3)]
    evaluation = published("vqa", rows, predictions, {})
    as_json(tmp_path / "truth.json", {row["example_id"]: row["answers"][0]["answer"] for row in rows})
    assert (
        flat(score("vqa --protocol exact --annotations truth.json --predictions results.json")) == evaluation.metrics()
    )


def test_classification(
    tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    draw, labels = np.random.default_rng(0), ["a", "b, c", "d"]
    rows = [{"example_id": f"m{n}", "label": labels[int(draw.integers(3))], "question_type": None} for n in range(300)]
    shares = draw.dirichlet([1, 1, 1], 300).round(2)  # so that some are equal
    predictions = [
        {"example_id": row["example_id"], "answer": labels[int(share.argmax())], "probabilities": share.tolist()}
        for row, share in zip(rows, shares, strict=True)
    ]
    predictions[7] = {"example_id": "m7", "answer": "", "score": 0.0, "quarantined": True}
    evaluation = published("classification", rows, predictions, {"labels": labels, "positive": "d"})
    as_lines(tmp_path / "truth.jsonl", [{"id": row["example_id"], "label": row["label"]} for row in rows])
    files = "--annotations truth.jsonl --predictions predictions.csv"
    found = score(f"classification {files} --positive d --missing wrong")
    assert flat(found) == {name: evaluation.metrics()[name] for name in flat(found)}
    assert {"accuracy", "macro_f1", "weighted_f1", "auroc"} == set(flat(found))
