"""A world of images of one colour, with examples of every task that chooses an answer, and the way from it to an
evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from objectives.objectives_world import CONTRACT, MODEL, World, job

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.metrics.evaluation import Evaluation
from vbert.model.start import Initialization
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.objectives import OBJECTIVES, EvaluateSettings, objective
from vbert.objectives.downstream import run_finetune, run_predict, run_score
from vbert.objectives.trained import Model
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard
from vbert.training.sampler import generator

COLOURS = ("red", "green", "blue")
MOODS = {"red": "angry", "green": "glad", "blue": "sad"}
IMAGES = 120
BRIEF = {"data": "world", "steps": 60, "batch_size": 32, "learning_rate": 5e-3, "validation_examples": 24}
TASKS = ("classification", "nlvr2", "choice")  # beside vqa


def texts(i: int, colours: list[str]) -> list[dict[str, Any]]:
    """The rows of an image: its colour asked for, a mood that it tells, two statements that the first of two images
    decides, and two choices whose words tell the right one."""
    name, split = f"{i:03d}", ("train", "train", "train", "val", "test")[i % 5]
    common: dict[str, Any] = {"split": split, "image_ids": [name]}
    rows = [{**common, "example_id": f"m{name}", "kind": "sentiment", "text": "i love it", "label": MOODS[colours[i]]}]
    question = {"example_id": f"q{name}", "kind": "question", "text": "what color is it?"}
    rows.append({**common, **question, "answers": [{"answer": colours[i], "score": 1.0}]})
    other, red = f"{(i + 5) % IMAGES:03d}", str(colours[i] == "red").lower()
    for k, text in enumerate(("the first is red", "red is on the left")):
        rows.append(
            {**common, "image_ids": [name, other], "example_id": f"dev-{i}-{k}-{k}", "kind": "pair", "text": text,
             "label": red, "group": f"dev-{i}"}
        )  # fmt: skip
    for k, order in enumerate((COLOURS, COLOURS[::-1])):
        choices = [
            {"text": f"it is {c}", "phrases": [{"start": 6, "end": 6 + len(c), "boxes": [[0, 0, 64, 64]]}]}
            for c in order
        ]
        rows.append(
            {**common, "example_id": f"c{name}{k}", "kind": "choice", "text": "what is right", "group": f"c{name}",
             "question_type": ("answer", "rationale")[k], "label": str(order.index("green")), "choices": choices}
        )  # fmt: skip
    return rows


def make_tasks_world(folder: Path) -> World:
    """Images of one colour, of the splits train, val and test."""
    for part in ("examples", "shards", "vocabulary"):
        (folder / part).mkdir()
    colours = [COLOURS[int(generator("colour", i).integers(3))] for i in range(IMAGES)]
    rows = [row for i in range(IMAGES) for row in texts(i, colours)]
    samples = []
    for i, colour in enumerate(colours):
        features = 0.1 * generator("features", i).standard_normal((2, 12))
        features[:, COLOURS.index(colour)] += 2
        boxes = np.array([[0, 0, 64, 64], [8, 8, 40, 40]], np.float32)
        samples.append(RegionSample(f"{i:03d}", "0" * 64, 64, 64, features.astype(np.float16), boxes, [1.0, 0.9],
                                    ["thing"] * 2, [[colour]] * 2))  # fmt: skip
    write_examples(folder / "examples", rows)
    write_contents(folder / "shards", [write_shard(folder / "shards", 0, samples)], [], CONTRACT)
    words = [row["text"] for row in rows] + [c["text"] for row in rows for c in row.get("choices", ())]
    settings = VocabularySettings(size=200, min_frequency=1)
    write_vocabulary(folder / "vocabulary", train_tokens(words, settings), settings)
    return World(Examples.at(folder / "examples"), Shards.at(folder / "shards"), Vocabulary.at(folder / "vocabulary"))


def finetune(folder: Path, world: World, name: str, start: Any = None, **changes: Any) -> Model:
    settings = OBJECTIVES[name].settings(**{"objective": name, **BRIEF, **changes})
    start = start or Initialization(world.vocabulary, MODEL)
    run_finetune(job(folder), world.examples, world.shards, start, objective(name), settings, Numerics(), 0)
    return Model.at(folder / "out")


def evaluate(folder: Path, world: World, model: Model, name: str) -> Evaluation:
    settings, plugin = EvaluateSettings(resamples=50), objective(name)
    run_predict(job(folder), model, world.examples, world.shards, plugin, settings, "test", Numerics())
    run_score(job(folder), model, world.examples, world.shards, plugin, settings, "test")
    return Evaluation.at(folder / "out")
