"""A small finished experiment on disk, the input of reports; the test chooses every string in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from objectives import objectives_world
from PIL import Image

from flows.graph import graph
from flows.recipe import Recipe
from vbert.artifacts.store.manifest import Manifest
from vbert.data.examples import Examples, write_examples
from vbert.data.images import Images, write_images
from vbert.data.raw import RawFiles, RawWriter
from vbert.explain.explanations import Explanations
from vbert.metrics.evaluation import Evaluation, write_evaluation
from vbert.metrics.metric import ExampleScores, Metric
from vbert.model.config import VisualBertConfig
from vbert.model.heads import AnswerModel
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.objectives.trained import Model, write_model
from vbert.regions.detector import DetectorWeights
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard
from vbert.report.lineage import Lineage, LineageNode, trace_lineage
from vbert.report.page import PAGE, EvaluatedEntry, ReportSettings
from vbert.report.write import write_report

PAGE_SETTINGS = ReportSettings(predictions=2, attention=2)
HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">\'"{{ 7*7 }}&amp;\u202e'
DIM, SIDE = 8, 24
ANSWERS = ("yes", "no", "red")
CONTRACT = objectives_world.CONTRACT.model_copy(update={"dim": DIM})
CURVES = [
    {"step": step, "learning_rate": 1e-3, "loss": 4.0 / step, "validation/accuracy": 1 - 1 / step} for step in (1, 2, 8)
]

MATCHING = {
    "own/other": 0.81,
    "own/altered": 0.74,
    "own/altered/colour": 0.9,
    "own/altered/left and right": 0.58,
    "exchanged/other": 0.52,
    "exchanged/altered": 0.5,
    "none/other": 0.5,
    "none/altered": 0.49,
    "text/other": 0.5,
    "text/altered": 0.62,
}


class World(NamedTuple):
    detector: DetectorWeights
    images: Images
    pretrained: Model
    downstream: dict[str, EvaluatedEntry]


def make_world(folder: Path, word: str = "", count: int = 6) -> World:
    """`count` images, a question each; `word` stands in every id, text, answer, class, reason and name."""
    for part in (
        "raw",
        "images",
        "examples",
        "shards",
        "detector",
        "vocabulary",
        "vocabulary2",
        "model",
        "pretrained",
        "evaluation",
    ):
        (folder / part).mkdir(parents=True)
    ids = [f"{i}{word}" for i in range(count)]
    images = _images(folder, ids, word)
    answers = [f"{answer}{word}" for answer in ANSWERS]
    rows = [
        {
            "example_id": f"q{name}",
            "kind": "question",
            "image_ids": [name],
            "split": "test",
            "text": f"is it red{word} {i}?",
            "question_type": f"kind {i % 2}{word}",
            "answers": [{"answer": answers[i % 3], "score": 1.0}],
        }
        for i, name in enumerate(ids)
    ]
    write_examples(folder / "examples", rows)
    _shards(folder, ids, word)
    _detector(folder, ids, word)
    model = _model(folder / "model", folder / "vocabulary", [row["text"] for row in rows], answers, CURVES)
    pretrained = _model(
        folder / "pretrained", folder / "vocabulary2", [row["text"] for row in rows], answers, matched(word)
    )
    rows.sort(key=lambda row: row["example_id"])
    predictions = [
        {"example_id": row["example_id"], "answer": answers[0], "score": 0.5 + 0.01 * i} for i, row in enumerate(rows)
    ]
    metrics: Mapping[str, Metric] = {
        "accuracy": ExampleScores([float(row["answers"][0]["answer"] == answers[0]) for row in rows]),
        f"accuracy/kind 0{word}": ExampleScores(
            [1.0 if row["question_type"].startswith("kind 0") else None for row in rows]
        ),
    }
    counts = {"examples": count + 1, "answered": count, "quarantined": 1}
    write_evaluation(
        folder / "evaluation",
        predictions=predictions,
        metrics=metrics,
        images=sorted(ids),
        resamples=20,
        counts=counts,
        files={},
    )
    held = EvaluatedEntry(
        model,
        Evaluation.at(folder / "evaluation"),
        images,
        Examples.at(folder / "examples"),
        Shards.at(folder / "shards"),
    )
    return World(DetectorWeights.at(folder / "detector"), images, pretrained, {f"vqa{word}/toy{word}/test": held})


def measured_explanations(folder: Path) -> Explanations:
    """As the stage `explain` writes them: removal ahead of random order, of words and regions as one."""

    def area(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    def method(positive: float, negative: float) -> dict[str, Any]:
        curves = {"positive": [0.9, positive, 0.1], "negative": [0.9, negative, 0.1]}
        over = {"random": area(negative - positive)} if positive != negative else {}
        areas = {"positive": area(positive), "negative": area(negative), "gap": area(negative - positive)}
        return {**areas, "over": over, "curves": curves}

    methods = {"random": method(0.5, 0.5), "removal": method(0.25, 0.75), "attention": method(0.375, 0.5)}
    kinds = {"both": {"examples": 60, "images": 40, "methods": methods}}
    about = {"split": "test", "examples": 60, "metric": "accuracy", "methods": list(methods)}
    (folder / "explanations").mkdir()
    (folder / "explanations" / "explanations.json").write_text(json.dumps({**about, "kinds": kinds}))
    return Explanations.at(folder / "explanations")


def _images(folder: Path, ids: Sequence[str], word: str) -> Images:
    import hashlib

    rows = []
    with RawWriter(folder / "raw") as raw:
        for i, name in enumerate(ids):
            out = BytesIO()
            Image.new("RGB", (SIDE, SIDE), (40 * i % 256, 90, 160)).save(out, "PNG")
            raw.add(f"{i}.png", out.getvalue())
            digest = hashlib.sha256(out.getvalue()).hexdigest()
            row = {"image_id": name, "path": f"own/{i}.png", "sha256": digest, "width": SIDE, "height": SIDE}
            rows.append(row | {"split": "train" if i < 3 else "val"})
    corners = {"x1": 2, "y1": 2, "x2": 12, "y2": 12, "class": f"box{word}"}
    named = [[f"red{word}"] if i in (0, 1, 3) else [f"teal{word}"] for i in range(len(ids))]
    boxes = [corners | {"image_id": name, "attributes": names} for name, names in zip(ids, named, strict=True)]
    write_images(folder / "images", rows, boxes)
    return Images.at(folder / "images").over({"own": RawFiles.at(folder / "raw")})


def _shards(folder: Path, ids: Sequence[str], word: str) -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[2, 2, 12, 12], [8, 8, 20, 22]], np.float32)
    samples = [
        RegionSample(name, "0" * 64, SIDE, SIDE, rng.standard_normal((2, DIM)).astype(np.float16), boxes, [0.9, 0.8],
               [f"box{word}", f"disc{word}"], [[f"red{word}"], []])
        for name in ids
    ]  # fmt: skip
    bad = {"image_id": [f"x{word}"], "path": [f"own/x{word}"], "reason": [f"empty{word}"], "detail": [f"0 B{word}"]}
    write_contents(folder / "shards", [write_shard(folder / "shards", 0, samples)], [bad], CONTRACT)


def _detector(folder: Path, ids: Sequence[str], word: str) -> None:
    told: dict[str, Any] = {"boxes": [[2, 2, 12, 12]], "classes": [f"box{word}"], "attributes": [[f"red{word}"]]}
    row = {"image_id": ids[0], "width": SIDE, "height": SIDE, **told, "scores": [0.97], "truth": told}
    figures = {"map50": 0.9512, "map": 0.7, "attribute_accuracy": 1.0}
    target = folder / "detector"
    about = {"spec": {"attributes": [f"red{word}", f"teal{word}"]}, "classes": [f"box{word}"]}
    (target / "detector.json").write_text(json.dumps(about))
    (target / "detections.jsonl").write_text(json.dumps(row) + "\n")
    (target / "evaluation.json").write_text(json.dumps(figures))
    curves = [{"step": 1, f"loss{word}": 3.0, "loss": 3.0}, {"step": 2, "loss": 1.0, "attribute_accuracy": 0.8}]
    (target / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves))


def matched(word: str) -> list[dict[str, float]]:
    """Curves of a pre-training that matches, `word` in what of a text was altered."""
    shown = {f"validation/match/{name}{word if name.count('/') > 1 else ''}": value for name, value in MATCHING.items()}
    told = {"validation/itm_accuracy": 0.6, "validation/text_only_accuracy": 0.58}
    return [
        {"step": step, "loss": 4.0 / step} | {name: value * part for name, value in (shown | told).items()}
        for step, part in ((1, 0.7), (2, 0.9), (8, 1.0))
    ]


def _model(
    target: Path, vocabulary: Path, texts: Sequence[str], answers: Sequence[str], curves: Sequence[Mapping[str, Any]]
) -> Model:
    settings = VocabularySettings(size=200, min_frequency=1)
    encoder = write_vocabulary(vocabulary, train_tokens(texts, settings), settings)
    config = VisualBertConfig(
        hidden_size=16, layers=2, heads=2, max_positions=256, vocab_size=encoder.size, visual_dim=DIM
    )
    head = {
        "kind": "answer",
        "objective": "vqa",
        "labels": list(answers),
        "answer_at": "mask",
        "loss": "kl",
        "max_text": 200,
        "images": "own",
    }
    write_model(
        target,
        model=AnswerModel(config, len(answers)),
        config=config,
        vocabulary=Vocabulary.at(vocabulary),
        contract=CONTRACT.with_box_input("append6"),
        head=head,
        curves=curves,
    )
    return Model.at(target)


def write_page(folder: Path, world: World, **changes: Any) -> tuple[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    given = {
        "title": "toy",
        "detector": world.detector,
        "images": world.images,
        "pretrained": None,
        "downstream": world.downstream,
        "settings": PAGE_SETTINGS,
    } | changes
    figures = write_report(folder, **given)
    return (folder / PAGE).read_text("utf-8"), figures


def made_by(recipe: Recipe) -> Lineage:
    """The chain of a recipe's report, as if all of it were built."""

    def built(node: LineageNode) -> LineageNode:
        digest = node.key[:40]
        environment = {"processor": "GenuineIntel family 6 model 143", "cores": 2, "commit": digest, "dirty": True}
        return replace(node, manifest=Manifest(
            stage=node.stage, version=1, fingerprint=node.key, hashed={}, step={}, content=node.key, seconds=5025.0,
            figures={"accuracy": 0.98, "examples": 36728}, environment=environment, created="2026-11-28T06:12:00Z"
        ))  # fmt: skip

    found = trace_lineage([graph(recipe)])
    return replace(found, nodes=[built(node) for node in found.nodes])
