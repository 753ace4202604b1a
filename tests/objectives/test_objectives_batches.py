"""Sampler, masks, statistics and the order of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives.objectives_world import World, make_world

from vbert.model.vocabulary import SPECIAL, TextRules, WordPieceEncoder
from vbert.objectives.batches import ExampleRows, RegionInputs, mask, sentence, share_mask
from vbert.objectives.controls import shuffled_images
from vbert.objectives.statistics import statistics
from vbert.training.sampler import GlobalBatchSampler, derive, generator, items, order

ENCODER = WordPieceEncoder([*SPECIAL, "a", "cat", "##s", "sleep", "这", "是", "一", "只", "猫", "。", "?"], TextRules())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def batches(rank: int = 0, world: int = 1, parts: int = 1, first: int = 0) -> list[list[tuple[int, int]]]:
    return list(
        GlobalBatchSampler(size=7, seed=1, batch_size=12, first=first, last=10, rank=rank, world=world, parts=parts)
    )  # fmt: skip


def test_each_epoch_has_every_example_once() -> None:
    stream = [item for batch in batches() for item in batch][:112]
    for epoch in range(16):
        assert sorted(i for i, e in stream if e == epoch) == list(range(7))
    assert order(7, 1, 0).tolist() != order(7, 1, 1).tolist()


@given(st.integers(0, 10), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_position_ranks_and_parts_cut_one_stream(first: int, world: int, parts: int) -> None:
    stream = items(7, 1, first * 12, 120)
    shares = [batches(rank, world, parts, first) for rank in range(world)]
    merged = []
    for step in range(10 - first):
        mine = [[item for part in share[step * parts : (step + 1) * parts] for item in part] for share in shares]
        merged += [mine[k % world][k // world] for k in range(12)]
    assert merged == stream


def test_seeds_are_recorded_ones() -> None:
    """Golden: another number here is another order of samples in every recipe."""
    assert derive(0, "order", 0) == 878259672076101511
    assert order(5, 0, 0).tolist() == [2, 0, 4, 3, 1]


def test_masking_shares() -> None:
    ids = [ENCODER.cls, *[5, 6, 7, 8] * 2000, ENCODER.sep]
    words = [-1, *[0, 1, 1, 2] * 2000, -1]
    masked = mask(ids, words, ENCODER, generator(0), [0.15] * len(ids))
    assert len(masked.at) / 8000 == pytest.approx(0.15, abs=0.02)
    kinds = [
        ("mask" if masked.ids[i] == ENCODER.mask else "same" if masked.ids[i] == ids[i] else "other") for i in masked.at
    ]
    assert kinds.count("mask") / len(kinds) == pytest.approx(0.8, abs=0.04)
    # A random piece may be the true one: 1 of 11.
    assert kinds.count("other") / len(kinds) == pytest.approx(0.1 * 10 / 11, abs=0.03)
    assert masked.true == [ids[i] for i in masked.at]
    assert all(masked.ids[i] == ids[i] for i in set(range(len(ids))) - set(masked.at))


@given(st.integers(0, 10_000), st.booleans())
def test_special_tokens_are_neither_hidden_nor_drawn(seed: int, whole: bool) -> None:
    text = sentence(ENCODER, [("cats sleep?", ""), ("a cat", "")], 20)
    masked = mask(text.ids, text.words, ENCODER, generator(seed), [0.9] * len(text.ids), whole)
    special = [i for i, piece in enumerate(text.ids) if piece in ENCODER.special]
    assert not set(special) & set(masked.at)
    assert [masked.ids[i] for i in special] == [text.ids[i] for i in special]
    drawn = {masked.ids[i] for i in masked.at}
    assert drawn & ENCODER.special <= {ENCODER.mask}


@given(st.integers(0, 10_000))
def test_whole_words_are_hidden_together(seed: int) -> None:
    text = sentence(ENCODER, [("cats sleep cats", "")], 20)
    hidden = set(mask(text.ids, text.words, ENCODER, generator(seed), [0.4] * len(text.ids), True).at)
    for word in {w for w in text.words if w >= 0}:
        assert len({i in hidden for i, w in enumerate(text.words) if w == word}) == 1


def test_each_piece_has_a_share_of_its_own() -> None:
    ids = [5, 6] * 5000
    masked = mask(ids, [0, 1] * 5000, ENCODER, generator(0), [0.1, 0.5] * 5000)
    content = sum(ids[i] == 6 for i in masked.at)
    assert content / 5000 == pytest.approx(0.5, abs=0.03)
    assert (len(masked.at) - content) / 5000 == pytest.approx(0.1, abs=0.02)


def test_chinese_is_masked_by_character() -> None:
    text = sentence(ENCODER, [("这是一只猫。", "")], 20)
    assert len(text.ids) == 8
    assert ENCODER.unk not in text.ids
    masked = mask(text.ids, text.words, ENCODER, generator(3), [0.6] * 8)
    assert masked.at
    assert all(0 < i < 7 for i in masked.at)


def test_two_texts_have_two_segments_and_are_cut_evenly() -> None:
    text = sentence(ENCODER, [("cats sleep", ""), ("a cat", "")], 20)
    assert text.types == [0] * 5 + [1] * 3
    assert text.words == [-1, 0, 0, 1, -1, 2, 3, -1]
    cut = sentence(ENCODER, [("cats sleep cats sleep", ""), ("a cat", "")], 8)
    assert (len(cut.ids), cut.types.count(1)) == (8, 3)


def test_a_phrase_is_its_pieces_also_where_its_words_stand_twice() -> None:
    given = "a cat, cats: Cats sleep"
    text = sentence(ENCODER, [(given, "cats"), ("cats", "")], 20)
    assert [text.places(at, at + 4) for at in (7, 13)] == [[4, 5], [7, 8]]
    assert text.places(2, 5) == [2]
    assert text.places(10, 11) == [5], "a piece that has more characters"
    assert text.places(5, 7) == [3], "the comma; a space gives no piece"
    assert text.places(12, 13) == []
    assert text.places(0, 4, segment=1) == [13, 14]
    for place, span in enumerate(text.spans):
        assert (span is None) == (text.ids[place] in {ENCODER.cls, ENCODER.sep})


@given(st.text("acsts 是猫。e\u0301İ", max_size=12), st.text("acats 是", max_size=12), st.integers(3, 20))
def test_what_is_cut_off_has_no_place(first: str, second: str, limit: int) -> None:
    whole, cut = (sentence(ENCODER, [(first, ""), (second, "")], most) for most in (99, limit))
    for segment, text in enumerate((first, second)):
        own = [place for place, span in enumerate(cut.spans) if span and cut.types[place] == segment]
        assert cut.places(0, len(text), segment) == own
        every = [whole.ids[place] for place in whole.places(0, len(text), segment)]
        assert [cut.ids[place] for place in own] == every[: len(own)]


def test_rows_without_regions_are_dropped_and_counted(world: World) -> None:
    rows = ExampleRows(world.examples, world.shards, ["train"], ["caption", "question"])
    assert rows.dropped == 12
    assert not {"000", "001"} & {image for images in rows.column("image_ids") for image in images}
    assert [row["example_id"] for row in rows[[3, 0, 3]]] == [rows.column("example_id")[i] for i in (3, 0, 3)]


def test_visual_input_has_box_numbers(world: World) -> None:
    regions = world.shards.read("002")
    visual = RegionInputs(world.shards, "append6")("002")
    assert visual.shape == (len(regions.features), 18)
    np.testing.assert_array_equal(visual[:, :12], regions.features.astype(np.float32))
    assert regions.boxes is not None
    np.testing.assert_allclose(visual[:, 12], regions.boxes[:, 0] / 64, rtol=1e-6)
    assert RegionInputs(world.shards, "none")("002").shape[1] == 12


def test_images_of_a_pair_have_segments(world: World) -> None:
    visual, types = RegionInputs(world.shards, "none").of(["002", "003"])
    first = len(world.shards.read("002").features)
    assert types.tolist() == [0] * first + [1] * (len(visual) - first)


def test_statistics_are_those_of_all_regions(world: World) -> None:
    visuals = RegionInputs(world.shards, "append6")
    ids = world.shards.image_ids()
    mean, deviation = statistics([(visuals, ids[::2]), (visuals, ids[1::2])])
    whole = np.concatenate([visuals(image) for image in ids]).astype(np.float64)
    torch.testing.assert_close(mean, torch.from_numpy(whole.mean(0)).float())
    expected = whole.std(0)
    expected[11] = 1
    torch.testing.assert_close(deviation, torch.from_numpy(expected).float())


def test_exchanged_images_are_all_others() -> None:
    ids = [f"{i}" for i in range(50)]
    shown = shuffled_images(ids[::-1])
    assert shown == shuffled_images(ids)
    assert sorted(shown) == sorted(shown.values()) == sorted(ids)
    assert all(image != other for image, other in shown.items())


def test_a_share_is_of_whole_images_and_inside_a_larger_one() -> None:
    groups = [f"{i % 400}" for i in range(4000)]
    drawn = {
        share: {g for g, kept in zip(groups, share_mask(groups, share, 3), strict=True) if kept}
        for share in (0.02, 0.05, 0.5)
    }
    assert [len(images) for images in drawn.values()] == [8, 20, 200]
    assert drawn[0.02] < drawn[0.05] < drawn[0.5]
    assert sum(share_mask(groups, 0.02, 3)) == 80  # all ten questions of each
    assert share_mask(groups, 0.5, 3) != share_mask(groups, 0.5, 4)
    assert share_mask(groups[::-1], 0.05, 3) == share_mask(groups, 0.05, 3)[::-1]
    assert sum(share_mask(["a"] * 5 + ["b"], 0.01, 0)) in (1, 5)  # never nothing


def test_rows_of_a_share_and_whose_regions_stand_for_theirs(world: World) -> None:
    whole = ExampleRows(world.examples, world.shards, ["train"], ["question"])
    some = ExampleRows(world.examples, world.shards, ["train"], ["question"], 0.25, seed=1)
    images = {image for ids in some.column("image_ids") for image in ids}
    of_them = [
        e for e, ids in zip(whole.column("example_id"), whole.column("image_ids"), strict=True) if ids[0] in images
    ]
    assert some.column("example_id") == of_them
    assert len(some) + some.dropped == 36  # nine of the 36 images, four questions each
    assert some.replacements("own") == {}
    assert some.replacements("shuffled") == shuffled_images(sorted(images))


def test_visuals_keep_no_more_than_their_budget(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vbert.objectives.batches.CACHE", 200)
    visuals = RegionInputs(world.shards, "none")
    for image in world.shards.image_ids():
        visuals(image)
    assert visuals._bytes <= 200
