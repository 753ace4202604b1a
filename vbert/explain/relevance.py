"""From examples and predictions to the relevance of each word and each region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbert.errors import UserError
from vbert.explain import methods, methods_of
from vbert.explain.methods import Asked, Relevance
from vbert.explain.removal import words_of
from vbert.model.visualbert import PackedBatch
from vbert.objectives import Objective
from vbert.objectives.batches import Input
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.entry import Prediction, Row
from vbert.objectives.examined import Examined

AT_ONCE = 16  # inputs in a pass: integrated gradients has `STEPS` times as many


@dataclass(frozen=True)
class ExaminedPart:
    """A part of a prediction (all of it, a phrase, a word piece of a caption) with its relevances.

    score: what is explained, see `Objective.explained`. words: the words of the text, `relevant` their relevances,
    places: of each, the places of its pieces. regions: relevances of the regions that the model was shown, in order.
    """

    examined: Examined
    score: float
    words: list[str]
    places: list[list[int]]
    relevant: list[float]
    regions: list[float]
    looks: list[list[float]] = field(default_factory=list)


class Explainer:
    """A model's predictions of the examples of `side`, explained."""

    def __init__(self, network: Any, objective: Objective, side: ObjectiveDataset[Any]) -> None:
        self.network, self.objective, self.side = network, objective, side
        self.device = next(network.parameters()).device
        self.score = partial(_score, objective, network, side.head)

    def examined(self, row: Row, inputs: Sequence[Input], prediction: Prediction) -> list[Examined]:
        """What explains the prediction of an example with these `inputs`."""
        return self.objective.examined(inputs, row, prediction, self.side.encoder, self.side.head)

    def inputs(self, index: int) -> list[Input]:
        """The inputs of an example, as they are in evaluation."""
        side = self.side
        return side.shown(side.objective.inputs(side.rows, index, side.encoder, side.head, None))

    def asked(self, examined: Sequence[Examined], names: Sequence[str], **options: Any) -> Asked:
        """Several as one batch. names: of each, what random numbers are drawn by."""
        boxes, scores = zip(*(self._detected(one) for one in examined), strict=True)
        return Asked(
            self.network.encoder, self.score, self.side.encoder, self.pack, examined, names, boxes, scores, **options
        )

    def pack(self, inputs: Sequence[Input]) -> PackedBatch:
        return self.side.packed(inputs).to(self.device)

    def _detected(self, one: Examined) -> tuple[NDArray[np.float32] | None, list[float]]:
        """(boxes, the detector's scores) of the regions that are shown; None and none where they aren't known."""
        chosen, visuals = one.input.regions, self.side.visuals
        parts = [visuals.shards.read(visuals.shown.get(image, image)) for image in one.input.images]
        every = [part.boxes for part in parts if part.boxes is not None]
        boxes = np.concatenate(every) if every and len(every) == len(parts) else None
        scores = [score for part in parts for score in part.scores]
        if chosen is not None:
            boxes = None if boxes is None else boxes[list(chosen)]
            scores = [scores[k] for k in chosen] if scores else []
        return boxes, scores

    def explain(
        self, index: int, prediction: Prediction, method: str, layer: int | None = None, head: int | None = None
    ) -> list[ExaminedPart]:
        """The parts of the prediction of example `index`. layer, head: of `attention`, from 0."""
        config = self.network.encoder.config
        for name, value, count in (("layer", layer, config.layers), ("head", head, config.heads)):
            if value is not None and method != "attention":
                raise UserError(f"{name}: {value} is of the method attention, not of {method}: leave it out")
            if value is not None and not 0 <= value < count:
                raise UserError(f"{name}: {value}, but the model has {count}, from 0 to {count - 1}")
        row, found = self.side.rows.row(index), []
        examined = self.examined(row, self.inputs(index), prediction)
        for start in range(0, len(examined), AT_ONCE):
            part = examined[start : start + AT_ONCE]
            names = [f"{row['example_id']} {start + k}" for k in range(len(part))]
            asked = self.asked(part, names, layer=layer, head=head)
            made = parts(asked, relevances(asked, method))
            found += [replace(each, looks=looks(asked, each, k)) for k, each in enumerate(made)]
        return found


def relevances(asked: Asked, method: str) -> list[Relevance]:
    """By token. Raises UserError for an unknown method, with the nearest."""
    methods_of([method])
    made: list[Relevance] = getattr(methods, method)(asked)
    return made


def parts(asked: Asked, by_token: Sequence[Relevance]) -> list[ExaminedPart]:
    """Tokens as words and regions: a word's relevance is the sum of its pieces'."""
    import torch

    with torch.no_grad():
        scores = asked.score(asked.batch, asked.targets).tolist()
    found = []
    for one, score, relevance in zip(asked.examined, scores, by_token, strict=True):
        ids, places = one.input.text.ids, words_of(one)
        words = [asked.pieces.text(ids[place] for place in its) for its in places]
        relevant = [float(relevance[its].sum()) for its in places]
        regions = relevance[len(ids) :].tolist()
        found.append(ExaminedPart(one, float(score), words, places, relevant, regions))
    return found


def looks(asked: Asked, part: ExaminedPart, number: int) -> list[list[float]]:
    """Of each word of input `number` its attention to each region, mean over layers, heads and pieces, as a share of
    that to all regions."""
    seen = asked.maps[number].double().mean((0, 1))[:, len(part.examined.input.text.ids) :]
    shares = (seen[its].mean(0) for its in part.places)
    return [(share / share.sum().clamp(min=1e-12)).tolist() for share in shares]


def _score(objective: Objective, network: Any, head: dict[str, Any], batch: Any, targets: Any) -> Any:
    return objective.explained(network, batch, targets, head)
