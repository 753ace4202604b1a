"""What of a prediction is explained: inputs, and of each the output whose score it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vbert.objectives.batches import Input


@dataclass(frozen=True)
class Examined:
    """An input and one of its outputs, a number whose score `Objective.explained` gives: of a label, a region, a word
    piece.

    part: what it is of the prediction, in words: a phrase, a word of a caption; "" where it is all of it. also: places
    of the sequence that the score is read from beside `input.at` (beside [CLS] where that is empty).
    """

    input: Input
    target: int
    part: str = ""
    also: tuple[int, ...] = ()

    @property
    def read(self) -> tuple[int, ...]:
        """The places of the sequence, its words before its regions, that the score is read from."""
        return (*(self.input.at or (0,)), *self.also)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """log p / (1 − p) of each row's target under the softmax, [B]; of a lone output its logit. logits: [B, N], -inf for
    outputs that a row has not. Where p is all but 1, its slope has vanished, and that of its log-odds has not."""
    logits = logits.float()
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, targets[:, None], True)
    chosen, lone = logits.gather(1, targets[:, None])[:, 0], logits.isfinite().sum(1) < 2
    others = logits.masked_fill(own, -torch.inf)
    others = torch.where(lone[:, None], torch.zeros_like(others), others)  # or its slope would be NaN
    return torch.where(lone, chosen, chosen - others.logsumexp(1))
