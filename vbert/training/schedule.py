"""The training schedule: settings shared by every training stage, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from vbert.artifacts.steps.settings import Settings


class Schedule(Settings):
    """Settings of one run of the loop. All of it decides the weights, so all of it is hashed.

    `optimizer: bert_adam` with `clip_rule: per_tensor` and `epsilon: 1e-6` is what the original VisualBERT used
    (pytorch_pretrained_bert's BertAdam: no bias correction). Warm-up is counted as both count it: the first step has
    the rate 0, and in the step after the warm-up it is whole. transformers makes the warm-up whole steps, upwards;
    BertAdam takes the share as it is.
    """

    steps: int = Field(ge=0, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="samples an optimiser step, over all processes")
    learning_rate: float = Field(ge=0, description="the highest, reached after the warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0, description="not on biases and norms")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: none")
    clip_rule: Literal["global", "per_tensor"] = Field(
        "global", description="per_tensor: the original's tensors, of which query, key and value are three"
    )
    optimizer: Literal["adamw", "bert_adam"] = Field(
        "adamw", description="AdamW, or BertAdam without bias correction (as the original)"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of the mean of squared gradients")
    epsilon: float = Field(1e-8, gt=0, description="added to the optimiser's denominator")
    accumulate: int = Field(1, ge=1, description="parts a process computes its share of a batch in")
    validate_every: int = Field(0, ge=0, description="optimiser steps; 0: at the end only")

    def uneven(self, processes: int) -> str:
        """An error where a batch can't be cut into equal parts; else ""."""
        share = processes * self.accumulate
        if self.batch_size % share == 0:
            return ""
        nearest = -(-self.batch_size // share) * share
        return f"{self.batch_size} is not a multiple of processes × accumulate = {share}; set it to {nearest}"

    def rate(self, step: int) -> float:
        """The learning rate of the optimiser step `step` (0-based): linear warm-up, then the schedule down to 0.

        Source: transformers.optimization's lambdas with TrainingArguments.get_warmup_steps; the vendored
        pytorch_pretrained_bert/optimization.py of VisualBERT.
        """
        warm = self.warmup * self.steps
        if self.optimizer != "bert_adam":
            warm = math.ceil(warm)
        if step < warm:
            return self.learning_rate * step / warm
        if self.schedule == "constant":
            return self.learning_rate
        left = (self.steps - step) / max(1.0, self.steps - warm)
        return self.learning_rate * (left if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))
