"""Published VisualBERTs: their specs, beside those of BERTs in `data_specs/models`, and what a `start` names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vbert.artifacts.steps.settings import LocalPath, Settings
from vbert.data.source import Source
from vbert.data.yaml import NestedError, is_yaml
from vbert.errors import UserError, nearest
from vbert.model.bert import MAX_CONFIG, MODELS, HubSource, ModelSpec, known_sizes, model_names, model_spec
from vbert.model.config import BOX_NUMBERS, INT8_STEP, SIZES
from vbert.regions.boxes import BoxRule, NmsRule
from vbert.regions.contract import NAME as CONTRACT
from vbert.regions.contract import BoxInput, Contract, Layer, Preprocessing

PRETRAINED = "mlm_itm"  # the objective of a model without a downstream task's head
HUB = re.compile(r"^(?P<hub>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})$")
KIND = re.compile(r"^kind: visualbert\b", re.MULTILINE)
HEAD, WEIGHTS = "head.json", "model.safetensors"
MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
OWN = (HEAD, "config.json", "contract.json")  # of a model written here, in a folder

Form = Literal["transformers", "original", "mmf", "vbert"]
Objective = Literal["mlm_itm", "vqa", "nlvr2", "choice", "grounding", "classification"]


class Semantics(Settings):
    """What the weights mean, by name; tensors alone don't tell.

    The papers' code has visual segment 0 and the label 1 of a true pair; transformers' documentation has 1 and 0, and
    a model trained as it says means that.
    """

    visual_segment: Literal[0, 1] = Field(0, description="the segment of regions (of the second image: the other one)")
    matching: Literal["one_is_true", "zero_is_true", "untrained"] = Field(
        "one_is_true", description="the label of a true pair of text and image, or that no pair was trained on"
    )
    box_input: BoxInput = Field("none", description="box numbers beside each feature: none, or append6 (x1/W, …)")
    answer_at: Literal["mask", "last", "pooled"] = Field(
        "mask",
        description="the token that an answer to a question is read from: the [MASK] behind it, its last piece, or the "
        "pooled [CLS]",
    )
    loss: Literal["kl", "bce"] = Field(
        "kl", description="that answers were trained by: their scores are a softmax (kl) or a sigmoid (bce) each"
    )
    cut: Literal["both", "choice"] = Field("both", description="of too long a choice: see the objective `choice`")


class Features(Settings):
    """The features that the model was trained on: those of a detector's spec, or what is known of them."""

    detector: str = Field(description="a name in data_specs/detectors, or the features' own name")
    layer: Layer | None = Field(None, description="None: the detector's, or not known")
    dim: int | None = Field(None, ge=1, description="numbers of a feature; None: the detector's")
    boxes: BoxRule | None = Field(None, description="None: the detector's, or not known")
    nms: NmsRule | None = Field(None, description="None: the detector's, or not known")
    features_of: Literal["proposals", "regressed", "given"] | None = Field(None, description="None: the detector's")
    preprocessing: Preprocessing | None = Field(None, description="None: the detector's, or not known")
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="sha256 of the detector's weights, where they are known"
    )

    def contract(self, box_input: BoxInput) -> Contract:
        """The feature contract. Raises UserError where the length of a feature is not known."""
        from vbert.regions.detector import detector_file, detector_names

        own = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        fields: dict[str, Any] = dict.fromkeys(
            ("backend", "weights", "layer", "boxes", "nms", "features_of", "preprocessing")
        )
        if self.detector in detector_names():
            file = detector_file(self.detector)
            spec = file.spec()
            fields |= {"backend": spec.backend, "layer": spec.layer, "dim": spec.dim, "boxes": file.boxes}
            fields |= {"nms": spec.nms, "features_of": spec.features_of, "preprocessing": spec.preprocessing}
        fields |= own
        if "dim" not in fields:
            raise UserError(f"features: dim: how long a feature of {self.detector!r} is, no spec says: give it")
        return Contract(**fields, box_input=box_input)


class AnswerVocabulary(Settings):
    """The answers that the rows of a head for questions stand for. Several of equal length are about."""

    source: Source = Field(description="where the file is: text, an answer a line, or JSON")
    count: int = Field(ge=2, description="answers in it")
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the answers in their order, as the head.json of a model holds it"
    )


