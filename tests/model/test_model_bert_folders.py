"""Published BERT folders: read as their makers meant, or refused by the stage that reads them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vbert.data.source import Source
from vbert.errors import UserError
from vbert.model.bert import BertWeights, HubSource, bert_source
from vbert.model.checkpoint import write_bert

H, INNER = 16, 32
LOWER = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "paris", "é"]
CASED = [*LOWER[:-2], "Paris", "The"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": H,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "vocab_size": len(LOWER),
    "hidden_act": "gelu",
}


def tensors(rows: int = len(LOWER)) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (rows, H),
        "embeddings.position_embeddings.weight": (32, H),
        "embeddings.token_type_embeddings.weight": (2, H),
        "encoder.layer.0.intermediate.dense.weight": (INNER, H),
        "encoder.layer.0.intermediate.dense.bias": (INNER,),
        "encoder.layer.0.output.dense.weight": (H, INNER),
        "encoder.layer.0.output.dense.bias": (H,),
    }
    for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        shapes |= {f"encoder.layer.0.{part}.weight": (H, H), f"encoder.layer.0.{part}.bias": (H,)}
    for part in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes |= {f"{part}.LayerNorm.weight": (H,), f"{part}.LayerNorm.bias": (H,)}
    drawn = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=drawn) for name, shape in shapes.items()}


ALL = tensors()


def folder(
    at: Path,
    weights: dict[str, Any] | Callable[[Path], object] | None = None,
    config: Any = CONFIG,
    vocabulary: bytes | None = "\n".join(LOWER).encode(),
    rules: Any = None,
    whole: Any = None,
) -> Path:
    at.mkdir(parents=True)
    (at / "config.json").write_text(json.dumps(config))
    for name, held in (("tokenizer_config.json", rules), ("tokenizer.json", whole)):
        if held is not None:
            (at / name).write_text(json.dumps(held))
    if vocabulary is not None:
        (at / "vocab.txt").write_bytes(vocabulary)
    if callable(weights):
        weights(at)
    else:
        torch.save(ALL if weights is None else weights, at / "pytorch_model.bin")
    return at


def read(tmp_path: Path, **given: Any) -> BertWeights:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    write_bert(out, folder(tmp_path / "bert", **given))
    return BertWeights.at(out)


def index(content: Any, **shards: dict[str, Tensor]) -> Callable[[Path], None]:
    def write(at: Path) -> None:
        (at / "model.safetensors.index.json").write_text(json.dumps(content))
        for name, held in shards.items():
            save_file(held, at / f"{name}.safetensors")

    return write


def tokenizer(pieces: list[str], **normal: Any) -> dict[str, Any]:
    ids = {piece: at for at, piece in enumerate(pieces)}
    return {"model": {"type": "WordPiece", "vocab": ids}, "normalizer": {"type": "BertNormalizer", **normal}}


UNDERSTOOD: dict[str, dict[str, Any]] = {
    "plain": {},
    "module.": {"weights": {f"module.bert.{name}": value for name, value in ALL.items()}},
    "NVIDIA's": {"weights": {"model": {f"bert.{name}": value for name, value in ALL.items()}, "optimizer": {}}},
    "a BOM": {"vocabulary": b"\xef\xbb\xbf" + "\r\n".join(LOWER).encode()},
    "safetensors by another name": {"weights": lambda at: save_file(ALL, at / "pytorch_model.bin")},
    "shards of torch": {
        "weights": lambda at: (
            (at / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(ALL, "p-1.bin")})),
            torch.save(ALL, at / "p-1.bin"),
        )
    },
    "tokenizer.json alone": {"vocabulary": None, "whole": tokenizer(LOWER, lowercase=True)},
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_a_folder_is_read_as_it_was_meant(tmp_path: Path, kind: str) -> None:
    made = read(tmp_path, **UNDERSTOOD[kind])
    assert torch.equal(
        made.tensors()["bert.encoder.layer.0.output.dense.bias"], ALL["encoder.layer.0.output.dense.bias"]
    )
    assert made.vocabulary().encode("The Paris") == [5, 7]


def without(part: str) -> dict[str, Tensor]:
    return {name: value for name, value in ALL.items() if part not in name}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no query": ({"weights": without("query")}, r"2 tensors missing: bert\.encoder\.layer\.0\.attention\.self\.query"),
    "a layer too few": ({"config": {**CONFIG, "num_hidden_layers": 2}}, r"\(2 layers of 16\): 16 tensors missing"),
    "a layer too many": ({"config": {**CONFIG, "num_hidden_layers": 0}}, "num_hidden_layers 0: .*greater than or"),
    "another width": ({"config": {**CONFIG, "intermediate_size": 64}}, r"dense\.weight \[32, 16\] for \[64, 16\]"),
    "a number for a table": (
        {"weights": ALL | {"embeddings.word_embeddings.weight": torch.zeros(())}},
        r"word_embeddings\.weight \[\] for \[0, 16\]",
    ),
    "heads": ({"config": {**CONFIG, "num_attention_heads": 3}}, "hidden_size 16 is not a multiple of heads 3"),
    "activation": ({"config": {**CONFIG, "hidden_act": "swish"}}, "hidden_act 'swish': Input should be 'gelu'"),
    "NaN": ({"weights": ALL | {"pooler.dense.bias": torch.full((H,), torch.nan)}}, r"NaN .*\(pooler\.dense\.bias\)"),
    "8 bits": ({"weights": ALL | {"pooler.dense.bias": torch.ones(H, dtype=torch.int8)}}, "quantised"),
    "no map": ({"weights": index({})}, r"model\.safetensors\.index\.json: no `weight_map`"),
    "a list for a map": ({"weights": index({"weight_map": ["a"]})}, "no `weight_map`"),
    "no shard": (
        {"weights": index({"weight_map": {"a": "model-1.safetensors"}})},
        r"shard model-1\.safetensors is not",
    ),
    "a shard without its tensor": (
        {"weights": index({"weight_map": {"a": "model.safetensors", "b": "m.safetensors"}}, m={"b": torch.ones(1)})},
        "its shard model.safetensors is not there",
    ),
    "cased": ({"vocabulary": "\n".join(CASED).encode()}, r"2 pieces with capitals \(Paris, The\), and no tokenizer_c"),
    "cased, unsaid": ({"vocabulary": "\n".join(CASED).encode(), "rules": {"do_lower_case": None}}, "keeps its case"),
    "no vocabulary": ({"vocabulary": None}, r"no vocab\.txt \(nor tokenizer\.json\)"),
    "another tokenizer": ({"rules": {"tokenizer_class": "BertJapaneseTokenizer"}}, "tokenizer_class 'BertJapaneseTok"),
    "byte pairs": ({"vocabulary": None, "whole": {"model": {"type": "BPE", "vocab": {"a": 0}}}}, "no word pieces"),
    "deep JSON": ({"vocabulary": None, "whole": [1]}, "not a JSON object"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_training_could_not_use_is_refused_by_the_stage(tmp_path: Path, kind: str) -> None:
    given, said = REFUSED[kind]
    with pytest.raises(UserError, match=said):
        read(tmp_path, **given)


def test_a_cased_vocabulary_keeps_its_case_where_that_is_said(tmp_path: Path) -> None:
    cased = "\n".join(CASED).encode()
    made = read(tmp_path / "stated", vocabulary=cased, rules={"do_lower_case": False})
    assert made.vocabulary().encode("The Paris") == [8, 7]
    made = read(tmp_path / "whole", vocabulary=cased, whole=tokenizer(CASED, lowercase=False))
    assert made.vocabulary().encode("The Paris") == [8, 7]


def test_lower_casing_before_a_cased_vocabulary_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path, vocabulary="\n".join(CASED).encode(), rules={"do_lower_case": True})
    assert "2 of 9 pieces have capitals (Paris, The) and are never met" in caplog.text


def test_model_init_takes_a_folder_or_a_spec_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = folder(tmp_path / "my_bert")
    monkeypatch.chdir(tmp_path)
    for where in (str(mine), "./my_bert", "my_bert"):
        assert bert_source(where) == (Source(path=str(mine)), "my_bert")
    spec = {"name": "mine", "title": "Mine", "licence": "none", "homepage": "-", "source": {"path": "my_bert"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(spec))
    assert bert_source("mine.yaml") == (Source(path=str(mine)), "mine")
    assert isinstance(bert_source("bert_base_uncased")[0], HubSource)
    with pytest.raises(UserError, match=r"there is no folder \./your_bert; give that of a BERT"):
        bert_source("./your_bert")
    with pytest.raises(UserError, match=r"did you mean 'bert_base_uncased'\?, or give the folder of a BERT"):
        bert_source("bert_base_uncas")
