"""Golden digests of the stages `vocabulary` and `bert` on fixed inputs. Other bits need a new version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tasks.bert import bert
from tasks.vocabulary import vocabulary
from vbert.artifacts.steps.step import Stage
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
    sizes = {"hidden_size": 2, "intermediate_size": 3, "max_position_embeddings": 4, "vocab_size": 6}
    config = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 1, **sizes}
    (source / "config.json").write_text(json.dumps(config))
    write_vocabulary(source, [*SPECIAL, "Cat"], TextRules(do_lower_case=False))
    names = {"embeddings.word_embeddings.weight": torch.arange(12.0).view(6, 2)}
    names["embeddings.position_embeddings.weight"] = torch.arange(8.0).view(4, 2)
    names["embeddings.token_type_embeddings.weight"] = torch.arange(4.0).view(2, 2)
    layer = "encoder.layer.0"
    for part in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        names |= {
            f"{part}.LayerNorm.gamma": torch.ones(2, dtype=torch.float16),
            f"{part}.LayerNorm.beta": torch.ones(2),
        }
    for part, out, into in (
        *((f"attention.self.{name}", 2, 2) for name in ("query", "key", "value")),
        ("attention.output.dense", 2, 2),
        ("intermediate.dense", 3, 2),
        ("output.dense", 2, 3),
    ):
        names |= {f"{layer}.{part}.weight": torch.ones(out, into), f"{layer}.{part}.bias": torch.zeros(out)}
    names["cls.predictions.decoder.bias"] = torch.zeros(6)
    save_file(names, source / "model.safetensors")
    write_bert(made, source)
    same(made, bert, "93d3eea8c02e9f4e94424116587ce86b7b1aeefb7f0ccc07dfa0d3e149c39c27")
