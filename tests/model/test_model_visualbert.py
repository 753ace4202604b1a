from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model.model_batches import Both, hf_config, small_config
from pydantic import ValidationError
from transformers import VisualBertForPreTraining

from vbert.model.attention import LengthGroups, attend, attend_padded
from vbert.model.convert import HEADS, fill, sources
from vbert.model.dropout import drop_mask, dropout
from vbert.model.heads import PretrainingModel
from vbert.model.visualbert import PackedBatch, VisualBert, append6

BATCHES = {
    "padded": ([5, 9, 3, 9, 4, 12], [4, 1, 7, 2, 5, 3]),
    "unpadded": ([6, 6, 6], [4, 4, 4]),
    "a text alone": ([6, 3], [0, 4]),
    "one": ([7], [5]),
}


def pair(dtype: torch.dtype) -> tuple[VisualBertForPreTraining, PretrainingModel]:
    """transformers' model with every parameter random (biases and norms too), and ours with the same."""
    torch.manual_seed(3)
    theirs = VisualBertForPreTraining(hf_config()).to(dtype).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    ours = PretrainingModel(small_config()).to(dtype).eval()
    report = fill(
        ours, theirs.state_dict(), sources(small_config(), HEADS, "visual_bert."), (), inside=("visual_bert.",)
    )
    assert report.created == ()
    return theirs, ours


