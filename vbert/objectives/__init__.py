"""Objectives of downstream tasks. A further one is a module here with the interface `Objective`, of which `defaults`
has what it doesn't define, and a line in OBJECTIVES; a task that an objective fits as it is, is a line alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, Union, cast

from pydantic import Discriminator, Tag

from vbert.artifacts.steps.settings import Plugin
from vbert.errors import BuildError, UserError, nearest
from vbert.objectives import pretraining
from vbert.objectives.captioning import CaptioningSettings
from vbert.objectives.choice import ChoiceSettings
from vbert.objectives.classification import ClassificationSettings
from vbert.objectives.entry import (
    DownstreamSettings,
    EvaluateSettings,
    Head,
    Parts,
    Prediction,
    Predictions,
    Row,
    Rows,
)
from vbert.objectives.grounding import GroundingSettings
from vbert.objectives.nlvr2 import Nlvr2Settings
from vbert.objectives.retrieval import RetrievalSettings
from vbert.objectives.vqa import VqaSettings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor, nn

    from vbert.artifacts.steps.stage import Figures
    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.objectives.examined import Examined
    from vbert.objectives.sections import Section
    from vbert.training.ranks import Ranks

__all__ = [
    "DownstreamEntry",
    "DownstreamSettings",
    "EvaluateEntry",
    "EvaluateSettings",
    "Objective",
    "load",
    "objective",
]


class Registered(NamedTuple):
    """settings: of its entry in a recipe; the module that defines them is the objective. version: raised by hand when
    the objective's results change."""

    settings: type[DownstreamSettings]
    version: int


OBJECTIVES = {
    "vqa": Registered(VqaSettings, 1),
    "nlvr2": Registered(Nlvr2Settings, 1),
    "classification": Registered(ClassificationSettings, 1),
    "choice": Registered(ChoiceSettings, 1),
    "grounding": Registered(GroundingSettings, 1),
    "visual_entailment": Registered(ClassificationSettings, 1),
    "retrieval": Registered(RetrievalSettings, 1),
    "captioning": Registered(CaptioningSettings, 1),
}


def _named(entry: Any) -> str:
    """The objective that an entry names, in the form that tags its settings."""
    name = entry.get("objective") if isinstance(entry, Mapping) else getattr(entry, "objective", None)
    return str(name)


if TYPE_CHECKING:
    DownstreamEntry = DownstreamSettings
else:  # a recipe's entry under `downstream`: any objective's settings, told apart by their field `objective`
    DownstreamEntry = Annotated[
        Union[tuple(Annotated[one.settings, Tag(name)] for name, one in OBJECTIVES.items())],  # noqa: UP007
        Discriminator(_named),
    ]


if TYPE_CHECKING:
    EvaluateEntry = EvaluateSettings
else:  # any objective's settings of evaluation, told apart by the fields that they have
    _evaluations = dict.fromkeys(one.settings.model_fields["evaluate"].annotation for one in OBJECTIVES.values())
    EvaluateEntry = Union[tuple(dict.fromkeys([EvaluateSettings, *_evaluations]))]  # noqa: UP007


