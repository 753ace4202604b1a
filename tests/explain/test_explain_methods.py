"""Each method against what defines it: a dense reference, completeness, rows that sum to 1."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from explain.explain_world import VQA, explainer, predictions
from objectives.objectives_world import World, make_world
from torch import Tensor, nn
from torch.nn import functional as F

from vbert.errors import UserError
from vbert.explain import METHODS, methods
from vbert.explain.methods import Asked, mean_visual
from vbert.explain.passes import repeated
from vbert.explain.relevance import Explainer, parts, relevances
from vbert.objectives.examined import log_odds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("explained"))


@pytest.fixture(scope="module")
def vqa(world: World) -> Explainer:
    return explainer(world, "vqa", VQA)


def asked_of(of: Explainer, indices: list[int], **options: Any) -> Asked:
    rows = of.side.rows[indices]
    made = predictions(of, indices)
    examined = [of.examined(row, of.inputs(i), p)[0] for i, row, p in zip(indices, rows, made, strict=True)]
    return of.asked(examined, [row["example_id"] for row in rows], **options)


def dense(encoder: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(states, attention [heads, L, L] of each layer) of one sequence, written out: nothing of ours but weights."""
    heads, maps, hidden = encoder.config.heads, [], tokens
    for layer in encoder.layers:
        q, k, v = F.linear(hidden, layer.qkv.weight, layer.qkv.bias).chunk(3, -1)
        q, k, v = (part.view(len(hidden), heads, -1).transpose(0, 1) for part in (q, k, v))
        maps.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1))
        context = (maps[-1] @ v).transpose(0, 1).reshape(len(hidden), -1)
        hidden = layer.norm1(hidden + layer.out(context))
        hidden = layer.norm2(hidden + layer.down(F.gelu(layer.up(hidden))))
    return hidden, maps


def reference(of: Explainer, asked: Asked, k: int) -> tuple[float, list[Tensor], list[Tensor]]:
    """(score, attention, its gradient) of input k alone."""
    one = asked.pack([asked.examined[k].input])
    hidden, maps = dense(of.network.encoder, of.network.encoder.embeddings(one).detach())
    logits = of.network.answer.dense(hidden[one.at])[0]
    target = asked.examined[k].target
    score = logits[target] - logits[[n for n in range(len(logits)) if n != target]].logsumexp(0)
    return float(score.detach()), maps, list(torch.autograd.grad(score, maps))


def test_attention_and_its_gradient_are_those_of_a_dense_pass(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3, 5, 9])
    for k in range(4):
        score, maps, slopes = reference(vqa, asked, k)
        with torch.no_grad():
            assert float(asked.score(asked.batch, asked.targets)[k]) == pytest.approx(score, abs=1e-4)
        torch.testing.assert_close(asked.maps[k], asked.watched.maps[k])
        torch.testing.assert_close(asked.watched.maps[k], torch.stack(maps).detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(asked.watched.slopes[k], torch.stack(slopes), atol=1e-4, rtol=1e-3)


def test_gradient_attention_is_the_rule_of_chefer_et_al(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3, 5, 9])
    for k, relevance in enumerate(methods.gradient_attention(asked)):
        _, maps, slopes = reference(vqa, asked, k)
        rows = torch.eye(maps[0].shape[-1])
        for map_, slope in zip(maps, slopes, strict=True):
            rows = rows + (map_ * slope).clamp(min=0).mean(0) @ rows
        (place,) = asked.examined[k].input.at
        expected = rows[place].detach().double().numpy()
        expected[place] -= 1  # the token's own, from the identity that the rule begins with
        np.testing.assert_allclose(relevance, expected, atol=1e-4, rtol=1e-3)


def test_rollout_is_the_product_of_dense_maps_and_its_rows_sum_to_one(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3, 5, 9])
    for k, relevance in enumerate(methods.rollout(asked)):
        _, maps, _ = reference(vqa, asked, k)
        rows = torch.eye(len(relevance))
        for map_ in maps:
            rows = (0.5 * map_.mean(0) + 0.5 * torch.eye(len(relevance))) @ rows
        (place,) = asked.examined[k].input.at
        np.testing.assert_allclose(relevance, rows[place].detach().numpy(), atol=1e-5)
        assert relevance.sum() == pytest.approx(1, abs=1e-6)


def test_attention_of_a_layer_and_head(vqa: Explainer) -> None:
    indices = [0, 3, 5, 9]
    _, maps, _ = reference(vqa, asked_of(vqa, indices), 1)
    (place,) = asked_of(vqa, indices).examined[1].input.at
    last = methods.attention(asked_of(vqa, indices))[1]
    np.testing.assert_allclose(last, maps[-1].mean(0)[place].detach().numpy(), atol=1e-5)
    chosen = methods.attention(asked_of(vqa, indices, layer=0, head=1))[1]
    np.testing.assert_allclose(chosen, maps[0][1, place].detach().numpy(), atol=1e-5)
    with pytest.raises(UserError, match="layer: 3, but the model has 3, from 0 to 2"):
        vqa.explain(0, predictions(vqa, [0])[0], "attention", layer=3)
    with pytest.raises(UserError, match="head: 0 is of the method attention"):
        vqa.explain(0, predictions(vqa, [0])[0], "rollout", head=0)


