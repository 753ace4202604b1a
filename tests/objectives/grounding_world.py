"""A world of images of several coloured things, with texts whose phrases name some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from objectives.objectives_world import CONTRACT, World

from vbert.data.examples import Examples, write_examples
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard
from vbert.training.sampler import generator

COLOURS = ("red", "green", "blue", "pink")
IMAGES = 150
MISSING = "004"  # of the split test, without regions


def phrase(text: str, words: str, boxes: list[list[float]], kind: str) -> dict[str, Any]:
    start = text.index(words)
    return {"start": start, "end": start + len(words), "boxes": boxes, "types": [kind]}


def row(i: int, colours: list[str], boxes: np.ndarray) -> dict[str, Any]:
    """A text that names two of the image's colours, each with the boxes that have it, and something without a box."""
    name, split = f"{i:03d}", ("train", "train", "train", "val", "test")[i % 5]
    first, second = (colours[k] for k in generator("named", i).permutation(len(colours))[:2])
    text = f"a {first} thing, the {second} one in the evening"

    def of(colour: str) -> list[list[float]]:
        return [box.tolist() for box, its in zip(boxes, colours, strict=True) if its == colour]

    phrases = [
        phrase(text, f"a {first} thing", of(first), "thing"),
        phrase(text, f"the {second} one", of(second), "one"),
        phrase(text, "the evening", [], "none"),
    ]
    common = {"example_id": f"{name}/0", "kind": "phrases", "image_ids": [name], "split": split, "text": text}
    return {**common, "phrases": phrases}


def make_grounding_world(folder: Path, images: int = IMAGES) -> World:
    """`images` images of three things of four colours, every fifth of split val, every fifth of test."""
    for part in ("examples", "shards", "vocabulary"):
        (folder / part).mkdir(parents=True)
    rows, samples = [], []
    for i in range(images):
        rng = generator("things", i)
        colours = [COLOURS[k] for k in rng.integers(0, 4, 3)]
        corner = np.array([[0, 0], [32, 0], [0, 32]]) + rng.uniform(0, 6, (3, 2))
        boxes = np.concatenate([corner, corner + 20], 1).astype(np.float32)
        rows.append(row(i, colours, boxes))
        if f"{i:03d}" == MISSING:
            continue
        features = 0.1 * rng.standard_normal((3, 12))
        features[range(3), [COLOURS.index(colour) for colour in colours]] += 2
        jitter = boxes + rng.uniform(-1, 1, (3, 4)).astype(np.float32)
        samples.append(
            RegionSample(f"{i:03d}", "0" * 64, 64, 64, features.astype(np.float16), jitter, [1.0] * 3, ["thing"] * 3,
                         [[colour] for colour in colours])
        )  # fmt: skip
    write_examples(folder / "examples", rows)
    bad = {"image_id": [MISSING], "path": ["x"], "reason": ["x"], "detail": ["x"]}
    write_contents(folder / "shards", [write_shard(folder / "shards", 0, samples)], [bad], CONTRACT)
    settings = VocabularySettings(size=200, min_frequency=1)
    write_vocabulary(folder / "vocabulary", train_tokens([one["text"] for one in rows], settings), settings)
    return World(Examples.at(folder / "examples"), Shards.at(folder / "shards"), Vocabulary.at(folder / "vocabulary"))
