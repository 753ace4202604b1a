"""The examples of an objective as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import WordPieceEncoder
from vbert.objectives.batches import Batch, ExampleRows, Input, RegionInputs, pack
from vbert.regions.shards import RegionSource
from vbert.training.sampler import generator


class ReadsExamples(Protocol):
    """The part of an objective (`vbert.objectives.Objective`) that makes batches of examples, and predictions of what a
    model gives for them."""

    def inputs(
        self,
        rows: ExampleRows,
        i: int,
        encoder: WordPieceEncoder,
        head: dict[str, Any],
        draw: np.random.Generator | None,
        /,
    ) -> list[Input]: ...

    def targets(self, rows: Sequence[dict[str, Any]], head: dict[str, Any], /) -> dict[str, Tensor]: ...

    def decode(
        self, outputs: Any, tensors: Mapping[str, Tensor], rows: Sequence[dict[str, Any]], head: dict[str, Any], /
    ) -> list[dict[str, Any]]: ...


Its = TypeVar("Its", bound=ReadsExamples)


class ObjectiveDataset(Generic[Its]):
    """Rows of examples as an objective's batches. seed: of what `inputs` draws in training."""

    def __init__(
        self,
        objective: Its,
        head: dict[str, Any],
        encoder: WordPieceEncoder,
        rows: ExampleRows,
        shards: RegionSource,
        box_input: str,
        seed: int = 0,
    ) -> None:
        self.objective, self.head, self.encoder, self.rows, self.seed = objective, head, encoder, rows, seed
        rows.shown = rows.replacements(head["images"])
        self.visuals = RegionInputs(shards, box_input, rows.shown)

    def use_mined(self, samples: Sequence[tuple[int, int]], mined: Mapping[str, Tensor]) -> None:
        """Takes what `Objective.mine` gave for the next samples."""

    def batch(self, items: Sequence[tuple[int, int | None]]) -> tuple[Batch, list[dict[str, Any]]]:
        """The batch of (index, epoch) of examples, and their rows; the epoch is None in evaluation."""
        rows = self.rows[[i for i, _ in items]]
        inputs, owners = [], []
        for k, ((i, epoch), row) in enumerate(zip(items, rows, strict=True)):
            draw = None if epoch is None else generator(self.seed, epoch, row["example_id"])
            its = self.objective.inputs(self.rows, i, self.encoder, self.head, draw)
            inputs += its
            owners += [k] * len(its)
        packed = self.packed(inputs := self.shown(inputs))
        tensors = {"example": torch.tensor(owners), **self.objective.targets(rows, self.head)}
        for name in inputs[0].ragged:
            tensors[name] = torch.from_numpy(_filled([one.ragged[name] for one in inputs]))
        return Batch(packed, tensors), rows

    def shown(self, inputs: Sequence[Input]) -> list[Input]:
        """The inputs with the regions that stand for their own, in a control."""
        if (shown := self.head["images"]) == "own":
            return list(inputs)
        none = shown == "none"  # regions of other images, or none, have no names
        return [replace(one, regions=one.others, aligned=(), images=() if none else one.images) for one in inputs]

    def packed(self, inputs: Sequence[Input]) -> PackedBatch:
        """Inputs that are `shown`, as one batch."""
        return pack(inputs, (self.visuals.of(one.images, one.regions) for one in inputs))


def _filled(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays [n] or [n, m] one after the other, where m differs filled up with 0 to the largest."""
    if arrays[0].ndim == 1:
        return np.concatenate(arrays)
    widest = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, widest - array.shape[1]))) for array in arrays])