class Objective(Protocol):
    """The interface of a module of `vbert.objectives`: examples → inputs → head → loss → decode → metrics →
    predictions.

    All of it is deterministic; `inputs` and `targets` run in loader workers.
    """

    KINDS: Sequence[str]  # of examples
    SELECTS: str  # the metric whose largest value on `val` is `select: best`, unless the head `selects` another

    def labelled(self, row: Row) -> bool:
        """Whether the example has a label, so that its prediction can be scored."""

    def head(self, rows: Iterable[Row], settings: Any) -> Head:
        """The head's description from the training examples: labels, and what the functions below need to know."""

    def relabelled(self, head: Head, labels: Sequence[str], path: str) -> Head:
        """`head` with the labels of a file, in the order of its rows. Raises UserError where training labels that must
        be there are not."""

    def model(self, config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
        """The model of `config` and `head`, with an `encoder`, its head drawn from `seed`."""

    def begin(self, model: nn.Module, head: Head, source: nn.Module, source_head: Head) -> None:
        """Fills `model` with what it keeps of the start: the encoder, and of the heads what fits."""

    def evaluated(self, table: pa.Table) -> pa.Table:
        """The examples that are predicted and scored, of those of a split: captions, say, as one example an image."""

    def before(self, train: ExampleRows, held_out: ExampleRows, head: Head, settings: Any) -> Figures:
        """Before the first step: figures of the data that bound what training can reach. Raises UserError where it
        would be in vain."""

    def dataset(self, *arguments: Any) -> ObjectiveDataset[Any]:
        """The examples as batches, of the arguments of `ObjectiveDataset`."""

    def inputs(
        self, rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
    ) -> list[Input]:
        """The inputs of example `i`, one or several. draw: a generator of (seed, epoch, example id) in training, None
        in evaluation."""

    def targets(self, rows: Rows, head: Head) -> dict[str, Tensor]:
        """The targets of the loss that are the examples' own; those that hang on a draw are in `Input.ragged`."""

    def counts(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """Loss → the number of terms in the batch that its mean is over."""

    def loss(self, outputs: Any, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
        """Loss → its sum over the batch; a single one is called "loss". The sum of their means is minimised.

        tensors: the targets, and `example`, int64 [inputs]: which example each input belongs to.
        """

    def logits(self, outputs: Any, tensors: Mapping[str, Tensor], head: Head) -> Tensor:
        """What a teacher's and a student's outputs are compared by: the softmax over the last dimension, [B, n] or
        [B, m, n], is the probabilities of each example's answers; -inf for those it has not."""

    def decode(self, outputs: Any, tensors: Mapping[str, Tensor], rows: Rows, head: Head) -> list[Prediction]:
        """One prediction an example."""

    def label_scores(self, outputs: Tensor, head: Head) -> Tensor:
        """The probability of each label of a head with labels, [B, labels]; negative for those that are no answer."""

    def metrics(self, rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
        """By name; `metric/part` for parts of the examples. Empty where the examples have no labels. A prediction
        with `quarantined` is that of an example without regions, and counts as wrong."""

    def submission(self, rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
        """File name → content, in the format of an official evaluation server."""

    def mine(
        self, model: nn.Module, side: ObjectiveDataset[Any], samples: Sequence[tuple[int, int]], ranks: Ranks
    ) -> dict[str, Tensor]:
        """What the next samples (index, epoch) are made with, by the current weights; asked for every `mine_every`
        steps where the head has that. Made by all ranks, the same in each."""

    def parts(self, model: nn.Module, side: ObjectiveDataset[Any], settings: EvaluateSettings) -> Parts | None:
        """The predictions of a split in parts; None: chunks of examples, by `predict`."""

    def joined(self, files: Mapping[str, Path], rows: ExampleRows) -> Iterable[Prediction]:
        """The predictions of the parts' files."""

    def predict(
        self, model: nn.Module, side: ObjectiveDataset[Any], indices: Sequence[int], settings: EvaluateSettings
    ) -> Iterator[Prediction]:
        """The predictions of the examples `indices`, without gradients."""

    def examined(
        self, inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
    ) -> list[Examined]:
        """What explains the prediction of an example: one or several of its `inputs` (as `inputs` makes them in
        evaluation), each with an output."""

    def explained(self, model: nn.Module, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
        """The score of one output of each sequence, [B], as explanations differentiate it. targets: int64 [B], see
        `Examined`."""

    def frozen(self, head: Head, settings: Any) -> Sequence[str]:
        """Prefixes of the names of parameters that no loss reaches; DDP would wait for their gradients."""

    def sections(self, rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
        """What the report shows of the predictions beside the gallery, as data."""


class _WithDefaults:
    """A module of an objective; what it doesn't define is that of `defaults`."""

    def __init__(self, module: str) -> None:
        self._modules = (import_module(module), import_module("vbert.objectives.defaults"))

    def __getattr__(self, name: str) -> Any:
        own, defaults = self._modules
        return getattr(own if hasattr(own, name) else defaults, name)


def objective(name: str) -> Plugin:
    """Name and version of an objective, as they enter fingerprints. Raises UserError with the nearest name."""
    if name not in OBJECTIVES:
        raise UserError(f"no objective {name!r} in vbert/objectives; {nearest(name, OBJECTIVES)}")
    return Plugin(name=name, version=OBJECTIVES[name].version)


def load(name: str) -> Objective:
    """The objective `name`."""
    objective(name)
    return cast(Objective, _WithDefaults(OBJECTIVES[name].settings.__module__))


def same_task(one: str, other: str) -> bool:
    """Whether a head of the objective `one` is one of `other` too."""
    known = {one, other} <= OBJECTIVES.keys()
    return one == other or (known and OBJECTIVES[one].settings is OBJECTIVES[other].settings)


def built(config: VisualBertConfig, head: Head, title: str) -> nn.Module:
    """The model that a `head.json` describes, its weights to be filled. Raises BuildError for an unknown objective."""
    name = head.get("objective")
    if name == pretraining.OBJECTIVE.name:
        from vbert.model.heads import PretrainingModel

        return PretrainingModel(config)
    if name not in OBJECTIVES:
        known = [pretraining.OBJECTIVE.name, *OBJECTIVES]
        raise BuildError(f"{title}: head.json: objective: unknown {name!r}; {nearest(str(name), known)}")
    return load(name).model(config, head, 0)
