"""VisualBERTs under other names than transformers': the original repository's `.th` files and MMF's `.pth`.

Both are state dicts without a configuration: the sizes come from the spec, the vocabulary's and the feature's from the
tensors. Sources of the names: uclanlp/visualbert `models/model.py` (`bert` around `TrainVisualBERTObjective`, whose
encoder is `bert` again) and `pytorch_pretrained_bert/modeling.py`; facebookresearch/mmf `models/visual_bert.py` and
`modules/embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from vbert.data.weight_files import some_of
from vbert.errors import UserError
from vbert.model.checkpoint import Tensors, current_names
from vbert.model.config import BOX_NUMBERS, VisualBertConfig
from vbert.model.convert import ANSWER, ARCHITECTURES, Architecture
from vbert.model.heads import AnswerModel

# Beginnings of names, the first that fits; "" at the end: dropped.
ORIGINAL = (
    ("bert.bert.", "visual_bert."),
    ("bert.cls.", "cls."),
    ("bert.classifier.", "cls."),
    ("bert.flickr_attention.", "attention."),
    ("detector.", ""),  # VCR's ResNet-50, trained with the model
)
MMF = (("bert.", "visual_bert."), ("cls.", "cls."), ("classifier.", "classifier."))
EMBEDDINGS = {
    "embeddings.token_type_embeddings_visual.": "embeddings.visual_token_type_embeddings.",
    "embeddings.position_embeddings_visual.": "embeddings.visual_position_embeddings.",
    "embeddings.projection.": "embeddings.visual_projection.",
}
# MMF's classifier: BERT's transformation of a hidden state, then a linear layer.
CLASSIFIER = {
    "answer.transform.weight": "classifier.0.dense.weight",
    "answer.transform.bias": "classifier.0.dense.bias",
    "answer.norm.weight": "classifier.0.LayerNorm.weight",
    "answer.norm.bias": "classifier.0.LayerNorm.bias",
    "answer.dense.weight": "classifier.1.weight",
    "answer.dense.bias": "classifier.1.bias",
}
CLASSES = {
    "mlm_itm": "VisualBertForPreTraining",
    "vqa": "VisualBertForQuestionAnswering",
    "nlvr2": "VisualBertForVisualReasoning",
    "choice": "VisualBertForMultipleChoice",
    "grounding": "VisualBertForRegionToPhraseAlignment",
}


def renamed(tensors: Mapping[str, Any], form: Literal["original", "mmf"], where: str) -> Tensors:
    """The tensors under transformers' names; those of a detector and index buffers are left out.

    Raises UserError, with the list, for tensors whose names are none of the form's.
    """
    table = ORIGINAL if form == "original" or any(name.startswith("bert.bert.") for name in tensors) else MMF
    out: Tensors = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        begins, becomes = next(((old, new) for old, new in table if name.startswith(old)), ("", ""))
        if not begins:
            strange.append(name)
        elif becomes:
            out[_embeddings(becomes + name.removeprefix(begins))] = tensor
    if strange:
        whose = "the original repository's" if form == "original" else "MMF's"
        raise UserError(
            f"{where}: {len(strange)} of {len(tensors)} tensors have names that are none of {whose} VisualBERT: "
            f"{some_of(strange)}; is `form` right?",
            "\n".join(strange),
        )
    return current_names(out)


def _embeddings(name: str) -> str:
    for old, new in EMBEDDINGS.items():
        name = name.replace(old, new)
    return name


def configuration(
    tensors: Mapping[str, Any], sizes: Mapping[str, Any], box_input: Literal["none", "append6"], where: str
) -> VisualBertConfig:
    """The configuration of the model that `tensors` (transformers' names) are the weights of. Raises UserError."""
    words = tensors.get("visual_bert.embeddings.word_embeddings.weight")
    projection = tensors.get("visual_bert.embeddings.visual_projection.weight")
    if words is None or projection is None or words.dim() != 2 or projection.dim() != 2:
        lacking = "word embeddings" if words is None else "visual projection"
        raise UserError(f"{where}: no VisualBERT: there is no {lacking}", "found: " + ", ".join(sorted(tensors)[:8]))
    numbers = BOX_NUMBERS if box_input == "append6" else 0
    try:
        return VisualBertConfig.model_validate(
            {**sizes, "vocab_size": len(words), "visual_dim": projection.shape[1] - numbers}
            | {"box_input": box_input, "standardise": False}
        )
    except ValidationError as error:
        raise UserError(f"{where}: sizes: {' '.join(str(error).split()):.300}") from None


def architecture(objective: str, answer_at: str, tensors: Mapping[str, Any]) -> tuple[Architecture, str]:
    """(what builds the model of an objective, its name for errors); MMF's classifiers by their own names."""
    reads: Literal["at", "pooled"] = "at" if objective == "vqa" and answer_at != "pooled" else "pooled"
    if any(name.startswith("classifier.") for name in tensors):
        return Architecture(lambda config, n: AnswerModel(config, n, reads, transform=True), CLASSIFIER), "MMF's model"
    if objective == "classification":
        return Architecture(lambda config, n: AnswerModel(config, n), ANSWER), "classifier"
    known = ARCHITECTURES[CLASSES[objective]]
    if known.heads is ANSWER:
        return Architecture(lambda config, n: AnswerModel(config, n, reads), ANSWER), CLASSES[objective]
    return Architecture(known.make, known.heads), CLASSES[objective]  # heads that are stated must be there
