"""Same bits whatever the batch: an input's numbers hang on that input alone, not on what it is computed beside.

A matrix product picks its kernel by the number of rows, and for a few rows one that sums in another order. With at
least ROWS of them, measured on products of 70 to 3,072 inputs and 13 to 3,129 outputs, a row's sum is the same in any
product. Attention is computed sequence by sequence already, see `vbert.model.attention`. On a GPU this is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

ROWS = 16


class IndependentRows(TorchFunctionMode):
    """While it is entered, linear layers see a multiple of ROWS rows, the last filled up with 0; without gradients."""

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
        lacks = -len(rows) % ROWS
        filled = F.pad(rows, (0, 0, 0, lacks)) if lacks else rows
        out = func(filled, weight, *bias, **(kwargs or {}))
        return out[: len(rows)].view(*given.shape[:-1], len(weight))
