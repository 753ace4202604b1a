"""Linear layers in int8: near the floats, the same bits beside anything, and stored as they are computed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vbert.errors import UserError
from vbert.model.int8 import Int8Linear, is_int8, prepare, quantise, refuse_int8


def linear(inputs: int = 40, outputs: int = 24) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


@torch.no_grad()
def test_the_output_is_that_of_numbers_rounded_to_steps() -> None:
    """Against the same in float64: weights and inputs are whole steps, so that nothing else is lost."""
    given, rows = (
        linear(),
        torch.randn(7, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 7)[:, None],
    )
    made = Int8Linear.of(given)
    weight, bias = given.weight.double(), given.bias.double()
    step = weight.abs().amax(1, keepdim=True) / 127
    own = rows.double().abs().amax(1, keepdim=True) / 127
    expected = ((rows / own).round() * own) @ ((weight / step).round() * step).T + bias
    torch.testing.assert_close(made(rows).double(), expected, rtol=1e-5, atol=1e-6)
    error = (made(rows) - given(rows)).abs().amax(1) / given(rows).abs().amax(1)
    assert error.max() < 0.03, error
    assert made.weight.dtype == torch.int8
    assert int(made.weight.min()) >= -127


@torch.no_grad()
def test_a_row_has_the_same_bits_beside_any_others() -> None:
    made, rows = Int8Linear.of(linear()), torch.randn(64, 40, generator=torch.Generator().manual_seed(2))
    whole = made(rows)
    for size in (1, 2, 3, 17):
        assert torch.equal(torch.cat([made(part) for part in rows.split(size)]), whole)
    assert torch.equal(made(rows.view(4, 16, 40)).view(64, -1), whole)
    assert torch.equal(made(torch.zeros(2, 40)), made.bias.expand(2, -1))


@torch.no_grad()
def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Embedding(5, 40), nn.Sequential(linear(), nn.LayerNorm(24)), nn.Linear(24, 3, bias=False)
    )
    small = quantise(copy.deepcopy(network))
    assert (is_int8(network), is_int8(small)) == (False, True)
    assert isinstance(small[1][0], Int8Linear)  # type: ignore[index]
    save_file(small.state_dict(), tmp_path / "model.safetensors")
    again, tensors = copy.deepcopy(network), load_file(tmp_path / "model.safetensors")
    prepare(again, tensors)
    again.load_state_dict(tensors)
    asked = torch.arange(5)
    assert torch.equal(again(asked), small(asked))
    assert (again(asked) - network(asked)).abs().max() < 0.05
    same = copy.deepcopy(network)
    prepare(same, network.state_dict())
    assert not is_int8(same)


def test_what_needs_gradients_is_refused() -> None:
    made = Int8Linear.of(linear())
    with pytest.raises(UserError, match="a model of int8 has no gradients"):
        made(torch.randn(1, 40, requires_grad=True))
    with pytest.raises(
        UserError, match="it is of int8, for predictions on CPUs alone: train from the model that it was"
    ):
        refuse_int8(made, "it", "train from")
    refuse_int8(linear(), "it", "train from")
