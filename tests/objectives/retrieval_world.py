"""A world of images of several coloured things, each with captions that name some or all of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from objectives.objectives_world import CONTRACT, MODEL, World, job

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.metrics.evaluation import Evaluation
from vbert.model.start import Initialization
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.objectives import objective
from vbert.objectives.downstream import run_finetune, run_predict, run_score
from vbert.objectives.retrieval import RetrievalEvaluateSettings, RetrievalSettings
from vbert.objectives.trained import Model
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard
from vbert.training.sampler import generator

THINGS = ("dog", "cat", "cup", "hat", "car", "bed", "fox", "pen")
BRIEF = {"data": "world", "steps": 60, "batch_size": 16, "learning_rate": 3e-3, "validation_examples": 24}


def make_retrieval_world(folder: Path) -> World:
    """56 images of three of eight things, a third of them in each split; the first caption names all three, the second
    one of them."""
    for part in ("examples", "shards", "vocabulary"):
        (folder / part).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    samples = []
    for i, things in enumerate(combinations(range(len(THINGS)), 3)):
        draw = generator("retrieval world", i)
        name, split = f"images/COCO_{i:012d}.jpg", ("train", "val", "test")[i % 3]
        names = [THINGS[k] for k in draw.permutation(things)]
        captions = (f"a {names[0]} a {names[1]} and a {names[2]}", f"there is a {names[0]}")
        rows += [
            {"example_id": f"{i:03d}/{k}/{10 * i + k:06d}", "kind": "caption", "image_ids": [name], "split": split,
             "text": text, "question_type": ("all", "one")[k], "unique": not k}
            for k, text in enumerate(captions)
        ]  # fmt: skip
        features = 0.1 * draw.standard_normal((3, 12))
        features[np.arange(3), things] += 2
        boxes = np.array([[0, 0, 64, 64]] * 3, np.float32)
        samples.append(RegionSample(name, "0" * 64, 64, 64, features.astype(np.float16), boxes, [1.0] * 3,
                                    ["thing"] * 3, [[]] * 3))  # fmt: skip
    write_examples(folder / "examples", rows)
    write_contents(folder / "shards", [write_shard(folder / "shards", 0, samples)], [], CONTRACT)
    settings = VocabularySettings(size=200, min_frequency=1)
    write_vocabulary(folder / "vocabulary", train_tokens([row["text"] for row in rows], settings), settings)
    return World(Examples.at(folder / "examples"), Shards.at(folder / "shards"), Vocabulary.at(folder / "vocabulary"))


def finetune(folder: Path, world: World, start: Any = None, sizes: Any = MODEL, **changes: Any) -> Model:
    settings = RetrievalSettings.model_validate({"objective": "retrieval", **BRIEF, "dual": 16, **changes})
    start = start or Initialization(world.vocabulary, sizes)
    here = job(folder, checkpoint_steps=4)
    run_finetune(here, world.examples, world.shards, start, objective("retrieval"), settings, Numerics(), 3)
    return Model.at(folder / "out")


def evaluate(folder: Path, world: World, model: Model, split: str = "test", **changes: Any) -> Evaluation:
    settings, plugin = RetrievalEvaluateSettings.model_validate({"resamples": 50, **changes}), objective("retrieval")
    inputs = (model, world.examples, world.shards, plugin, settings, split)
    run_predict(job(folder), *inputs, Numerics())
    run_score(job(folder), *inputs)
    return Evaluation.at(folder / "out")