@pytest.mark.parametrize("visual_types", ["zero", "one", "mixed"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dtype", "absolute", "relative"), [(torch.float64, 1e-9, 0.0), (torch.float32, 1e-5, 1e-5)])
def test_all_outputs_are_those_of_transformers(
    batch: str, visual_types: str, dtype: torch.dtype, absolute: float, relative: float
) -> None:
    both = Both(*BATCHES[batch], dtype, visual_types)
    theirs, ours = pair(dtype)
    with torch.no_grad():
        expected = theirs(**both.padded, output_hidden_states=True, output_attentions=True)
        pooled = theirs.visual_bert(**both.padded).pooler_output
        states, maps = ours.encoder.trace(both.packed)
        hidden = ours.encoder(both.packed)
        words, matching = ours(replace(both.packed, at=torch.arange(len(hidden))))

    def close(mine: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(mine, other, atol=absolute, rtol=relative)

    assert len(states) == len(expected.hidden_states) == 4
    for mine, other in zip(states, expected.hidden_states, strict=True):
        close(mine, both.real(other))
    close(hidden, both.real(expected.hidden_states[-1]))
    close(ours.encoder.pool(hidden, both.packed), pooled)
    close(words, both.real(expected.prediction_logits))
    close(matching, expected.seq_relationship_logits)
    longest = max(both.texts)
    for i, (n, k) in enumerate(zip(both.texts, both.regions, strict=True)):
        rows = torch.cat([torch.arange(n), longest + torch.arange(k)])
        for layer, attention in enumerate(expected.attentions):
            close(maps[i][layer], attention[i][:, rows][:, :, rows])


def test_gradients_are_those_of_transformers() -> None:
    both = Both(*BATCHES["padded"], torch.float64)
    theirs, ours = pair(torch.float64)
    masked = torch.tensor([1, 7, 12, 20])
    labels = torch.tensor([4, 8, 15, 16])
    match = torch.tensor([0, 1, 1, 0, 1, 0])
    out = theirs(**both.padded)
    loss = torch.nn.functional.cross_entropy(both.real(out.prediction_logits)[masked], labels)
    (loss + torch.nn.functional.cross_entropy(out.seq_relationship_logits, match)).backward()
    words, matching = ours(replace(both.packed, at=masked))
    loss = torch.nn.functional.cross_entropy(words, labels)
    (loss + torch.nn.functional.cross_entropy(matching, match)).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    gradients["visual_bert.embeddings.word_embeddings.weight"][0] = (  # padding_idx: theirs drops its input gradient
        ours.encoder.embeddings.word.weight.grad[0]
    )
    for name, places in sources(small_config(), HEADS, "visual_bert.").items():
        mine = ours.get_parameter(name).grad
        other = torch.cat([gradients[place] for place in places])
        torch.testing.assert_close(mine, other, atol=1e-11, rtol=0)


def test_a_sequence_is_the_same_in_any_company_and_order() -> None:
    both = Both(*BATCHES["padded"], torch.float64)
    model = VisualBert(small_config(), torch.Generator().manual_seed(0)).double().eval()
    together = model(both.packed).split(both.packed.lengths.tolist())
    texts = both.packed.text_ids.split(both.texts)
    types = both.packed.text_types.split(both.texts)
    visuals = both.packed.visual.split(both.regions)
    for some in ([2], [5, 0, 3], [1, 3, 2, 0]):
        batch = PackedBatch.of(
            *([list(part[i].numpy()) for i in some] for part in (texts, types)), [visuals[i].numpy() for i in some]
        )
        for i, alone in zip(some, model(batch).split(batch.lengths.tolist()), strict=True):
            torch.testing.assert_close(alone, together[i], atol=1e-12, rtol=0)


def test_same_batch_same_bits_forward_and_backward() -> None:
    both = Both(*BATCHES["padded"], torch.float32)
    runs = []
    for _ in range(2):
        model = VisualBert(small_config(hidden_dropout=0.1), torch.Generator().manual_seed(0)).train()
        torch.manual_seed(1)
        hidden = model(both.packed)
        hidden.square().sum().backward()
        runs.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_dropout_0_trains_as_eval_and_dropout_changes_training_only() -> None:
    both = Both(*BATCHES["padded"], torch.float32)
    none = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    still = VisualBert(small_config(**none), torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(still.train()(both.packed), still.eval()(both.packed))
    assert torch.equal(torch.get_rng_state(), state), "dropout 0 drew numbers"
    for kind in none:
        dropping = VisualBert(small_config(**{**none, kind: 0.5}), torch.Generator().manual_seed(0))
        assert torch.equal(dropping.eval()(both.packed), still(both.packed))
        assert not torch.allclose(dropping.train()(both.packed), still(both.packed))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    for shape, share in (((501, 401), 0.1), ((7, 3), 0.9), ((200, 200), 0.5)):
        mask = drop_mask(shape, share, torch.float64)
        values = mask.unique()
        assert mask.shape == shape
        assert values[0] == 0
        assert abs(float(values[1]) - 1 / (1 - share)) < 1e-3
    big = drop_mask((1000, 1000), 0.1, torch.float64)
    assert abs(float((big == 0).double().mean()) - 0.1) < 0.001
    assert abs(float(big.mean()) - 1) < 0.001
    runs = (big == 0).double()
    assert abs(float((runs[:, 1:] * runs[:, :-1]).mean()) - 0.01) < 0.0005, "neighbours are independent"
    assert not torch.equal(drop_mask((50, 50), 0.5, torch.float32), drop_mask((50, 50), 0.5, torch.float32))


def test_the_scale_of_dropout_is_exact_in_bf16() -> None:
    """Rounded to bf16 it is 0.16 % too small for 0.1, in every layer."""
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        hidden = torch.randn(500, 800).to(dtype).requires_grad_()
        out = dropout(hidden, 0.1, True)
        out.backward(torch.ones_like(out) * 1.3)
        assert out.dtype == dtype
        assert hidden.grad is not None
        kept = out != 0
        scale = out.detach()[kept].double().abs().sum() / hidden.detach()[kept].double().abs().sum()
        assert abs(float(scale) * 0.9 - 1) < 1e-4, dtype
        assert torch.equal(hidden.grad != 0, kept)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_attention_are_those_of_finite_differences(dropout: float) -> None:
    lengths = torch.tensor([3, 2, 3, 1])
    layout = LengthGroups(lengths, heads=2, device=torch.device("cpu"))
    qkv = torch.randn(9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def repeatable(rows: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return attend(rows, layout, dropout)

    assert torch.autograd.gradcheck(repeatable, qkv)


def test_padded_attention_is_the_grouped() -> None:
    lengths = torch.tensor([30, 7, 30, 12, 1])
    layout = LengthGroups(lengths, 2, torch.device("cpu"))
    qkv = torch.randn(80, 3 * 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = []
    for way in (attend, attend_padded):
        out = way(qkv, layout, 0.0)
        results.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu_is_that_on_a_cpu(dtype: torch.dtype) -> None:
    lengths = torch.tensor([30, 7, 30, 12])
    rows = torch.randn(79, 3 * 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        qkv = rows.detach().clone().to(device).requires_grad_()
        out = attend(qkv, LengthGroups(lengths, 2, torch.device(device)), dropout=0.0)
        out.float().square().sum().backward()
        results.append((out.detach().cpu().float(), qkv.grad.cpu().float()))
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


def test_the_initial_weights_depend_on_the_generator_only() -> None:
    first, second, third = (VisualBert(small_config(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.pooler.weight, third.pooler.weight)
    assert torch.equal(first.embeddings.visual_position.weight, first.embeddings.position.weight)
    assert 0.015 < float(first.embeddings.word.weight.detach().std()) < 0.025


def test_standardised_input_is_what_the_statistics_make_of_it() -> None:
    both = Both(*BATCHES["padded"], torch.float64)
    plain = VisualBert(small_config(), torch.Generator().manual_seed(0)).double().eval()
    standard = VisualBert(small_config(standardise=True), torch.Generator().manual_seed(0)).double().eval()
    mean, std = both.packed.visual.mean(0), both.packed.visual.std(0)
    std[3] = 0.0  # a dead feature
    standard.set_statistics(mean, std)
    std[3] = 1.0
    expected = plain(PackedBatch(**{**vars(both.packed), "visual": (both.packed.visual - mean) / std}))
    torch.testing.assert_close(standard(both.packed), expected, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="standardise: true"):
        plain.set_statistics(mean, std)


def test_box_numbers_are_multiplied_by_their_gain() -> None:
    """With weights of the box numbers a sixth as large, six times the numbers are the same."""
    sizes = {"standardise": True, "box_input": "append6", "visual_dim": 4}
    plain, gained = (
        VisualBert(small_config(**sizes, **gain), torch.Generator().manual_seed(0)).double().eval()
        for gain in ({}, {"box_gain": 6.0})
    )
    visual = torch.rand(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (plain, gained):
        model.set_statistics(visual.mean(0), visual.std(0))
    with torch.no_grad():
        gained.embeddings.visual_projection.weight[:, 4:] /= 6
    batch = PackedBatch.of([[1, 2], [3]], [[0, 0], [0]], [visual[:2].numpy(), visual[2:].numpy()])
    torch.testing.assert_close(gained(batch), plain(batch), atol=1e-12, rtol=0)
    with pytest.raises(ValidationError, match="box_gain"):
        small_config(box_input="none", standardise=True, box_gain=6.0)


def test_packed_puts_each_text_before_its_regions() -> None:
    batch = PackedBatch.of([[1, 2, 3], [4]], [[0, 0, 1], [0]], [np.full((1, 2), 7.0), np.full((2, 2), 8.0)])
    assert batch.order.tolist() == [0, 1, 2, 4, 3, 5, 6]
    assert batch.text_positions.tolist() == [0, 1, 2, 0]
    assert batch.lengths.tolist() == [4, 3]
    assert batch.starts().tolist() == [0, 4]
    assert batch.visual_types.tolist() == [0, 0, 0]


def test_append6_is_the_originals_layout() -> None:
    numbers = append6(np.array([[10, 20, 30, 60], [0, 0, 100, 80]], np.float32), width=100, height=80)
    expected = [[0.1, 0.25, 0.3, 0.75, 0.2, 0.5], [0, 0, 1, 1, 1, 1]]
    np.testing.assert_allclose(numbers, expected, atol=1e-7)
    assert numbers.dtype == np.float32
    assert append6(np.zeros((0, 4), np.float32), 5, 5).shape == (0, 6)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 24 is not a multiple of heads 5"):
        small_config(heads=5)
    assert small_config().intermediate_size == 96
    assert small_config(box_input="append6").visual_input == 16
