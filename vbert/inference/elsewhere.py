"""Names from the literature and other libraries, and what stands for them here: for errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from vbert.errors import UserError, nearest

P = ParamSpec("P")
R = TypeVar("R")

LOADS = 'vbert.VisualBert.load("uclanlp_visualbert_vqa") loads one, head, vocabulary and feature contract with it'
# Classes of transformers (and of papers' code) that `from vbert import …` is tried with.
CLASSES = {
    "VisualBertTokenizer": "it is in no library: `vbert.VisualBert.load(…).encoder` has the model's word pieces",
    "VisualBertTokenizerFast": "it is in no library: `vbert.VisualBert.load(…).encoder` has the model's word pieces",
    "VisualBertProcessor": "it is in no library: `vbert.VisualBert` takes photos and texts as they are",
    "VisualBertImageProcessor": "it is in no library: the model's detector reads photos, `VisualBert.regions(image)`",
    "VisualBertFeatureExtractor": "it is in no library: the model's detector reads photos, `VisualBert.regions(image)`",
    "VisualBertConfig": "a recipe's `model` says the sizes; `vbert show --fields model` lists them",
    "VisualBertModel": LOADS,
    "VisualBertForPreTraining": LOADS,
    "VisualBertForQuestionAnswering": LOADS,
    "VisualBertForVisualReasoning": LOADS,
    "VisualBertForMultipleChoice": LOADS,
    "VisualBertForRegionToPhraseAlignment": LOADS,
}
IMAGE = "a VisualBERT reads no pixels: give `image`, whose regions its detector finds, or `regions`"
# Arguments of transformers' models.
ARGUMENTS = {
    "pixel_values": IMAGE,
    "images": IMAGE,
    "visual_embeds": "features are given as `regions`, with their boxes",
    "visual_features": "features are given as `regions`, with their boxes",
    "visual_attention_mask": "nothing is padded: leave it out",
    "attention_mask": "nothing is padded: leave it out",
    "visual_token_type_ids": "the model's spec says them: leave it out",
    "token_type_ids": "a second text is `text_b`: leave it out",
    "input_ids": "give the text itself",
    "return_dict": "results are dataclasses: leave it out",
    "return_tensors": "`encode` gives tensors: leave it out",
    "output_attentions": "`explain` gives attention: leave it out",
    "output_hidden_states": "`encode` gives the states of the last layer: leave it out",
}
# Repositories that are named in papers and posts, and exist nowhere.
REPOSITORIES = {
    "uclanlp/visualbert-base-uncased": "uclanlp_visualbert_vqa_coco_pre (pre-trained on COCO captions)",
    "uclanlp/visualbert": "uclanlp_visualbert_vqa_coco_pre (pre-trained on COCO captions)",
    "visualbert-base": "uclanlp_visualbert_vqa_coco_pre (pre-trained on COCO captions)",
    "visualbert-base-uncased": "uclanlp_visualbert_vqa_coco_pre (pre-trained on COCO captions)",
}


def instead(name: str, known: Sequence[str]) -> str:
    """What to use in place of a name that `vbert` hasn't."""
    return CLASSES.get(name) or nearest(name, known)


def named(method: Callable[P, R]) -> Callable[P, R]:
    """A method whose unknown arguments are refused with what stands for them here."""
    known = [name for name in signature(method).parameters if name != "self"]

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                told: Any = ARGUMENTS.get(name) or nearest(name, known)
                raise UserError(f"{method.__name__} has no argument {name!r}: {told}")
        return method(*args, **kwargs)

    return checked
