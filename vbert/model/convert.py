"""Weights between this VisualBERT, transformers' VisualBERT and BERT.

Names: `encoder.…`, `masked_language.…`, `matching.…`, `answer.…` here; `visual_bert.…` and `cls.…` in transformers.
Semantics: here always the original's (visual segment 0, matching label 1 = true pair). A checkpoint that was trained
as transformers documents (visual segment 1, label 0 = true pair) is read and written with `conventions="hf"`, which
exchanges the rows of the visual segment table and of the matching head: an exact change of names, not of numbers.
What was written here says which in config.json.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vbert.data.answers import read_answers
from vbert.errors import UserError, nearest
from vbert.model.bert import BertWeights
from vbert.model.checkpoint import WEIGHTS, Tensors, current_names, read_json, read_tensors, write_tensors
from vbert.model.config import BOX_NUMBERS, SIZES, VisualBertConfig
from vbert.model.heads import AnswerModel, MaskedLanguageHead, MatchingHead, PhraseModel, PretrainingModel
from vbert.model.vocabulary import CONFIG, VOCABULARY, Vocabulary, read_rules, read_tokens, write_json, write_vocabulary

log = logging.getLogger(__name__)
Conventions = Literal["original", "hf"]

EMBEDDINGS = {
    "word.weight": "word_embeddings.weight",
    "position.weight": "position_embeddings.weight",
    "token_type.weight": "token_type_embeddings.weight",
    "visual_position.weight": "visual_position_embeddings.weight",
    "visual_token_type.weight": "visual_token_type_embeddings.weight",
    "visual_projection.weight": "visual_projection.weight",
    "visual_projection.bias": "visual_projection.bias",
    "norm.weight": "LayerNorm.weight",
    "norm.bias": "LayerNorm.bias",
}
LAYER = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}
HEADS = {
    "masked_language.dense.weight": "cls.predictions.transform.dense.weight",
    "masked_language.dense.bias": "cls.predictions.transform.dense.bias",
    "masked_language.norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "masked_language.norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "masked_language.bias": "cls.predictions.bias",
    "matching.dense.weight": "cls.seq_relationship.weight",
    "matching.dense.bias": "cls.seq_relationship.bias",
}
ANSWER = {"answer.dense.weight": "cls.weight", "answer.dense.bias": "cls.bias"}
PHRASE = {
    f"phrase.{part}.{kind}": f"attention.{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")
}
ANSWER_BIAS = "answer.dense.bias"  # has a number for each output of the head
UNUSED = ("attention.value.weight", "attention.value.bias")  # of the phrase head: nothing reads them
STATISTICS = ("encoder.embeddings.feature_mean", "encoder.embeddings.feature_std")
VISUAL = ("visual_position.", "visual_token_type.", "visual_projection.")  # names that no BERT has
SEGMENT = ("encoder.embeddings.visual_token_type.weight",)  # of which conventions exchange rows 0 and 1
MATCHING = ("matching.dense.weight", "matching.dense.bias")


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors by origin. loaded: ours, filled from the checkpoint; created: ours, not in it; ignored: the
    checkpoint's, not ours.
    """

    loaded: tuple[str, ...]
    created: tuple[str, ...]
    ignored: tuple[str, ...]
    answers: tuple[str, ...] = ()  # of a model for question answering, in the order of its logits

    def __str__(self) -> str:
        parts = (("loaded", self.loaded), ("created", self.created), ("ignored", self.ignored))
        return "\n".join(f"{what} {len(names)}: {', '.join(names) or '-'}" for what, names in parts)


AnyModel = PretrainingModel | AnswerModel | PhraseModel


@dataclass(frozen=True)
class Architecture:
    """A class of transformers: `make` builds ours for a number of outputs, `heads` are the names of its heads' tensors
    here and there. optional: heads that a checkpoint may lack."""

    make: Callable[[VisualBertConfig, int], AnyModel]
    heads: Mapping[str, str]
    optional: bool = False


ARCHITECTURES = {
    "VisualBertForPreTraining": Architecture(lambda config, _: PretrainingModel(config), HEADS, optional=True),
    "VisualBertForQuestionAnswering": Architecture(lambda config, n: AnswerModel(config, n), ANSWER),
    "VisualBertForVisualReasoning": Architecture(lambda config, n: AnswerModel(config, n, "pooled"), ANSWER),
    "VisualBertForMultipleChoice": Architecture(lambda config, n: AnswerModel(config, n, "pooled"), ANSWER),
    "VisualBertForRegionToPhraseAlignment": Architecture(lambda config, _: PhraseModel(config), PHRASE),
}


