"""Same bits whatever the batch: an input's numbers hang on that input alone, not on what it is computed beside.

A matrix product picks its kernel by the number of rows, and for a few rows a thread one that sums in another order; for
a few outputs the last rows are summed in another order than the others. Measured on products of 32 to 3,072 inputs and
1 to 4,096 outputs, of 1 to 2,100 rows, with one and two threads: with at least 6 rows a thread and 4 outputs a row's
sum is the same in any product, with fewer outputs in any of a multiple of 4 rows. Attention is computed sequence by
sequence already, see `vbert.model.attention`. On a GPU this is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

ROWS = 16  # at least, and a multiple of it where there are
FEW = 8  # outputs
A_THREAD = 8  # rows


class IndependentRows(TorchFunctionMode):
    """While it is entered, linear layers see rows enough, those that lack filled up with 0; without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.least = max(ROWS, A_THREAD * torch.get_num_threads())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        given, weight, *bias = args
        rows = given.reshape(-1, given.shape[-1])
        lacks = max(self.least - len(rows), 0)
        if len(weight) < FEW:
            lacks += -(len(rows) + lacks) % ROWS
        if not lacks:
            return func(given, weight, *bias, **(kwargs or {}))
        out = func(F.pad(rows, (0, 0, 0, lacks)), weight, *bias, **(kwargs or {}))
        return out[: len(rows)].view(*given.shape[:-1], len(weight))
