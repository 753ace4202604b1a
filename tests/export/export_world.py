"""A model of random weights and the detector of its features, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vbert.inference.visualbert import VisualBert
from vbert.model.config import ModelSettings, VisualBertConfig
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary
from vbert.objectives import built
from vbert.objectives.trained import Model, write_model
from vbert.regions.boxes import Adaptive, Nms
from vbert.regions.contract import Contract
from vbert.regions.detector import DetectorWeights, RegionSettings, detector_file, write_weights

SIZES = ModelSettings(hidden_size=16, layers=2, heads=2, max_positions=24, hidden_dropout=0.0, attention_dropout=0.0)
WORDS = ("what", "color", "is", "it", "red", "blue", "a", "dog", "##s", "?", "é", "猫", "。")
QUESTION = "what color is the shape?"
VQA = {"objective": "vqa", "kind": "answer", "answer_at": "mask", "max_text": 16, "labels": ["no", "yes", "red"]}


def make_detector(folder: Path) -> DetectorWeights:
    """Of the spec `shapes_cnn`, with one tensor that says nothing: it can be read and not run."""
    folder.mkdir(parents=True)
    write_weights(folder, detector_file("shapes_cnn").spec(), ["circle", "square"], {"a": torch.arange(6.0)})
    return DetectorWeights.at(folder)


def contract_of(detector: DetectorWeights) -> Contract:
    return detector.contract(RegionSettings(boxes=Adaptive(), nms=Nms())).with_box_input("append6")


def make_model(folder: Path, contract: Contract, head: dict[str, Any] = VQA, **sizes: Any) -> Model:
    """Weights scaled up, so that what they change shows; statistics of the visual input that are not 0 and 1."""
    folder.mkdir(parents=True)
    tokens = (*SPECIAL, *WORDS)
    (folder / "vocabulary").mkdir()
    write_vocabulary(folder / "vocabulary", tokens, TextRules())
    vocabulary = Vocabulary.at(folder / "vocabulary")
    given = SIZES.model_dump() | {"vocab_size": len(tokens), "visual_dim": contract.dim} | sizes
    config = VisualBertConfig.model_validate(given)
    network = built(config, head, "test")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("feature_std") else drawn * 0.3)
    out = folder / "model"
    out.mkdir()
    curves = [{"step": 1, "loss": 0.5}]
    write_model(
        out, model=network, config=config, vocabulary=vocabulary, contract=contract, head=head, curves=curves
    )  # fmt: skip
    return Model.at(out)


def picture() -> np.ndarray:
    pixels = np.full((64, 64, 3), 220, np.uint8)
    pixels[16:40, 20:50] = (200, 30, 30)
    return pixels


def said(model: VisualBert) -> tuple[Any, Any]:
    """Its answers about a picture, and the bits that they come of."""
    found = model.regions(picture())
    encoded = model.encode(picture(), QUESTION).last_hidden_state
    return model.answer(picture(), QUESTION, top=100), (found.features.tobytes(), found.boxes.tobytes(), encoded)
