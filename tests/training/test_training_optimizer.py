"""Optimisers against their formulas, clipping rules, weight decay, and resuming from saved state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vbert.model.visualbert import FusedLinear, TransformerLayer, VisualBertConfig
from vbert.training.optimizer import clip_gradients, make_optimizer, optimizer_tensors, restore_optimizer
from vbert.training.schedule import Schedule

CONFIG = VisualBertConfig(hidden_size=4, layers=1, heads=1, vocab_size=10, visual_dim=4)
SCHEDULE = Schedule(steps=10, learning_rate=0.1, weight_decay=0.3, epsilon=1e-6)


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("kind", ["adamw", "bert_adam"])
def test_optimisers_are_their_formulas(kind: str) -> None:
    """AdamW (Loshchilov & Hutter 2019); BertAdam is Adam without bias correction, decay inside the update."""
    net = model()
    optimizer = make_optimizer(net, SCHEDULE.model_copy(update={"optimizer": kind}))
    expected = [p.detach().clone().double() for p in net.parameters()]
    means, squares = [torch.zeros_like(p) for p in expected], [torch.zeros_like(p) for p in expected]
    for t in range(1, 4):
        gradients(net, t)
        for p, m, v, parameter in zip(expected, means, squares, net.parameters(), strict=True):
            assert parameter.grad is not None
            g = parameter.grad.double()
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            decay = 0.3 * p if p.ndim > 1 else 0.0
            if kind == "adamw":
                update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6)
            else:
                update = m / (v.sqrt() + 1e-6)
            p.sub_(0.1 * (update + decay))
        optimizer.step()
    for p, parameter in zip(expected, net.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach().double(), p, rtol=1e-5, atol=1e-6)


def test_norms_and_biases_do_not_decay() -> None:
    net = model()
    decay, plain = make_optimizer(net, SCHEDULE).param_groups
    assert (decay["weight_decay"], [p.shape for p in decay["params"]]) == (0.3, [torch.Size([4, 3])])
    assert (plain["weight_decay"], len(plain["params"])) == (0.0, 3)


def test_clipping_is_global_or_per_tensor() -> None:
    for rule in ("global", "per_tensor", "none"):
        net = model()
        gradients(net, 0)
        before = [p.grad.norm() for p in net.parameters() if p.grad is not None]
        clip = 0.0 if rule == "none" else 0.5
        changes = {"clip": clip} | ({} if rule == "none" else {"clip_rule": rule})
        clip_gradients(net, SCHEDULE.model_copy(update=changes))
        norms = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None])
        if rule == "global":
            assert float(norms.norm()) == pytest.approx(0.5, rel=1e-4)
        elif rule == "per_tensor":
            assert norms.tolist() == pytest.approx([0.5] * 4, rel=1e-4)
        else:
            assert norms.tolist() == pytest.approx(torch.stack(before).tolist())


def test_clipping_takes_query_key_and_value_apart() -> None:
    """As the original, where they are three tensors; their biases too."""
    net = nn.ModuleDict({"qkv": FusedLinear(4, 4, 3), "out": nn.Linear(4, 4)})
    gradients(net, 0)
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    for name in ("qkv.weight", "qkv.bias"):
        found[name][4:8] *= 1e-3  # the keys': below what is clipped to
    theirs = []
    for name, gradient in found.items():
        for part in gradient.clone().chunk(3 if "qkv" in name else 1):
            alone = nn.Parameter(torch.empty_like(part))
            alone.grad = part
            nn.utils.clip_grad_norm_(alone, 0.5)
            theirs.append(part)
    clip_gradients(net, SCHEDULE.model_copy(update={"clip": 0.5, "clip_rule": "per_tensor"}))
    ours = [part for name, gradient in found.items() for part in gradient.chunk(3 if "qkv" in name else 1)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert len(ours) == 8
    assert [m.parts for m in TransformerLayer(CONFIG).modules() if isinstance(m, FusedLinear)] == [3]


@pytest.mark.parametrize("kind", ["adamw", "bert_adam"])
def test_saved_state_goes_on_to_the_same_bits(kind: str) -> None:
    schedule = SCHEDULE.model_copy(update={"optimizer": kind})
    one, two = model(), model()
    optimizer = make_optimizer(one, schedule)
    for step in (1, 2):
        gradients(one, step)
        optimizer.step()
    two.load_state_dict(one.state_dict())
    other = make_optimizer(two, schedule)
    restore_optimizer(other, {name: t.clone() for name, t in optimizer_tensors(optimizer).items()})
    for net, chosen in ((one, optimizer), (two, other)):
        gradients(net, 3)
        chosen.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
