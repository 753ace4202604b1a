"""Majority baselines beside a report's shares: always the commonest answer, attribute or word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vbert.data.images import Images
from vbert.data.majority import majority
from vbert.errors import BuildError, Damaged, UserError
from vbert.metrics.metric import Metric
from vbert.metrics.retrieval import AT
from vbert.objectives.trained import Model
from vbert.regions.detector import DetectorWeights
from vbert.report.results import DownstreamRun, evaluated_rows


@dataclass(frozen=True)
class MajorityBaseline:
    """The commonest answer, attribute or word in training, and the figure of always predicting it."""

    word: str
    share: float
    drawn: bool = False  # no answer, but what drawing at random gives


@dataclass(frozen=True)
class DetectorBaselines:
    """split: the one that the detector was evaluated on; attributes: split → the baseline of the commonest
    attribute."""

    split: str = "test, or val"
    attributes: Mapping[str, MajorityBaseline] = field(default_factory=dict)


def answer_baselines(run: DownstreamRun, splits: Sequence[str]) -> dict[str, dict[str, MajorityBaseline]]:
    """split → metric → the commonest training answer among the examples that count in the metric, so that each kind of
    question has its own; of retrieval, a random order. Empty where there are no training answers, or no labels to score
    by."""
    from vbert.objectives import OBJECTIVES, load

    if run.objective not in OBJECTIVES or run.metric is None:
        return {}
    objective, head = load(run.objective), run.evaluated.model.head()
    if head.get("kind") == "retrieval":
        return {split: found for split in splits if (found := random_order(evaluated_rows(run, split)))}

    def of(split: str) -> list[dict[str, Any]]:
        return [row for row in evaluated_rows(run, split) if objective.labelled(row)]

    def metrics(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, Metric]:
        predictions = [
            {
                "example_id": row["example_id"],
                "answer": answer,
                "score": 1.0,
                "probabilities": [float(label == answer) for label in head.get("labels", ())],
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
        return objective.metrics(rows, predictions, head)

    counts: dict[str, Counter[str]] = {}
    texts: Counter[str] = Counter()  # of captions: one for all examples, whatever the metric
    if head.get("kind") == "captions":
        texts.update(row["text"] for row in evaluated_rows(run, "train", whole=False))
    else:
        training = of("train")
        best = [_best(row) for row in training]
        for name, metric in metrics(training, best).items():
            counts[name] = Counter(best[i] for i in metric.counted() if best[i])
    baselines: dict[str, dict[str, MajorityBaseline]] = {}
    for split in splits:
        rows = of(split)
        scored: dict[tuple[str, tuple[int, ...]], dict[str, Metric]] = {}  # metrics of captions take long
        for name, metric in metrics(rows, [""] * len(rows)).items():
            if known := texts or counts.get(name):
                answer = majority(known)
                of_answer = (answer, tuple(metric.counted()))
                if of_answer not in scored:
                    labelled = [rows[i] for i in of_answer[1]]
                    scored[of_answer] = metrics(labelled, [answer] * len(labelled))
                value = scored[of_answer][name].value()
                if value is not None:
                    baselines.setdefault(split, {})[name] = MajorityBaseline(answer, value)
    return baselines


def random_order(rows: Sequence[Mapping[str, Any]]) -> dict[str, MajorityBaseline]:
    """Recalls of retrieval where images, and texts, stand in a random order."""
    texts = Counter(row["image_ids"][0] for row in rows)
    found: dict[str, MajorityBaseline] = {}
    for k in AT if texts else ():
        found[f"text_to_image_r{k}"] = MajorityBaseline("a random order", min(1.0, k / len(texts)), True)
        missed = [math.comb(len(rows) - own, k) / math.comb(len(rows), k) for own in texts.values() if len(rows) >= k]
        found[f"image_to_text_r{k}"] = MajorityBaseline("a random order", 1 - math.fsum(missed) / len(texts), True)
    return found


def detector_baselines(detector: DetectorWeights | None, images: Images | None) -> DetectorBaselines:
    """The split of a trained detector's figures, and the baselines of the commonest training attribute."""
    if detector is None or images is None or not detector.detections():
        return DetectorBaselines()
    from vbert.regions.training import BoxDataset, commonest_attribute, held_out_of

    try:
        known = detector.about()["spec"].get("attributes") or ()
        evaluated = held_out_of(images)
        sets = {dataset.split: dataset for dataset in (BoxDataset(images, "val"), evaluated)}
        attributes = {split: commonest_attribute(images, dataset, known) for split, dataset in sets.items()}
    except Damaged:
        raise
    except (BuildError, UserError, OSError):  # the index is missing, or has no boxes
        return DetectorBaselines()
    return DetectorBaselines(
        evaluated.split, {split: MajorityBaseline(*guess) for split, guess in attributes.items() if guess}
    )


def word_baseline(model: Model) -> MajorityBaseline | None:
    """The baseline of the word piece that a pre-training masks most often; None where its data are missing."""
    from vbert.objectives.pretraining.sequences import PretrainingSequences

    if model.step is None:
        return None
    data, settings, seed = (model.input(name) for name in ("data", "settings", "seed"))
    try:
        encoder = model.vocabulary().encoder()
        commonest = PretrainingSequences(data, encoder, model.config(), settings, seed).commonest_word()
    except Damaged:
        raise
    except (BuildError, UserError, OSError):
        return None
    return MajorityBaseline(*commonest) if commonest else None


def _best(row: Mapping[str, Any]) -> str:
    """The example's highest-scoring answer, or its label."""
    if row["answers"]:
        return str(max(row["answers"], key=lambda a: a["score"])["answer"])
    return str(row["label"] or "")