@pytest.mark.parametrize("standardise", [True, False])
def test_integrated_gradients_are_complete(world: World, standardise: bool) -> None:
    of = explainer(world, "vqa", VQA, standardise=standardise, layers=2, initializer_range=0.15)
    asked = asked_of(of, [0, 3, 5, 9])
    found = methods.integrated_gradients(asked)
    batch, mask = asked.batch, asked.pieces.mask
    begin = [one.input for one in asked.examined]
    for k, one in enumerate(begin):
        empty = asked.pack([one])
        empty.text_ids = torch.tensor(
            [mask if w >= 0 else i for i, w in zip(one.text.ids, one.text.words, strict=True)]
        )
        empty.visual = mean_visual(of.network.encoder, batch).expand_as(empty.visual)
        assert bool(empty.visual.abs().sum() > 0) is standardise
        target = torch.tensor([asked.examined[k].target])
        with torch.no_grad():
            gained = asked.score(asked.pack([one]), target) - asked.score(empty, target)
        assert found[k].sum() == pytest.approx(float(gained), abs=2e-3 * (1 + abs(float(gained))))
        special = [place for place, word in enumerate(one.text.words) if word < 0]
        assert not found[k][special].any()


def test_removal_is_what_the_score_loses_and_half_of_what_it_gains(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3, 5, 9])
    one, relevance = asked.examined[1], methods.removal(asked)[1]
    ids, target = one.input.text.ids, torch.tensor([one.target])
    places = [place for place, word in enumerate(one.input.text.words) if word >= 0]
    regions = len(relevance) - len(ids)

    def score(words: set[int], kept: list[int]) -> float:
        """Of the words at `words` and the regions `kept`."""
        shown = [i if place in words or place not in places else asked.pieces.mask for place, i in enumerate(ids)]
        changed = replace(one.input, text=replace(one.input.text, ids=shown), regions=kept)
        with torch.no_grad():
            return float(asked.score(asked.pack([changed]), target))

    every, regions_too = set(places), list(range(regions))
    whole, nothing = score(every, regions_too), score(set(), [])
    place = places[1]
    expected = whole - score(every - {place}, regions_too) + (score({place}, []) - nothing) / 2
    assert relevance[place] == pytest.approx(expected, abs=1e-4)
    others = [region for region in regions_too if region != 0]
    expected = whole - score(every, others) + (score(set(), [0]) - nothing) / 2
    assert relevance[len(ids)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_beside_an_input_changes_nothing(vqa: Explainer, method: str) -> None:
    together = relevances(asked_of(vqa, [0, 3, 5, 9]), method)
    for k, i in enumerate([0, 3, 5, 9]):
        (alone,) = relevances(asked_of(vqa, [i]), method)
        np.testing.assert_allclose(alone, together[k], atol=2e-5, rtol=1e-3)


def test_words_are_sums_of_their_pieces(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3])
    by_token = relevances(asked, "rollout")
    for part, relevance in zip(parts(asked, by_token), by_token, strict=True):
        text = part.examined.input.text
        special = sum(relevance[place] for place, word in enumerate(text.words) if word < 0)
        assert sum(part.relevant) + sum(part.regions) + special == pytest.approx(1, abs=1e-6)
        assert len(part.words) == 1 + max(text.words)


def test_controls_go_by_size_and_by_the_detector(vqa: Explainer) -> None:
    asked = asked_of(vqa, list(range(8)))
    for k, (by_size, by_detector) in enumerate(zip(methods.size(asked), methods.detector(asked), strict=True)):
        boxes, words = asked.boxes[k], len(asked.examined[k].input.text.ids)
        assert boxes is not None
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert np.argsort(by_size[words:]).tolist() == np.argsort(areas).tolist()
        assert by_detector[words:].tolist() == list(asked.scores[k])
    first, again = methods.random(asked), methods.random(asked)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0][:4], first[1][:4])


def test_copies_of_a_batch_give_its_scores_again(vqa: Explainer) -> None:
    asked = asked_of(vqa, [0, 3, 5])
    with torch.no_grad():
        once = asked.score(asked.batch, asked.targets)
        twice = asked.score(repeated(asked.batch, 2), asked.targets.repeat(2))
    torch.testing.assert_close(twice, once.repeat(2), atol=1e-5, rtol=1e-5)


def test_log_odds_and_their_slope() -> None:
    logits = nn.Parameter(torch.tensor([[1.0, 2.0, 0.5], [3.0, float("-inf"), float("-inf")], [90.0, 0.0, 1.0]]))
    found = log_odds(logits, torch.tensor([1, 0, 0]))
    p = torch.softmax(logits[0], 0)[1]
    assert float(found[0]) == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-5)
    assert float(found[1]) == 3.0  # a lone output
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert slope.isfinite().all()
    assert slope[1].tolist() == [1.0, 0.0, 0.0]
    assert float(slope[2, 0]) == 1.0  # where the probability itself has no slope any more


def test_an_unknown_method_names_the_nearest(vqa: Explainer) -> None:
    with pytest.raises(UserError, match="rollout"):
        vqa.explain(0, predictions(vqa, [0])[0], "rolout")
