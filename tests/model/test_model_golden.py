"""Golden digests: what the stages `vocabulary` and `bert` make of fixed inputs. Other bits need a new version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tasks.bert import bert
from tasks.vocabulary import vocabulary
from vbert.artifacts.stage import Stage
from vbert.model.checkpoint import write_bert
from vbert.model.vocabulary import SPECIAL, TextRules, VocabularySettings, train_tokens, write_vocabulary

TEXTS = ["what color is the rectangle?", "two small red circles", "Ein naïver Kreis", "这是一只猫。"] * 2


def same(directory: Path, stage: Stage, golden: str) -> None:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    found = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
    assert found == golden, f"stage {stage.name} makes something else: raise its version, then put {found} here"


def test_vocabulary(tmp_path: Path) -> None:
    settings = VocabularySettings(size=120, min_frequency=1)
    write_vocabulary(tmp_path, train_tokens(TEXTS, settings), settings)
    same(tmp_path, vocabulary, "63409cd776d4997647077cb80c29adae9607a0db3159677c27e71dd35e8c5ddc")


def test_bert(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 2, "vocab_size": 6}))
    write_vocabulary(source, [*SPECIAL, "Cat"], TextRules(do_lower_case=False))
    names = {
        "embeddings.word_embeddings.weight": torch.arange(12.0).view(6, 2),
        "embeddings.LayerNorm.gamma": torch.ones(2, dtype=torch.float16),
        "cls.predictions.decoder.bias": torch.zeros(6),
    }
    save_file(names, source / "model.safetensors")
    write_bert(made, source)
    same(made, bert, "e8a7dda7cac2484184120d0ce79bd72c5226e0bc768e24cf1601a73927c220ac")