class PublishedSpec(Settings):
    """A published VisualBERT: where its files are, in whose form, and what they mean."""

    name: str = Field(description="a word")
    title: str = Field(description="for people")
    licence: str = Field(description="of the weights")
    homepage: str = Field(description="for people")
    kind: Literal["visualbert"] = Field(description="what it is")
    form: Literal["transformers", "original", "mmf"] = Field(description="whose names the tensors have")
    objective: Objective = Field(description="the downstream task of its head; mlm_itm: pre-trained, without one")
    source: HubSource | Source = Field(description="where its files are")
    vocabulary: Annotated[str | None, LocalPath(or_name=True)] = Field(
        None, description="a BERT in data_specs/models whose vocabulary it has; None: its own vocab.txt"
    )
    answers: AnswerVocabulary | None = Field(None, description="of objective vqa")
    labels: tuple[str, ...] | None = Field(
        None, min_length=2, description="of objective classification, in their order"
    )
    positive: str | None = Field(None, description="of objective classification: the label that AUROC is of")
    semantics: Semantics = Semantics()
    features: Features = Field(description="that it was trained on and requires")
    sizes: dict[str, int | float | str] = Field(min_length=1, description="by the fields of `model`")

    @model_validator(mode="after")
    def _fits(self) -> PublishedSpec:
        for name in self.sizes:
            if name not in SIZES:
                raise NestedError(("sizes", name), f"a checkpoint decides no such size; {nearest(name, SIZES)}")
        if (self.answers is not None) != (self.objective == "vqa"):
            raise NestedError(
                ("answers",),
                "objective vqa needs the vocabulary that its head's rows stand for, and no other has one; vocabularies "
                "of equal length differ in order and content",
            )
        if (self.labels is not None) != (self.objective == "classification"):
            raise NestedError(("labels",), "objective classification needs its labels, and no other has them")
        if self.positive is not None and self.positive not in (self.labels or ()):
            raise NestedError(("positive",), f"{self.positive} is none of the labels")
        return self

    def contract(self) -> Contract:
        return self.features.contract(self.semantics.box_input)


class _Kind(BaseModel):
    """As much of a spec as says which model reads it."""

    model_config = ConfigDict(extra="ignore")
    kind: Literal["bert", "visualbert"] = "bert"


def spec_of(name: str) -> ModelSpec | PublishedSpec:
    """The spec data_specs/models/NAME.yaml, or that in a .yaml file. Raises UserError, with the nearest name."""
    return published_spec(name) if MODELS.read(name, _Kind).kind == "visualbert" else model_spec(name)


def published_spec(name: str) -> PublishedSpec:
    """The spec of a published VisualBERT. Raises UserError for a BERT's, and where there is none."""
    if MODELS.read(name, _Kind).kind != "visualbert":
        raise UserError(
            f"{name} is a BERT, which has seen no image: it can start a training, but not answer. VisualBERTs: "
            f"{', '.join(published_names())}"
        )
    return MODELS.read(name, PublishedSpec)


def published_names() -> list[str]:
    """Names of the specs of published VisualBERTs, sorted."""
    return [name for name in model_names() if KIND.search(_shipped(name))]  # to read YAML takes forty times as long


def is_hub(where: str) -> bool:
    """Whether `where` is a repository of the Hugging Face hub at a commit, `owner/name@revision`."""
    return HUB.match(where) is not None


def is_published(where: str) -> bool:
    """Whether a start is a VisualBERT and no BERT: a spec of one, `hub id@revision`, or a folder whose config.json says
    so, or that a model written here lies in. False for what isn't there."""
    if is_hub(where):
        return True
    if is_yaml(where) or where in model_names():
        return MODELS.read(where, _Kind).kind == "visualbert"
    folder = Path(os.path.expanduser(where))
    if not folder.is_dir():
        return False
    return is_own(folder) or _config_of(folder).get("model_type") == "visual_bert"


def is_own(folder: Path) -> bool:
    """Whether `folder` holds a model as it is written here (exported for transformers, its config.json is theirs)."""
    return all((folder / name).is_file() for name in OWN) and "model_type" not in _config_of(folder)


def is_int8(where: str) -> bool:
    """Whether `where` is a folder of a model in int8, by the names of its tensors."""
    try:
        with (Path(os.path.expanduser(where)) / WEIGHTS).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")  # of the header of a safetensors file
            return size <= MAX_HEADER and f'{INT8_STEP}"'.encode() in file.read(size)
    except OSError:
        return False


