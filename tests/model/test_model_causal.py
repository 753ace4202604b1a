"""Causal texts: attention and encoder against a dense masked reference, and what a word can and can't change."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vbert.model.attention import LengthGroups, attend, attend_padded, attention_maps
from vbert.model.visualbert import PackedBatch, VisualBert, VisualBertConfig

LENGTHS, CAUSAL = [7, 5, 7, 7, 3, 4, 7, 2], [3, 2, 0, 3, 3, 0, 5, 1]
HEADS, SIZE = 2, 8


def seen(length: int, causal: int) -> Tensor:
    """bool [length, length]: which keys (columns) each query sees, written out."""
    rows = [[key >= causal or (query < causal and key <= query) for key in range(length)] for query in range(length)]
    return torch.tensor(rows)


def dense(qkv: Tensor, lengths: list[int], causal: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Attention by sequence with a mask, and its probabilities."""
    out, maps = [], []
    for rows, first in zip(qkv.split(lengths), causal, strict=True):
        q, k, v = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in rows.chunk(3, 1))
        scores = q @ k.mT / (SIZE // HEADS) ** 0.5
        weights = scores.masked_fill(~seen(len(rows), first).to(qkv.device), float("-inf")).softmax(-1)
        maps.append(weights)
        out.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(out), maps


@pytest.mark.parametrize(
    ("kernel", "device"),
    [
        pytest.param(attend, "cpu", id="plain and cpu"),
        pytest.param(attend_padded, "cpu", id="padded"),
        pytest.param(
            attend, "cuda", id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
@pytest.mark.parametrize("causal", [CAUSAL, [0] * 8, LENGTHS])
def test_attention_of_causal_sequences_is_the_dense_masked_one(kernel, device, causal):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 3 * SIZE, generator=generator).to(device).requires_grad_()
    above = torch.randn(sum(LENGTHS), SIZE, generator=generator).to(device)
    expected, maps = dense(qkv, LENGTHS, causal)
    (wanted,) = torch.autograd.grad(expected, qkv, above)
    layout = LengthGroups(torch.tensor(LENGTHS), HEADS, torch.device(device), torch.tensor(causal))
    out = kernel(qkv, layout, 0.0)
    (gradient,) = torch.autograd.grad(out, qkv, above)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    for map_, reference in zip(attention_maps(qkv, layout), maps, strict=True):
        torch.testing.assert_close(map_, reference, atol=1e-6, rtol=1e-5)


def test_dropout_of_causal_attention_has_its_own_gradient():
    qkv = torch.randn(12, 3 * SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layout = LengthGroups(torch.tensor([5, 7]), HEADS, torch.device("cpu"), torch.tensor([3, 4]))

    def dropped(x: Tensor) -> Tensor:
        torch.manual_seed(2)
        return attend(x, layout, 0.3)

    assert torch.autograd.gradcheck(dropped, (qkv.requires_grad_(True),))


def batch(texts: list[list[int]], counts: list[int], causal: list[int]) -> PackedBatch:
    draw = np.random.default_rng(5)
    visuals = [draw.standard_normal((n, 6), np.float32) for n in counts]
    return PackedBatch.of(texts, [[0] * len(text) for text in texts], visuals, causal=causal)


@pytest.mark.parametrize("place", [1, 2, 4])
def test_a_word_changes_no_earlier_token_and_no_region_bit_for_bit(place):
    torch.manual_seed(0)
    config = VisualBertConfig(
        vocab_size=50, visual_dim=6, hidden_size=16, layers=3, heads=2, intermediate_size=32, box_input="none"
    )
    model = VisualBert(config).eval()
    texts, counts = [[2, 9, 8, 7, 6, 3], [2, 5, 3], [2, 9, 8, 7, 6, 3]], [4, 3, 0]
    causal = [len(text) for text in texts]
    other = [list(text) for text in texts]
    other[0][place] = 30
    with torch.no_grad():
        before, after = model(batch(texts, counts, causal)), model(batch(other, counts, causal))
        bidirectional = model(batch(texts, counts, [0, 0, 0])), model(batch(other, counts, [0, 0, 0]))
    same = (before == after).all(1).tolist()
    expected = [True] * place + [False] * (6 - place) + [True] * (len(same) - 6)
    assert same == expected
    assert not (bidirectional[0] == bidirectional[1]).all(1)[0]
