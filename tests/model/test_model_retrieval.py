"""Pairs combined from texts and images that are embedded once, equal to a batch of every pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vbert.model.config import VisualBertConfig
from vbert.model.retrieval import (
    PairScorer,
    RetrievalBatch,
    RetrievalModel,
    TextsAndImages,
    TextTokens,
    draw_negatives,
)
from vbert.model.visualbert import PackedBatch

WIDTH = 11
BARE = [2, 3]


def model(layers: int, dropout: float = 0.0) -> RetrievalModel:
    sizes = {"hidden_dropout": dropout, "attention_dropout": dropout, "box_input": "none", "initializer_range": 0.2}
    config = VisualBertConfig(layers=layers, hidden_size=16, heads=2, vocab_size=30, visual_dim=WIDTH, **sizes)
    return RetrievalModel(config, 8, 0, torch.Generator().manual_seed(0)).eval()


def texts_and_images() -> tuple[list[TextTokens], list[np.ndarray]]:
    """Texts of 3 to 9 tokens, images of 0 to 5 regions."""
    draw = np.random.default_rng(0)
    texts = [([2, *draw.integers(4, 30, n).tolist(), 3], [0] * (n + 2)) for n in (1, 5, 3, 7, 3)]
    return texts, [draw.normal(size=(n, WIDTH)).astype(np.float32) for n in (2, 0, 5, 2)]


def grid(texts: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(texts), images), np.tile(np.arange(images), texts)


def plainly(of: RetrievalModel, texts: list[TextTokens], visuals: list[np.ndarray]) -> Tensor:
    """The match minus the mismatch logit of a batch of these sequences."""
    batch = PackedBatch.of([ids for ids, _ in texts], [types for _, types in texts], visuals)
    logits = of.matching(of.encoder.pool(of.encoder(batch), batch))
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_scores_and_vectors_are_those_of_a_batch_of_every_pair(layers: int, budget: int) -> None:
    of, (texts, visuals) = model(layers), texts_and_images()
    scorer = PairScorer(of, texts, BARE, visuals)
    scorer.budget = budget
    left, right = grid(len(texts), len(visuals))
    order = np.random.default_rng(1).permutation(len(left))
    with torch.no_grad():
        wanted = plainly(of, [texts[t] for t in left[order]], [visuals[i] for i in right[order]])
        alone = [of.encoder(PackedBatch.of([ids], [types], [np.zeros((0, WIDTH), np.float32)])) for ids, types in texts]
        bare = [of.encoder(PackedBatch.of([BARE], [[0, 0]], [visual])) for visual in visuals]
        assert of.dual is not None
        vectors = [of.dual.text(h[0]) for h in alone], [of.dual.image(h[0]) for h in bare]
    assert wanted.std() > 0.03
    np.testing.assert_allclose(scorer.scores(left[order], right[order]), wanted, atol=1e-5)
    for made, raw in zip((scorer.text_vectors(), scorer.image_vectors()), vectors, strict=True):
        np.testing.assert_allclose(made, torch.nn.functional.normalize(torch.stack(raw), dim=-1), atol=1e-5)


def test_gradients_are_those_of_a_batch_of_every_pair() -> None:
    of, (texts, visuals) = model(2), texts_and_images()
    left, right = grid(len(texts), len(visuals))
    items = TextsAndImages.of([*texts, (BARE, [0, 0])], visuals, WIDTH)
    weights = torch.linspace(-1, 1, len(left))
    (of.scores(items.places, of.embed(items), left, right) * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}
    of.zero_grad(set_to_none=True)
    (plainly(of, [texts[t] for t in left], [visuals[i] for i in right]) * weights).sum().backward()
    theirs = {name: p.grad for name, p in of.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_a_batch_draws_its_wrong_pairs_and_drops_out() -> None:
    """Two of either kind beside the right pair; a text without a wrong image in the batch has none."""
    of, (texts, visuals) = model(2, dropout=0.5), texts_and_images()
    of.wrong = 2
    count = len(visuals)
    alike = torch.eye(count, dtype=torch.bool)
    alike[0] = True
    pairs = torch.arange(count).expand(2, -1)[:, :, None]
    items = TextsAndImages.of([*texts[:count], (BARE, [0, 0])], visuals, WIDTH)
    of.train()
    torch.manual_seed(0)
    first, again = (of(RetrievalBatch(items, pairs, alike)) for _ in range(2))
    assert first.scores.shape == (count, 5)
    assert first.valid.tolist() == [[True, False, False, True, True], *[[True] * 5] * (count - 1)]
    assert not torch.equal(first.scores[:, 0], again.scores[:, 0])
    torch.manual_seed(0)
    assert torch.equal(of(RetrievalBatch(items, pairs, alike)).scores, first.scores)


def test_negatives_are_drawn_in_proportion_and_never_of_those_alike() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[9.0, 0.0, 1.0, 2.0]] * 4)
    alike = torch.eye(4, dtype=torch.bool)
    alike[0, 3] = True
    shares = torch.zeros(4, 4)
    for _ in range(300):
        pairs, found = draw_negatives(scores, alike, 1)
        assert bool(found.all())
        texts, images = pairs[:, :, 0]
        assert not alike[texts, images].any()
        shares[texts, images] += 1 / 300
        assert not alike[pairs[0, :, 1], pairs[1, :, 1]].any()
    likely = torch.softmax(torch.tensor([0.0, 1.0]), 0)
    torch.testing.assert_close(shares[0, 1:3], likely, atol=0.1, rtol=0)
    assert shares[1, 0] > 0.98
