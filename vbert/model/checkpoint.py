"""Published BERT checkpoints, converted to one form: the names, tensors and configuration of `BertWeights`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vbert.data.weight_files import read_weights, some_of, unwrapped
from vbert.errors import UserError
from vbert.model.config import SIZES, ModelSettings
from vbert.model.positions import extended
from vbert.model.vocabulary import CONFIG, VOCABULARY, TextRules, read_rules, read_tokens, write_json, write_vocabulary

# The first one found is read.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = "tokenizer.json"  # the vocabulary as the library `tokenizers` writes it, read where vocab.txt is missing
FILES = ("config.json", VOCABULARY, CONFIG, TOKENIZER, *WEIGHTS)  # the files of a checkpoint
INSIDE = ("embeddings.", "encoder.", "pooler.")  # an encoder saved without its prefix
NOT_WEIGHTS = ("position_ids", "token_type_ids")  # index buffers that older releases saved
TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer", "TokenizersBackend")

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]


def read_tensors(folder: Path) -> Tensors:
    """The tensors of a checkpoint folder, whole or in shards; see `vbert.data.weight_files`. Raises UserError."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no weights: one of {', '.join(WEIGHTS)} must be there")
    if not weights.name.endswith(".index.json"):
        return _read(weights)
    places = read_json(weights).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{weights}: no `weight_map` of tensors and the files they are in")
    out: Tensors = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part:
            raise UserError(f"{weights}: shard {part!r} is not a file name beside it")
        if not (folder / part).is_file():
            raise UserError(f"{weights}: its shard {part} is not there; fetch or copy it too")
        out |= _read(folder / part)
    if absent := sorted(unwrapped(dict.fromkeys(places, torch.empty(0))).keys() - out.keys()):
        raise UserError(f"{weights}: {len(absent)} of its tensors are in no shard: {some_of(absent)}")
    return out


def _read(path: Path) -> Tensors:
    try:
        return read_weights(path)
    except UserError as error:
        raise UserError(f"{path.parent}/{error.message}", error.details) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Same tensors, same bytes: contiguous, on the CPU, one metadata key (transformers asks for it)."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}: is it a checkpoint's folder?") from None
    except (ValueError, RecursionError) as error:
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


def write_bert(directory: Path, folder: Path, max_positions: int | None = None) -> dict[str, Any]:
    """Writes the files of a `BertWeights` from the checkpoint in `folder`, checked whole; returns figures.

    max_positions: rows that its table of positions is extended to, see `vbert.model.positions`.

    Raises UserError where weights, configuration and vocabulary don't fit each other, or training couldn't use them.
    """
    config = read_json(folder / "config.json")
    kind, positions = config.get("model_type", "bert"), config.get("position_embedding_type", "absolute")
    if kind != "bert":
        raise UserError(f"{folder}/config.json: model_type is {kind!r}; only `bert` can start a VisualBERT")
    if positions != "absolute":
        raise UserError(f"{folder}/config.json: position_embedding_type {positions!r} is not BERT's; `absolute` is")
    sizes = _sizes(config, f"{folder}/config.json")
    tokens, rules = read_text(folder)
    tensors = {name: tensor.float() for name, tensor in bert_tensors(read_tensors(folder)).items()}
    _check_shapes(tensors, sizes, str(folder))
    encoder = write_vocabulary(directory, tokens, rules)
    rows = tensors["bert.embeddings.word_embeddings.weight"].shape[0]
    if encoder.size > rows:
        raise UserError(f"{folder}: {VOCABULARY} has {encoder.size} tokens, the word embeddings {rows} rows")
    if max_positions is not None:
        name = "bert.embeddings.position_embeddings.weight"
        tensors[name] = extended(tensors[name], max_positions, str(folder))
        config = {**config, SIZES["max_positions"]: max_positions}
    write_tensors(directory / WEIGHTS[0], tensors)
    write_json(directory / "config.json", {**config, "model_type": "bert", "architectures": ["BertForPreTraining"]})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return {"tensors": len(tensors), "parameters": numbers, "pieces": encoder.size}


