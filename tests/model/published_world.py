"""Miniatures of published VisualBERTs, in each form as published: names of tensors, files, formats."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from model.model_batches import hf_config, randomised
from torch import Tensor
from transformers import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)

from vbert.model.vocabulary import SPECIAL, TextRules, write_vocabulary

ANSWERS = ("<unk>", "yes", "no", "red", "two")
SIZES = {"layers": 3, "hidden_size": 24, "heads": 4, "intermediate_size": 96, "max_positions": 512, "type_vocab": 2}
CLASSES = {
    "mlm_itm": VisualBertForPreTraining,
    "vqa": VisualBertForQuestionAnswering,
    "nlvr2": VisualBertForVisualReasoning,
    "choice": VisualBertForMultipleChoice,
    "grounding": VisualBertForRegionToPhraseAlignment,
}
LABELS = {"vqa": len(ANSWERS), "nlvr2": 2}


def transformers_model(objective: str, **changes: Any) -> Any:
    """A model of transformers with random weights, in evaluation."""
    labels = {"num_labels": LABELS[objective]} if objective in LABELS else {}
    return randomised(CLASSES[objective](hf_config(**labels, **changes)))


def words_in(folder: Path, size: int = 61) -> None:
    """A vocabulary of `size` pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder, [*SPECIAL, *(f"w{k}" for k in range(size - 5))], TextRules())


def save_transformers(folder: Path, model: Any, vocabulary: bool = True) -> None:
    """As `save_pretrained` writes it; the published ones come without a vocabulary."""
    model.save_pretrained(folder)
    if vocabulary:
        words_in(folder)


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names → those of the original's `.th`: `bert` (the wrapper's), then `bert`, `cls`, `classifier` or
    `flickr_attention` of TrainVisualBERTObjective."""
    classifier = {"cls.weight": "classifier.weight", "cls.bias": "classifier.bias"}
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids") or name == "cls.predictions.decoder.bias":
            continue
        name = classifier.get(name, name)
        for new, old in (
            ("visual_bert.", "bert."),
            ("attention.query", "attention.query"),
            ("visual_token_type_embeddings", "token_type_embeddings_visual"),
            ("visual_position_embeddings", "position_embeddings_visual"),
            ("visual_projection", "projection"),
        ):
            name = name.replace(new, old)
        if name.startswith(("attention.query", "attention.key", "attention.value")):
            name = f"flickr_{name}"
        out[f"bert.{name}"] = tensor
    return out


def mmf_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names → those of MMF: `model`, then `bert`, `cls` or `classifier`."""
    out = {f"model.{name.removeprefix('bert.')}": tensor for name, tensor in original_names(tensors).items()}
    rows = out["model.bert.embeddings.position_embeddings.weight"].shape[0]
    return out | {"model.bert.embeddings.position_ids": torch.arange(rows)[None]}  # a buffer of MMF's transformers


def with_detector(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VCR's `.th`, which has the ResNet-50 that was trained with the model."""
    return {**tensors, "detector.backbone.0.weight": torch.ones(3, 3), "detector.obj_downsample.1.bias": torch.ones(4)}


def save_pth(path: Path, tensors: Mapping[str, Tensor], within: str) -> None:
    """A zoo's archive of MMF: a folder with the weights and their configuration."""
    folder = path.parent / within
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "model.pth")
    (folder / "config.yaml").write_text("model: visual_bert\n")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=within)


def spec(folder: Path, **changes: Any) -> Path:
    """A spec of the user's own, whose features are those of a detector of 10 numbers."""
    given: dict[str, Any] = {
        "name": "mine",
        "title": "a miniature",
        "licence": "none",
        "homepage": "https://example.org",
        "kind": "visualbert",
        "form": "original",
        "objective": "mlm_itm",
        "features": {"detector": "theirs", "dim": 10, "layer": "fc6", "boxes": {"rule": "fixed", "count": 4}},
        "sizes": SIZES,
    }
    path = folder / "mine.yaml"
    path.write_text(json.dumps({name: value for name, value in {**given, **changes}.items() if value is not None}))
    return path
