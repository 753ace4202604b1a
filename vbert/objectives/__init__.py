"""Objectives of downstream tasks. A further one is a module here with the interface `Objective`, and a line in
OBJECTIVES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union, cast

from pydantic import Field

from vbert.artifacts.steps.settings import Plugin
from vbert.errors import UserError, nearest
from vbert.objectives.entry import DownstreamSettings, EvaluateSettings
from vbert.objectives.vqa import VqaSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vbert.model.config import VisualBertConfig
    from vbert.model.vocabulary import WordPieceEncoder

__all__ = ["DownstreamEntry", "DownstreamSettings", "EvaluateSettings", "Objective", "load", "objective"]

# name → (settings of its entry in a recipe, version); the version is raised by hand when the objective's results
# change. The module that defines the settings is the objective.
OBJECTIVES: dict[str, tuple[type[DownstreamSettings], int]] = {"vqa": (VqaSettings, 1)}

if TYPE_CHECKING:
    DownstreamEntry = DownstreamSettings
else:  # a recipe's entry under `downstream`: any objective's settings, told apart by their field `objective`
    DownstreamEntry = Union[tuple(settings for settings, _ in OBJECTIVES.values())]  # noqa: UP007
    if len(OBJECTIVES) > 1:
        DownstreamEntry = Annotated[DownstreamEntry, Field(discriminator="objective")]

Row = dict[str, Any]  # an example, by the columns of EXAMPLES_SCHEMA
Head = dict[str, Any]  # head.json of the trained model
Prediction = dict[str, Any]  # example_id, answer, score, and further fields of the objective


class Objective(Protocol):
    """The interface of a module of `vbert.objectives`: examples → sequences → head → loss → decode → metric →
    predictions.

    All of it is deterministic; `texts` and `targets` run in loader workers.
    """

    KINDS: Sequence[str]  # of examples
    SELECTS: str  # the metric whose largest value on `val` is `select: best`

    def labelled(self, row: Row) -> bool:
        """Whether the example has a label, so that its prediction can be scored."""

    def head(self, rows: Sequence[Row], settings: Any) -> Head:
        """The head's description from the training examples: kind, labels, the token that is read."""

    def model(self, config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
        """The model of `config` and `head`, its head drawn from `seed`; the encoder is filled by the caller."""

    def texts(self, row: Row, encoder: WordPieceEncoder, head: Head) -> tuple[list[int], list[int], int]:
        """(piece ids with special tokens, segment types, place that is read) of an example."""

    def targets(self, rows: Sequence[Row], head: Head) -> dict[str, Tensor]:
        """The targets of the loss."""

    def counts(self, targets: Mapping[str, Tensor]) -> dict[str, int]:
        """Loss → the number of terms in the batch that its mean is over."""

    def loss(self, outputs: Tensor, targets: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
        """Loss → its sum over the batch; a single one is called "loss". The sum of their means is minimised."""

    def decode(self, outputs: Tensor, rows: Sequence[Row], head: Head) -> list[Prediction]:
        """One prediction an example."""

    def scores(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, list[float | None]]:
        """metric → each example's score, None where it does not count; `metric/part` for parts of the examples.
        Empty where the examples have no labels."""

    def submission(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, bytes]:
        """File name → content, in the format of an official evaluation server."""


def objective(name: str) -> Plugin:
    """Name and version of an objective, as they enter fingerprints. Raises UserError with the nearest name."""
    if name not in OBJECTIVES:
        raise UserError(f"no objective {name!r} in vbert/objectives; {nearest(name, OBJECTIVES)}")
    return Plugin(name=name, version=OBJECTIVES[name][1])


def load(name: str) -> Objective:
    """The objective `name`."""
    objective(name)
    return cast(Objective, import_module(OBJECTIVES[name][0].__module__))