def _sizes(config: Mapping[str, Any], where: str) -> ModelSettings:
    """The sizes that config.json says. Raises UserError for those that no model here has."""
    try:
        return ModelSettings.model_validate(
            {ours: config[theirs] for ours, theirs in SIZES.items() if theirs in config}
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = SIZES.get(str(fault["loc"][0]), "") if fault["loc"] else ""
        given = f"{field} {config[field]!r:.60}: " if field in config else ""
        raise UserError(f"{where}: {given}{fault['msg'].removeprefix('Value error, ')}") from None


def _check_shapes(tensors: Tensors, sizes: ModelSettings, where: str) -> None:
    """Check for exactly the tensors of a BERT of these sizes; its pooler and heads may be missing."""
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    words = tensors["bert.embeddings.word_embeddings.weight"]
    rows = len(words) if words.dim() else 0
    wanted: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (rows, hidden),
        "bert.embeddings.position_embeddings.weight": (sizes.max_positions, hidden),
        "bert.embeddings.token_type_embeddings.weight": (sizes.type_vocab, hidden),
    } | _pair("bert.embeddings.LayerNorm", hidden)
    for i in range(sizes.layers):
        layer = f"bert.encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            wanted |= _pair(f"{layer}.{part}", hidden, hidden)
        wanted |= _pair(f"{layer}.attention.output.LayerNorm", hidden)
        wanted |= _pair(f"{layer}.intermediate.dense", inner, hidden) | _pair(f"{layer}.output.dense", hidden, inner)
        wanted |= _pair(f"{layer}.output.LayerNorm", hidden)
    optional = _pair("bert.pooler.dense", hidden, hidden) | _pair("cls.predictions.transform.dense", hidden, hidden)
    optional |= _pair("cls.predictions.transform.LayerNorm", hidden) | _pair("cls.seq_relationship", 2, hidden)
    optional["cls.predictions.bias"] = (rows,)
    known = wanted | optional
    faults = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name.startswith("bert.") and name not in known],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} for {list(shape)}"
            for name, shape in known.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    if listed := [f"{len(names)} tensors {fault}: {some_of(names)}" for fault, names in faults.items() if names]:
        details = "\n".join(f"{fault}: {name}" for fault, names in faults.items() for name in names)
        raise UserError(
            f"{where}: its weights are not those of its config.json ({sizes.layers} layers of {hidden}): "
            f"{'; '.join(listed)}",
            details,
        )


def _pair(name: str, out: int, *into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def read_text(folder: Path) -> tuple[list[str], TextRules]:
    """The pieces and the text rules of a checkpoint. Raises UserError where they are unknown."""
    whole = _tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    if (folder / VOCABULARY).is_file():
        tokens = read_tokens(folder / VOCABULARY)
    elif whole is not None:
        tokens = whole[0]
    else:
        raise UserError(f"{folder}: no {VOCABULARY} (nor {TOKENIZER}): a BERT without its vocabulary can't read text")
    config = folder / CONFIG
    stated = read_rules(config).model_dump(exclude_unset=True) if config.is_file() else {}
    if config.is_file() and (kind := read_json(config).get("tokenizer_class")) not in (None, *TOKENIZERS):
        raise UserError(f"{config}: tokenizer_class {kind!r:.60} cuts text in a way that BERT's word pieces don't")
    rules = TextRules.model_validate({**(whole[1] if whole is not None else {}), **stated})
    cased = [token for token in tokens if token != token.lower() and not (token[:1] == "[" and token[-1:] == "]")]
    if cased and "do_lower_case" not in rules.model_fields_set:
        raise UserError(
            f"{folder}: {VOCABULARY} has {len(cased)} pieces with capitals ({some_of(cased)}), and no {CONFIG} says "
            f'whether text keeps its case; put one beside it: {{"do_lower_case": false}} for a cased model'
        )
    if rules.do_lower_case and cased:
        log.warning(
            "%s says that text is lower-cased: %d of %d pieces have capitals (%s) and are never met",
            config if config.is_file() else folder / TOKENIZER,
            len(cased),
            len(tokens),
            some_of(cased),
        )
    return tokens, rules


def _tokenizer(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The pieces in the order of their ids, and the text rules, of a tokenizer.json."""
    config = read_json(path)
    try:
        ids, normal = config["model"]["vocab"], config.get("normalizer") or {}
        by_id = {at: token for token, at in ids.items()}
        tokens = [by_id[at] for at in range(len(ids))]
        if config["model"].get("type", "WordPiece") != "WordPiece" or not all(isinstance(t, str) for t in tokens):
            raise KeyError("WordPiece")
        names = {"lowercase": "do_lower_case", "strip_accents": "strip_accents"}
        names |= {"handle_chinese_chars": "tokenize_chinese_chars"}
        rules = {ours: normal[theirs] for theirs, ours in names.items() if normal.get(theirs) is not None}
        return tokens, TextRules.model_validate(rules).model_dump(exclude_unset=True)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: no word pieces and rules of a BERT ({type(error).__name__}: {error!s:.100})"
        ) from None
