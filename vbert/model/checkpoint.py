"""BERT checkpoints as the world writes them, in one form: names, tensors and configuration of `BertWeights`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vbert.artifacts.errors import UserError
from vbert.model.trained import write_json
from vbert.model.vocabulary import CONFIG, VOCABULARY, TextRules, read_rules, read_tokens, write_vocabulary

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the first one found is read
FILES = ("config.json", VOCABULARY, CONFIG, *WEIGHTS)  # what is looked for in a checkpoint
INSIDE = ("embeddings.", "encoder.", "pooler.")  # an encoder saved without its prefix
NOT_WEIGHTS = ("position_ids",)  # index buffers that older releases saved

Tensors = dict[str, Tensor]


def read_tensors(folder: Path) -> Tensors:
    """The tensors of a checkpoint folder: safetensors (whole or in shards), else pytorch_model.bin.

    A pickle is read by `torch.load(weights_only=True)`, which makes nothing but tensors; there is no fall-back.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: no weights: one of {', '.join(WEIGHTS)} must be there")
    if found.name == WEIGHTS[0]:
        return _safetensors(found)
    if found.name == WEIGHTS[1]:
        parts = sorted(set(read_json(found)["weight_map"].values()))
        if bad := [part for part in parts if Path(part).name != part]:
            raise UserError(f"{found}: shard {bad[0]!r} is not a file name beside it")
        return {name: tensor for part in parts for name, tensor in _safetensors(folder / part).items()}
    try:
        loaded = torch.load(found, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{found}: not plain weights, so it is not loaded; convert it to safetensors where you trust it", str(error)
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{found}: holds a {type(loaded).__name__}, not named tensors")
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own type and OSError
        raise UserError(f"{path}: not readable as safetensors ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Same tensors, same bytes: contiguous, on the CPU, one metadata key (transformers asks for it)."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}: is it a checkpoint's folder?") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a JSON object")
    return loaded


def current_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """Old spellings brought up to date: LayerNorm.gamma and .beta; the masked language bias under `decoder`.

    Index buffers go, and the decoder's weight, a copy of the word embeddings. Raises UserError where it is no copy.
    """
    out: Tensors = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.endswith(NOT_WEIGHTS):
            out[name] = tensor
    decoder = out.pop("cls.predictions.decoder.weight", None)
    words = next((t for n, t in out.items() if n.endswith("embeddings.word_embeddings.weight")), None)
    if decoder is not None and (words is None or not torch.equal(decoder, words)):
        raise UserError("cls.predictions.decoder.weight differs from the word embeddings: an untied decoder can't load")
    bias = out.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        out.setdefault("cls.predictions.bias", bias)
    return out


def bert_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """A BERT's tensors as transformers' BertForPreTraining names them: `bert.…` and `cls.…`, whatever the source."""
    current = current_names(tensors)
    if "bert.embeddings.word_embeddings.weight" in current:
        return current
    if "embeddings.word_embeddings.weight" not in current:
        raise UserError(
            "no BERT: there is neither bert.embeddings.word_embeddings.weight nor the same without `bert.`",
            "found: " + ", ".join(sorted(current)[:8]),
        )
    return {f"bert.{name}" if name.startswith(INSIDE) else name: tensor for name, tensor in current.items()}


def write_bert(directory: Path, folder: Path) -> dict[str, Any]:
    """Writes the files of a `BertWeights` from the checkpoint in `folder`, checked; returns figures."""
    config = read_json(folder / "config.json")
    kind, positions = config.get("model_type", "bert"), config.get("position_embedding_type", "absolute")
    if kind != "bert":
        raise UserError(f"{folder}/config.json: model_type is {kind!r}; only `bert` can start a VisualBERT")
    if positions != "absolute":
        raise UserError(f"{folder}/config.json: position_embedding_type {positions!r} is not BERT's; `absolute` is")
    tensors = {name: tensor.float() for name, tensor in bert_tensors(read_tensors(folder)).items()}
    rules = read_rules(folder / CONFIG) if (folder / CONFIG).is_file() else TextRules()
    if not (folder / VOCABULARY).is_file():
        raise UserError(f"{folder}: no {VOCABULARY}: a BERT without its vocabulary can't read text")
    encoder = write_vocabulary(directory, read_tokens(folder / VOCABULARY), rules)
    rows = tensors["bert.embeddings.word_embeddings.weight"].shape[0]
    if encoder.size > rows:
        raise UserError(f"{folder}: {VOCABULARY} has {encoder.size} tokens, the word embeddings {rows} rows")
    write_tensors(directory / WEIGHTS[0], tensors)
    write_json(directory / "config.json", {**config, "model_type": "bert", "architectures": ["BertForPreTraining"]})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return {"tensors": len(tensors), "parameters": numbers, "pieces": encoder.size}
