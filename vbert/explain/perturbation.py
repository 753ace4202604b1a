"""An explanation measured: how right a model stays while words and regions go, the most or the least relevant first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vbert.explain import KINDS
from vbert.explain.relevance import ExaminedPart, Explainer, parts, relevances
from vbert.explain.removal import Gone, without
from vbert.metrics.metric import ExampleScores
from vbert.model.independent import IndependentRows
from vbert.objectives.batches import Input
from vbert.objectives.entry import Prediction, Row

INPUTS = 512  # in a pass


class Perturbed(NamedTuple):
    """Of an example: kind → method → (scores with 0, 1, …, n units gone, the most relevant first; the least relevant
    first), and method → relevances of words and of regions. An example of less than two units of a kind has none of
    it: there is one order."""

    curves: dict[str, dict[str, tuple[list[float], list[float]]]]
    relevance: dict[str, tuple[list[float], list[float]]]
    words: list[str]


def area(scores: Sequence[float]) -> float:
    """Under the curve of scores with 0, 1, …, n units gone, over shares gone from 0 to 1, by the trapezoid rule."""
    return float(np.trapezoid(scores)) / (len(scores) - 1)


def at_shares(scores: Sequence[float], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve at shares gone, between two of its points on the line between them."""
    found: NDArray[np.float64] = np.interp(shares, np.linspace(0, 1, len(scores)), np.asarray(scores, float))
    return found


def order(relevance: Sequence[float], descending: bool) -> list[int]:
    """The units, the first to go first; of equally relevant ones the first by number, in either direction."""
    values = np.asarray(relevance, float)
    ranked: list[int] = np.argsort(-values if descending else values, kind="stable").tolist()
    return ranked


class Perturbation:
    """The examples of an `Explainer`, perturbed."""

    def __init__(self, explainer: Explainer, metric: str, methods: Sequence[str]) -> None:
        """metric: by example, the one that the objective selects models by."""
        self.explainer, self.metric, self.methods = explainer, metric, methods

    def __call__(self, indices: Sequence[int], predictions: Sequence[Prediction]) -> list[Perturbed]:
        """Of examples, explained as one batch by each method."""
        side = self.explainer.side
        rows = side.rows[indices]
        inputs = [self.explainer.inputs(i) for i in indices]
        examined = [self.explainer.examined(*one)[0] for one in zip(rows, inputs, predictions, strict=True)]
        asked = self.explainer.asked(examined, [row["example_id"] for row in rows])
        found = {method: parts(asked, relevances(asked, method)) for method in self.methods}
        examples = [
            _Example(row, its, {method: every[k] for method, every in found.items()})
            for k, (row, its) in enumerate(zip(rows, inputs, strict=True))
        ]
        needed = [(one, gone) for one in examples for gone in one.needed()]
        scores = iter(list(self._scores(needed)))
        return [one.perturbed({gone: next(scores) for gone in one.needed()}) for one in examples]

    def _scores(self, needed: Sequence[tuple[_Example, Gone]]) -> Iterator[float]:
        """How right the answer to each example is without what is gone."""
        explainer, side = self.explainer, self.explainer.side
        for start in range(0, len(needed), INPUTS):
            some = needed[start : start + INPUTS]
            changed = [one.without(gone, side.encoder.mask) for one, gone in some]
            rows = [one.row for one, _ in some]
            owners = torch.tensor([k for k, its in enumerate(changed) for _ in its])
            tensors: dict[str, Any] = {"example": owners, **side.objective.targets(rows, side.head)}
            tensors = {name: tensor.to(explainer.device) for name, tensor in tensors.items()}
            batch = explainer.pack([one for its in changed for one in its])
            with torch.no_grad(), IndependentRows():
                outputs = explainer.network(batch)
            predictions = side.objective.decode(outputs, tensors, rows, side.head)
            metric = side.objective.metrics(rows, predictions, side.head)[self.metric]
            assert isinstance(metric, ExampleScores)
            yield from (float(score or 0) for score in metric.scores)


class _Example:
    """An example with the relevances of its words and regions by method, and what goes step by step."""

    def __init__(self, row: Row, inputs: Sequence[Input], by_method: Mapping[str, ExaminedPart]) -> None:
        self.row, self.inputs, self.by_method = row, inputs, by_method
        self.part = next(iter(by_method.values()))
        words, regions = len(self.part.words), len(self.part.regions)
        numbered = {"regions": range(words, words + regions), "words": range(words), "both": range(words + regions)}
        self.steps: dict[tuple[str, str], tuple[list[Gone], list[Gone]]] = {}
        for kind in KINDS:
            units = numbered[kind]
            for method, part in by_method.items() if len(units) > 1 else ():
                its = [*part.relevant, *part.regions][units.start : units.stop]
                first, last = (
                    [Gone.of([units[k] for k in ranked[:n]], words) for n in range(len(ranked) + 1)]
                    for ranked in (order(its, True), order(its, False))
                )
                self.steps[kind, method] = first, last

    def needed(self) -> list[Gone]:
        """Each once."""
        return list(dict.fromkeys(gone for both in self.steps.values() for way in both for gone in way))

    def without(self, gone: Gone, mask: int) -> list[Input]:
        return without(self.inputs, self.part.examined.input, self.part.places, gone, len(self.part.regions), mask)

    def perturbed(self, scores: Mapping[Gone, float]) -> Perturbed:
        curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for (kind, method), (first, last) in self.steps.items():
            curves.setdefault(kind, {})[method] = [scores[gone] for gone in first], [scores[gone] for gone in last]
        relevance = {method: (part.relevant, part.regions) for method, part in self.by_method.items()}
        return Perturbed(curves, relevance, self.part.words)