def objective_of(where: str) -> str | None:
    """The objective whose head the published VisualBERT `where` has, where that is known before it is fetched."""
    if is_hub(where):
        spec = spec_of_hub(where)
        return None if spec is None else spec.objective
    if is_yaml(where) or where in model_names():
        return published_spec(where).objective
    folder = Path(os.path.expanduser(where))
    if (folder / HEAD).is_file():
        return _text(_json_of(folder / HEAD).get("objective"))
    stated = _config_of(folder).get("architectures") or ["VisualBertModel"]
    every = stated if isinstance(stated, list) else [stated]
    return next((OBJECTIVE_OF[name] for name in every if name in OBJECTIVE_OF), None)


# transformers' class → the objective whose model computes the same.
OBJECTIVE_OF = {
    "VisualBertModel": PRETRAINED,
    "VisualBertForPreTraining": PRETRAINED,
    "VisualBertForQuestionAnswering": "vqa",
    "VisualBertForVisualReasoning": "nlvr2",
    "VisualBertForMultipleChoice": "choice",
    "VisualBertForRegionToPhraseAlignment": "grounding",
}


def published_sizes(where: str) -> dict[str, Any]:
    """Sizes by the fields of `ModelSettings` that are known before the checkpoint is fetched; `box_input` too."""
    if is_hub(where):
        spec = spec_of_hub(where)
        return {} if spec is None else {**spec.sizes, "box_input": spec.semantics.box_input, "standardise": False}
    if is_yaml(where) or where in model_names():
        spec = published_spec(where)
        return {**spec.sizes, "box_input": spec.semantics.box_input, "standardise": False}
    folder = Path(os.path.expanduser(where))
    given = _config_of(folder)
    if is_own(folder):
        return {name: given[name] for name in (*SIZES, "box_input", "standardise") if name in given}
    sizes = {ours: given[theirs] for ours, theirs in SIZES.items() if theirs in given}
    return {**sizes, "box_input": given.get("box_input", "none"), "standardise": False}


def sizes_of(where: str) -> dict[str, Any] | None:
    """The sizes of a BERT or VisualBERT that are known before it is fetched; None where there is no such one."""
    return published_sizes(where) if is_published(where) else known_sizes(where)


def contract_of(where: str) -> Contract | None:
    """The feature contract of the published VisualBERT `where`; None where it is not known before it is fetched."""
    if is_hub(where):
        spec = spec_of_hub(where)
        return None if spec is None else spec.contract()
    if is_yaml(where) or where in model_names():
        return published_spec(where).contract()
    folder = Path(os.path.expanduser(where))
    if (folder / CONTRACT).is_file():
        return Contract.read(folder / CONTRACT)
    given = _config_of(folder)
    box_input = given.get("box_input", "none")
    numbers = BOX_NUMBERS if box_input == "append6" else 0
    return not_stated(given.get("visual_embedding_dim", 512) - numbers, box_input)


def not_stated(dim: int, box_input: BoxInput | None = None) -> Contract:
    """The contract of a checkpoint that comes without one: nothing but the length of a feature is known."""
    fields = dict.fromkeys(("backend", "weights", "layer", "boxes", "nms", "features_of", "preprocessing"))
    return Contract(detector="unknown", dim=dim, box_input=box_input, **fields)


def spec_of_hub(where: str) -> PublishedSpec | None:
    """The spec of the same repository as `hub id@revision`, whatever its commit."""
    match = HUB.match(where)
    assert match is not None, "is_hub"
    for name in published_names():
        if match["hub"] in _shipped(name):
            spec = published_spec(name)
            if isinstance(spec.source, HubSource) and spec.source.hub == match["hub"]:
                return spec
    return None


def _shipped(name: str) -> str:
    return (MODELS.folder / f"{name}.yaml").read_text("utf-8")


def hub_source(where: str) -> HubSource:
    match = HUB.match(where)
    assert match is not None, "is_hub"
    return HubSource(hub=match["hub"], revision=match["revision"])


def _config_of(folder: Path) -> dict[str, Any]:
    return _json_of(folder / "config.json")


def _json_of(path: Path) -> dict[str, Any]:
    """A JSON object; {} for anything else, which the stage reports."""
    try:
        with path.open("rb") as file:
            given = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
