"""A small world of one coloured shape an image, with true features: examples, shards and a vocabulary on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.steps.stage import Job, Machine
from vbert.data.examples import Examples, write_examples
from vbert.model.config import ModelSettings
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.regions.boxes import Adaptive, Nms
from vbert.regions.contract import Contract, Preprocessing
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard
from vbert.training.sampler import generator

SHAPES, COLOURS = ("circle", "square", "cross"), ("red", "green", "blue", "black")
DIM = 12
MODEL = ModelSettings(hidden_size=64, layers=1, heads=2, max_positions=40, hidden_dropout=0.0, attention_dropout=0.0)
CONTRACT = Contract(
    detector="none",
    backend=Plugin(name="none", version=1),
    weights="0" * 64,
    layer="fc7",
    dim=DIM,
    boxes=Adaptive(),
    nms=Nms(),
    features_of="proposals",
    preprocessing=Preprocessing(),
)


class World(NamedTuple):
    examples: Examples
    shards: Shards
    vocabulary: Vocabulary


def make_world(folder: Path, images: int = 60, missing: int = 2, labelled_test: bool = True) -> World:
    """`images` images, every fifth of split val, every fifth of test; the first `missing` ones have no regions."""
    rows: list[dict[str, Any]] = []
    samples = []
    for i in range(images):
        rng = generator("world", i)
        name, shape, colour = f"{i:03d}", SHAPES[i % 3], COLOURS[i // 3 % 4]
        split = {3: "val", 4: "test"}.get(i // 12 % 5, "train")
        rows += _texts(name, shape, colour, split, labelled_test)
        if i < missing:
            continue
        count = int(rng.integers(1, 4))
        features = 0.1 * rng.standard_normal((count, DIM))
        features[:, SHAPES.index(shape)] += 1
        features[:, 3 + COLOURS.index(colour)] += 1
        features[:, 11] = 5  # says nothing: its deviation counts as 1
        corner = rng.uniform(0, 30, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (count, 2))], 1)
        samples.append(
            RegionSample(name, "0" * 64, 64, 64, features.astype(np.float16), boxes.astype(np.float32), [1.0] * count,
                   [shape] * count, [[colour]] * count)
        )  # fmt: skip
    for part in ("examples", "shards", "vocabulary"):
        (folder / part).mkdir(parents=True)
    write_examples(folder / "examples", rows)
    index = write_shard(folder / "shards", 0, samples)
    bad = {"image_id": [f"{i:03d}" for i in range(missing)], "path": ["x"] * missing, "reason": ["x"] * missing}
    write_contents(folder / "shards", [index], [{**bad, "detail": ["x"] * missing}], CONTRACT)
    settings = VocabularySettings(size=200, min_frequency=1)
    write_vocabulary(
        folder / "vocabulary", train_tokens([row["text"] for row in rows] + ["yes no"], settings), settings
    )
    return World(Examples.at(folder / "examples"), Shards.at(folder / "shards"), Vocabulary.at(folder / "vocabulary"))


def _texts(name: str, shape: str, colour: str, split: str, labelled: bool) -> list[dict[str, Any]]:
    other = COLOURS[(COLOURS.index(colour) + 1) % 4]
    common = {"image_ids": [name], "split": split}
    captions = [(f"there is a {colour} {shape}", [f"there is a {other} {shape}"]), (f"one {shape} in {colour}", None)]
    questions = [
        ("what shape is it?", shape, "shape"),
        ("what color is it?", colour, "color"),
        (f"is it {other}?", "no", "yes/no"),
        (f"is it {colour}?", "yes", "yes/no"),
    ]
    labelled = labelled or split != "test"
    return [
        {**common, "example_id": f"{name}/c{k}", "kind": "caption", "text": text, "negatives": negatives,
         "changed": negatives and ["color"] * len(negatives), "label": ("true", "false")[k],
         "false_of": None if k else [f"{int(name) + d:03d}" for d in (1, 2, 4)]}
        for k, (text, negatives) in enumerate(captions)
    ] + [
        {**common, "example_id": f"{name}{k}", "kind": "question", "text": text, "question_type": kind,
         "answers": [{"answer": answer, "score": 1.0}] if labelled else None}
        for k, (text, answer, kind) in enumerate(questions)
    ]  # fmt: skip


def job(folder: Path, rank: int = 0, world: int = 1, **machine: Any) -> Job:
    """A job over fresh directories `out` and `scratch` in `folder`."""
    for part in ("out", "scratch"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    settings = {"checkpoint_steps": 20, "loader_workers": 0, "device": "cpu", **machine}
    return Job(folder / "out", folder / "scratch", Machine.model_validate(settings), rank, world)
