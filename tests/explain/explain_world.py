"""A small untrained model over the world of the objectives' tests, and its explainer."""

from __future__ import annotations

from typing import Any

import torch
from objectives.objectives_world import World
from torch import nn

from vbert.explain.relevance import Explainer
from vbert.model.config import VisualBertConfig
from vbert.objectives import load
from vbert.objectives.batches import ExampleRows
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.entry import EvaluateSettings, Prediction

LABELS = ["yes", "no", "circle", "square", "cross", "red", "green"]
VQA = {"kind": "answer", "labels": LABELS, "answer_at": "mask", "loss": "kl"}


def explainer(world: World, name: str, head: dict[str, Any], split: str = "test", **sizes: Any) -> Explainer:
    encoder, objective = world.vocabulary.encoder(), load(name)
    config = VisualBertConfig(**{
        "hidden_size": 24, "layers": 3, "heads": 2, "max_positions": 64, "vocab_size": encoder.size,
        "visual_dim": world.shards.dim, "initializer_range": 0.4, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        **sizes,
    })  # fmt: skip
    whole = {"max_text": 40, "images": "own", "objective": name, **head}
    network: nn.Module = objective.model(config, whole, 3).eval()
    if config.standardise:
        mean = torch.linspace(-0.2, 0.3, config.visual_input)
        network.get_submodule("encoder").set_statistics(mean, torch.full_like(mean, 0.7))  # type: ignore[operator]
    rows = ExampleRows(world.examples, world.shards, [split], objective.KINDS, evaluated=objective.evaluated)
    side = ObjectiveDataset(objective, whole, encoder, rows, world.shards, config.box_input)
    return Explainer(network, objective, side)


def predictions(of: Explainer, indices: list[int], settings: EvaluateSettings | None = None) -> list[Prediction]:
    return list(of.objective.predict(of.network, of.side, indices, settings or EvaluateSettings()))
