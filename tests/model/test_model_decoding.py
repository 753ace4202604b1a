"""Cached decoding against recomputing every text: hidden states, beams that part and change places, and [MASK]s."""

import numpy as np
import pytest
import torch

from vbert.model.visualbert import PackedBatch, VisualBert, VisualBertConfig

MASK = 4
COUNTS = [3, 5, 3, 1, 0, 0]  # regions of the images
TAGS = [[7, 8], [9], [7, 6], [], [5, 5, 5], []]  # a second text, one without


@pytest.fixture(scope="module")
def model():
    config = VisualBertConfig(
        vocab_size=40, visual_dim=6, hidden_size=16, layers=3, heads=2, intermediate_size=32, box_input="none",
        initializer_range=0.3,
    )  # fmt: skip
    return VisualBert(config, torch.Generator().manual_seed(3)).eval()


def images():
    draw = np.random.default_rng(1)
    return [draw.standard_normal((n, 6)).astype(np.float32) for n in COUNTS]


def begun(model, padded=None):
    behind = [[20 + place for place in range(len(tags))] for tags in TAGS]
    types = [[1] * len(tags) for tags in TAGS]
    return model.begin(PackedBatch.of(TAGS, types, images(), positions=behind), padded)


def recomputed(model, image: int, text: list[int]) -> torch.Tensor:
    """The states of a causal text beside the image, [pieces, H]."""
    tags = TAGS[image]
    batch = PackedBatch.of(
        [text + tags],
        [[0] * len(text) + [1] * len(tags)],
        [images()[image]],
        causal=[len(text)],
        positions=[[*range(len(text)), *range(20, 20 + len(tags))]],
    )
    with torch.no_grad():
        return model(batch)[: len(text)]


@pytest.mark.parametrize("padded", [False, True])
def test_words_read_from_a_mask_are_those_of_recomputing_with_beams_that_part(model, padded):
    cache, width = begun(model, padded), 2
    hidden = model.step(cache, torch.tensor([[2, MASK]] * len(COUNTS)), kept=1)
    for place, image in enumerate(cache.images):
        torch.testing.assert_close(hidden[place], recomputed(model, image, [2, MASK]), atol=1e-5, rtol=1e-5)
    texts, draw = [[2] for _ in COUNTS], np.random.default_rng(2)
    rows = torch.arange(len(COUNTS)).repeat_interleave(width)
    for _ in range(4):
        texts = [[*texts[row], int(draw.integers(5, 40))] for row in rows]
        tokens = torch.tensor([[text[-1], MASK] for text in texts])
        hidden = model.step(cache, tokens, rows, kept=1)
        for place, text in enumerate(texts):
            expected = recomputed(model, cache.images[place // width], [*text, MASK])[-2:]
            torch.testing.assert_close(hidden[place], expected, atol=1e-5, rtol=1e-5)
        rows = torch.tensor([width * (k // width) + int(draw.integers(width)) for k in range(len(texts))])
    assert cache.length == 5


def test_next_words_are_those_of_recomputing(model):
    cache, text = begun(model), [2]
    for piece in (9, 30, 11):
        hidden = model.step(cache, torch.tensor([[text[-1]]] * len(COUNTS)))
        for place, image in enumerate(cache.images):
            torch.testing.assert_close(hidden[place, 0], recomputed(model, image, text)[-1], atol=1e-5, rtol=1e-5)
        text.append(piece)


def test_an_image_is_kept_once_for_all_its_beams(model):
    cache = begun(model)
    before = [group.keys.data_ptr() for layer in cache.context for group in layer]
    model.step(cache, torch.tensor([[2, MASK]] * len(COUNTS)), kept=1)
    rows = torch.arange(len(COUNTS)).repeat_interleave(5)
    model.step(cache, torch.tensor([[9, MASK]] * len(rows)), rows, kept=1)
    assert [group.keys.data_ptr() for layer in cache.context for group in layer] == before
    assert sum(group.keys.shape[0] for group in cache.context[0]) == len(COUNTS)