def architecture_of(model: AnyModel) -> str:
    """The class of transformers that computes the same."""
    if isinstance(model, PretrainingModel):
        return "VisualBertForPreTraining"
    if isinstance(model, PhraseModel):
        return "VisualBertForRegionToPhraseAlignment"
    if model.answer.transform is not None:
        raise UserError("a head with MMF's transformation before its linear layer: no class of transformers has that")
    if model.reads == "at":
        return "VisualBertForQuestionAnswering"
    return f"VisualBertFor{'MultipleChoice' if model.answer.dense.out_features == 1 else 'VisualReasoning'}"


def sources(config: VisualBertConfig, heads: Mapping[str, str], prefix: str) -> dict[str, tuple[str, ...]]:
    """For each tensor here, the names of the tensors elsewhere that it is the concatenation of (along dimension 0)."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in heads.items()}
    for ours, theirs in EMBEDDINGS.items():
        table[f"encoder.embeddings.{ours}"] = (f"{prefix}embeddings.{theirs}",)
    for i in range(config.layers):
        for ours, parts in LAYER.items():
            for kind in ("weight", "bias"):
                names = tuple(f"{prefix}encoder.layer.{i}.{part}.{kind}" for part in parts)
                table[f"encoder.layers.{i}.{ours}.{kind}"] = names
    for kind in ("weight", "bias"):
        table[f"encoder.pooler.{kind}"] = (f"{prefix}pooler.dense.{kind}",)
    return table


def load_bert(model: PretrainingModel, bert: BertWeights | Mapping[str, Tensor]) -> LoadReport:
    """Fills `model` with a BERT's weights; visual position and segment tables become copies of the text ones.

    The visual projection keeps its initial weights, as do the pooler and the heads where the BERT has none; BERT's
    next-sentence classifier starts the matching head, as in the original. Raises UserError, naming the tensors, where
    a weight of the encoder is missing, has another shape, or has no place here.
    """
    tensors = dict(bert.tensors() if isinstance(bert, BertWeights) else bert)
    table = sources(model.encoder.config, HEADS, "bert.")
    for ours in list(table):
        if ours.startswith(tuple(f"encoder.embeddings.{name}" for name in VISUAL)):
            del table[ours]
    optional = tuple(ours for ours in table if not ours.startswith("encoder.") or ours.startswith("encoder.pooler."))
    report = fill(model, tensors, table, optional, inside=("bert.",))
    model.encoder.copy_text_tables()
    log.info("BERT weights\n%s", report)
    return report


def load_pretrained(
    folder: Path,
    conventions: Conventions | None = None,
    box_input: Literal["none", "append6"] | None = None,
    answers: Path | None = None,
) -> tuple[AnyModel, LoadReport]:
    """A model that `save_pretrained` (transformers' or the one below) wrote, by its `architectures`; one without is
    taken for a pre-trained one.

    conventions: by default those that config.json names, else the original's. box_input: the kind of the last inputs of
    its visual projection; by default that of config.json, else none.
    answers: the file of the answer vocabulary of a model for question answering (`vbert.data.answers`), which is
    refused without one: several of 3,129 answers are about, in different orders. config.json's `id2label` counts too.
    """
    given = read_json(folder / "config.json")
    config = _config(given, box_input, folder)
    tensors = current_names(read_tensors(folder))
    name = stated_architecture(given, folder)
    model, report = assembled(ARCHITECTURES[name], config, tensors, f"{folder}: a {name}")
    count = model.answer.dense.out_features if isinstance(model, AnswerModel) else 0
    if name in ("VisualBertForQuestionAnswering", "VisualBertForVisualReasoning"):
        words = _answers(given, answers, count, folder, needed="Question" in name)
        report = replace(report, answers=words)
    if (conventions or given.get("conventions")) == "hf":
        exchange(dict(model.named_parameters()), (*SEGMENT, *MATCHING))
    log.info("%s\n%s", folder, report)
    return model.eval(), report


def assembled(
    architecture: Architecture, config: VisualBertConfig, tensors: Mapping[str, Tensor], what: str
) -> tuple[AnyModel, LoadReport]:
    """The model of `architecture`, filled with all of `tensors`, which are named as in transformers. what: for errors.

    Raises UserError, naming the tensors, where one is missing, has another shape, or has no place in the model.
    """
    count = 0
    if (name := architecture.heads.get(ANSWER_BIAS)) is not None:
        outputs = tensors.get(name)
        if outputs is None or outputs.dim() != 1:
            raise UserError(f"{what} without `{name}`")
        count = len(outputs)
    model = architecture.make(config, count)
    if isinstance(model, PhraseModel):  # both classes carry pre-training's heads too, and read none of them
        unread = (*UNUSED, *HEADS.values())
        tensors = {name: tensor for name, tensor in tensors.items() if name not in unread}
    prefix = "visual_bert." if any(tensor.startswith("visual_bert.") for tensor in tensors) else ""
    table = sources(config, architecture.heads, prefix)
    optional = tuple(architecture.heads) if architecture.optional else ()
    return model, fill(model, tensors, table, optional, inside=("",))


def stated_architecture(given: Mapping[str, Any], folder: Path) -> str:
    """The first of config.json's `architectures` that is known; of a bare encoder, or where none is stated, that of
    pre-training. Raises UserError for others."""
    stated = given.get("architectures") or ["VisualBertModel"]
    every = stated if isinstance(stated, list) else [stated]
    for one in every:
        if one in ARCHITECTURES:
            return str(one)
    if "VisualBertModel" in every:
        return "VisualBertForPreTraining"
    known = ["VisualBertModel", *ARCHITECTURES]
    hint = nearest(str(every[0]), known)
    raise UserError(f"{folder}/config.json: architectures: {stated!r:.120} is no VisualBERT of transformers; {hint}")


def _answers(given: Mapping[str, Any], path: Path | None, count: int, folder: Path, needed: bool) -> tuple[str, ...]:
    """The labels of a head with `count` rows: the file's, else config.json's; () for neither, unless `needed`."""
    if path is not None:
        words, where = read_answers(path), str(path)
    else:
        labels = given.get("id2label")
        named = {str(k): v for k, v in labels.items() if isinstance(v, str)} if isinstance(labels, dict) else {}
        words, where = [named.get(str(k), "") for k in range(count)], f"{folder}/config.json: id2label"
        if len(named) < count or len(set(words)) < count or words[:1] == ["LABEL_0"]:
            if not needed:
                return ()
            raise UserError(
                f"{folder}: an answer head of {count:,} rows without the answers that they stand for: give the file of "
                "its vocabulary (`answers: FILE`); vocabularies of equal length differ in order and content"
            )
    if len(words) != count:
        raise UserError(f"answers: {where} has {len(words):,} answers, the head of {folder} {count:,} rows")
    return tuple(words)


def save_pretrained(
    model: AnyModel,
    folder: Path,
    conventions: Conventions = "original",
    vocabulary: Vocabulary | None = None,
    answers: Sequence[str] = (),
) -> None:
    """Writes `model` so that transformers' `from_pretrained(folder)` gives the same numbers.

    The standardisation of the visual input is folded into the visual projection, so the folder's model takes raw
    features. `box_input`, `conventions` and the answers (`id2label`) are written to config.json.
    """
    rows = model.answer.dense.out_features if isinstance(model, AnswerModel) else 0
    if answers and (len(answers) != rows or len(set(answers)) != rows):
        raise UserError(
            f"answers: {len(set(answers)):,} different ones for a head of {rows:,} rows: each needs its own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = model.encoder.config
    state = folded({name: t.detach().clone() for name, t in model.state_dict().items()})
    if conventions == "hf":
        exchange(state, (*SEGMENT, *MATCHING))
    name = architecture_of(model)
    table = sources(config, ARCHITECTURES[name].heads, "visual_bert.")
    tensors: Tensors = {}
    for ours, theirs in table.items():
        tensors.update(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
    if isinstance(model, PhraseModel):
        tensors |= _unread(config, tensors)
    write_tensors(folder / WEIGHTS[0], tensors)
    exported: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    exported |= {
        "architectures": [name],
        "model_type": "visual_bert",
        "vocab_size": config.vocab_size,
        "visual_embedding_dim": config.visual_input,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "box_input": config.box_input,
        "conventions": conventions,
        "pad_token_id": 0,
    }
    if isinstance(model, AnswerModel):
        exported |= {"num_labels": model.answer.dense.out_features}
    if answers:
        exported |= {
            "id2label": {str(k): answer for k, answer in enumerate(answers)},
            "label2id": {answer: k for k, answer in enumerate(answers)},
        }
    write_json(folder / "config.json", exported)
    if vocabulary is not None:
        write_vocabulary(folder, read_tokens(vocabulary.file(VOCABULARY)), read_rules(vocabulary.file(CONFIG)))


def _unread(config: VisualBertConfig, tensors: Tensors) -> Tensors:
    """What transformers' class for phrases holds and never reads: values, as zeros, and pre-training's heads, fresh."""
    like = ("attention.key.weight", "attention.key.bias")
    draw = torch.Generator().manual_seed(0)
    heads = nn.ModuleDict(
        {"masked_language": MaskedLanguageHead(config, draw), "matching": MatchingHead(config, draw)}
    ).state_dict()
    values = {theirs: torch.zeros_like(tensors[key]) for theirs, key in zip(UNUSED, like, strict=True)}
    return values | {theirs: heads[ours] for ours, theirs in HEADS.items()}


def folded(state: Tensors) -> Tensors:
    """`state` without the statistics of the visual input: W((x - m) / s) + b = (W / s) x + (b - (W / s) m).

    Computed in float64, so that only the rounding of the result is left.
    """
    out = dict(state)
    if STATISTICS[0] in out:
        mean, std = (out.pop(name).double() for name in STATISTICS)
        name = "encoder.embeddings.visual_projection"
        weight = out[f"{name}.weight"].double() / std
        bias = out[f"{name}.bias"].double() - weight @ mean
        dtype = out[f"{name}.weight"].dtype
        out[f"{name}.weight"], out[f"{name}.bias"] = weight.to(dtype), bias.to(dtype)
    return out


@torch.no_grad()
def fill(
    model: nn.Module,
    given: Mapping[str, Tensor],
    table: Mapping[str, tuple[str, ...]],
    optional: tuple[str, ...],
    inside: tuple[str, ...],
) -> LoadReport:
    """Copies `given` into `model` by `table`; tensors of `given` that start with `inside` must all have a place."""
    state = model.state_dict()
    used: set[str] = set()
    loaded, problems = [], []
    for ours, theirs in table.items():
        missing = [name for name in theirs if name not in given]
        if len(missing) == len(theirs) and ours in optional:
            continue
        if missing:
            problems += [f"missing {name} (for {ours})" for name in missing]
            continue
        used.update(theirs)
        parts = [given[name] for name in theirs]
        if len({part.shape[1:] for part in parts}) > 1 or not all(part.dim() for part in parts):
            problems.append(f"shapes of {' + '.join(theirs)}: {' and '.join(str(list(p.shape)) for p in parts)}")
            continue
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if joined.shape != state[ours].shape:
            shapes = f"{list(joined.shape)} instead of {list(state[ours].shape)}"
            problems.append(f"shape of {' + '.join(theirs)}: {shapes} (for {ours})")
            continue
        state[ours].copy_(joined)
        loaded.append(ours)
    ignored = sorted(name for name in given if name not in used)
    problems += [f"no place for {name}" for name in ignored if name.startswith(inside)]
    if problems:
        raise UserError(
            f"the checkpoint does not fit the model: {len(problems)} tensors differ; compare their config.json",
            "\n".join(problems[:20]),
        )
    created = [name for name in state if name not in set(loaded) and name not in STATISTICS]
    return LoadReport(tuple(loaded), tuple(created), tuple(ignored))


def _config(given: Mapping[str, Any], box_input: Any, folder: Path) -> VisualBertConfig:
    if given.get("model_type") != "visual_bert":
        raise UserError(f"{folder}/config.json: model_type is {given.get('model_type')!r}, not 'visual_bert'")
    if given.get("bypass_transformer"):
        raise UserError(f"{folder}/config.json: bypass_transformer is not supported")
    box_input = box_input or given.get("box_input", "none")
    numbers = BOX_NUMBERS if box_input == "append6" else 0
    try:
        return VisualBertConfig.model_validate(
            {ours: given[theirs] for ours, theirs in SIZES.items() if theirs in given}
            | {
                "vocab_size": given.get("vocab_size", 30522),
                "visual_dim": given.get("visual_embedding_dim", 512) - numbers,
                "hidden_dropout": given.get("hidden_dropout_prob", 0.1),
                "attention_dropout": given.get("attention_probs_dropout_prob", 0.1),
                "box_input": box_input,
                "standardise": False,
            }
        )
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}/config.json: no sizes of a VisualBERT that can be built here: {reason:.300}"
        ) from None


@torch.no_grad()
def exchange(tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Exchanges rows 0 and 1 of the tensors `names`, whose meaning differs between the conventions, in place."""
    for name in names:
        if name in tensors:
            rows = tensors[name]
            rows[:2] = rows[:2].flip(0)
