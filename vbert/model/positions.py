"""Longer texts than a checkpoint was trained on: its table of positions, extended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.model.config import VisualBertConfig


def extended(table: Tensor, rows: int, where: str) -> Tensor:
    """`table` [n, H] with `rows` rows, of which those behind the first n are the first ones again, in turn.

    Source: Beltagy, Peters and Cohan 2020 (Longformer, arXiv:2004.05150), section 5, who extend RoBERTa's 512 positions
    by copying them: attention keeps its local structure everywhere but where two copies meet. Raises UserError for
    fewer rows than there are.
    """
    there = len(table)
    if rows < there:
        raise UserError(
            f"{where}: max_positions {rows:,} is below the checkpoint's {there:,}, whose last positions would be lost; "
            "leave it out, or give more"
        )
    return table[torch.arange(rows, device=table.device) % there].clone()


def extend(model: Any, rows: int, where: str) -> VisualBertConfig:
    """Extends the tables of positions of a VisualBERT with or without heads, in place; returns its configuration."""
    encoder = model.encoder
    for name in ("position", "visual_position"):
        table = getattr(encoder.embeddings, name)
        table.weight = torch.nn.Parameter(extended(table.weight.detach(), rows, where))
        table.num_embeddings = rows
    config: VisualBertConfig = encoder.config.model_copy(update={"max_positions": rows})
    encoder.config = config
    return config
