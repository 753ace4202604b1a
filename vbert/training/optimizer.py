"""The optimisers: AdamW, and BertAdam, with which VisualBERT was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vbert.training.schedule import Schedule


@runtime_checkable
class Fused(Protocol):
    """A layer whose parameters are `parts` tensors of the original, one behind the other."""

    parts: int


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, decoupled weight decay inside the step (pytorch_pretrained_bert's BertAdam).

    m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², p ← p - rate · (m / (√v + ε) + decay · p)
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = mean / (square.sqrt() + group["eps"])
                parameter.sub_(update.add_(parameter, alpha=group["weight_decay"]), alpha=group["lr"])


def make_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser of the parameters that train; vectors (biases, norms) don't decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (0.9, schedule.beta2)
    if schedule.optimizer == "bert_adam":
        return BertAdam(groups, lr=schedule.learning_rate, betas=betas, eps=schedule.epsilon)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=betas, eps=schedule.epsilon, fused=True)


def clip_gradients(model: nn.Module, schedule: Schedule) -> None:
    """Scale gradients down to the norm `schedule.clip`, of all together or of each tensor of the original, of which a
    `Fused` layer holds several."""
    if not schedule.clip:
        return
    if schedule.clip_rule == "global":
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], schedule.clip)
        return
    fused = {p: m.parts for m in model.modules() if isinstance(m, Fused) for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        for gradient in parameter.grad.chunk(fused.get(parameter, 1)):
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((schedule.clip / (norm + 1e-6)).clamp(max=1.0))  # as torch's clip_grad_norm_


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `<index of the parameter>.<what>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
