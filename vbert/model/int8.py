"""Linear layers in 8-bit integers for CPUs: dynamic quantisation, weights stored as int8 with one step an output.

torch.ao.quantization is deprecated, and its tensors can't be stored without pickle. torchao's layers take the same
integer product; run eagerly they measured slower than these at 128 to 3,072 numbers and 1 to 960 rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbert.errors import UserError
from vbert.model.config import INT8_STEP

LEVELS = 127  # int8 from -127 to 127: symmetric, so that 0 stays 0


class Int8Linear(nn.Module):
    """`nn.Linear` with weights of int8. Each row of the input is quantised by its own largest number, and products are
    summed in int32, exactly: a row's output doesn't hang on the rows beside it. Without gradients.

    weight: int8 [out, in]; weight_step: float32 [out], what 1 stands for; bias: float32 [out].
    """

    weight: Tensor
    weight_step: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_step", torch.ones(outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The nearest one to `linear`."""
        made = cls(linear.in_features, linear.out_features)
        weight = linear.weight.float()
        made.weight_step.copy_(_step(weight))
        made.weight.copy_((weight / made.weight_step[:, None]).round())
        if linear.bias is not None:
            made.bias.copy_(linear.bias)
        return made

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of `hidden`."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise UserError("a model of int8 has no gradients: take the one it was made from")
        if hidden.device.type != "cpu":  # the integer product of a GPU takes other shapes
            return F.linear(
                hidden, (self.weight * self.weight_step[:, None]).to(hidden.dtype), self.bias.to(hidden.dtype)
            )
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        step = _step(rows)[:, None]
        summed = torch._int_mm((rows / step).round().to(torch.int8), self.weight.t())
        out = summed.float().mul_(step).mul_(self.weight_step).add_(self.bias)
        return out.view(*hidden.shape[:-1], -1).to(hidden.dtype)


def _step(rows: Tensor) -> Tensor:
    """What one level stands for in each row, [n]; a row of zeros has any."""
    return rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * LEVELS) / LEVELS


def quantise(network: nn.Module) -> nn.Module:
    """Makes every linear layer of `network` an `Int8Linear`, in place; embeddings, norms and what is tied to embeddings
    stay float32."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            _put(network, name, Int8Linear.of(module))
    return network.eval()


def prepare(network: nn.Module, names: Iterable[str]) -> None:
    """Gives `network` the layers whose tensors are among `names`, those of a state of a quantised one, to be filled."""
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name in names:
        if name.endswith(INT8_STEP) and (found := linear.get(name.removesuffix(INT8_STEP))) is not None:
            _put(network, name.removesuffix(INT8_STEP), Int8Linear(found.in_features, found.out_features))


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def is_int8(network: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in network.modules())


def refuse_int8(network: nn.Module, title: str, what: str) -> None:
    """Raises UserError where `what` needs the numbers that int8 gave up."""
    if is_int8(network):
        raise UserError(f"{title} is of int8, for predictions on CPUs alone: {what} the model that it was made from")
