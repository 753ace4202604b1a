"""Untrained models of every objective with the detector of their features, as exported folders; and a few photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from regions.regions_tiny import picture, small_spec, untrained

from vbert.export.folder import write_export
from vbert.model.config import VisualBertConfig
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary
from vbert.objectives import load
from vbert.objectives.trained import Model, write_model
from vbert.regions.boxes import Fixed, Nms
from vbert.regions.detector import DetectorWeights, RegionSettings

SENTENCES = ["what is red ?", "a red square and a blue circle", "the circle on the left is so happy", "这是一只猫。"]
LABELS = ["red", "blue", "no", "yes"]
SETTINGS = RegionSettings(boxes=Fixed(count=4), nms=Nms())
COMMON = {"images": "own", "text": "own", "max_text": 24}
HEADS: dict[str, dict[str, Any]] = {
    "vqa": {"kind": "answer", "labels": LABELS, "answer_at": "mask", "loss": "kl"},
    "nlvr2": {"kind": "answer", "labels": ["false", "true"]},
    "classification": {"kind": "answer", "labels": ["negative", "neutral", "positive"]},
    "choice": {"kind": "choice", "align": False, "cut": "longest"},
    "grounding": {"kind": "phrases", "protocol": "any", "iou": 0.5, "loss": "kl", "as_original": False},
    "retrieval": {"kind": "retrieval", "loss": "cross_entropy", "negatives": "random", "dual": 8, "wrong": 1},
    "captioning": {"kind": "captions", "predict": "mask", "mask": 0.15, "tags": False, "tag_pieces": 10},
    "mlm_itm": {"kind": "pretraining"},
}


def photos(folder: Path, count: int = 6) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        picture(k, 40 + k, 48).save(path)
    return paths


def make_detector(folder: Path) -> DetectorWeights:
    return untrained(folder, small_spec())


def make_export(folder: Path, objective: str, detector: DetectorWeights, **changes: Any) -> Path:
    """An exported folder of an untrained model. changes: of its head.json."""
    vocabulary, made = folder / "vocabulary", folder / "model"
    vocabulary.mkdir(parents=True)
    made.mkdir()
    settings = VocabularySettings(size=100, min_frequency=1)
    encoder = write_vocabulary(vocabulary, train_tokens(SENTENCES, settings), settings)
    sizes = {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 40}
    config = VisualBertConfig(**sizes, vocab_size=encoder.size, visual_dim=32)
    head = {**COMMON, **HEADS[objective], **changes, "objective": objective}
    if objective == "mlm_itm":
        from vbert.model.heads import PretrainingModel

        model: Any = PretrainingModel(config, torch.Generator().manual_seed(0))
    else:
        model = load(objective).model(config, head, 0)
    for weight in model.parameters():  # so that answers differ
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    write_model(
        made,
        model=model,
        config=config,
        vocabulary=Vocabulary.at(vocabulary),
        contract=detector.contract(SETTINGS).with_box_input(config.box_input),
        head=head,
        curves=[],
    )
    out = folder / "exported"
    write_export(out, Model.at(made), detector, title=objective, card="", made_from={})
    return out


def as_image(path: Path) -> Image.Image:
    return Image.open(path)
