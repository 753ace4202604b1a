"""The matching diagnostic: of a head that uses images, of one that reads texts alone, and of one that guesses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objectives.objectives_world import MODEL, World, job, make_world

from vbert.data.examples import Examples, write_examples
from vbert.model.start import Initialization
from vbert.objectives.pretraining.corpus import Corpus, PretrainData
from vbert.objectives.pretraining.matching import JudgedPair, accuracies, judged_pairs, matching_warning, text_alone
from vbert.objectives.pretraining.mlm_itm import Pretraining
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.training.ranks import Ranks

SETTINGS = PretrainSettings(steps=0, learning_rate=1e-3, altered=0.5, itm_draw="paired", validation_examples=200)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), images=120)


def corpora(world: World) -> tuple[Corpus, Corpus]:
    data = PretrainData(world.examples, world.shards)
    train, held_out = (Corpus(data, [split], SETTINGS, "append6") for split in ("train", "val"))
    return train, held_out


def pairs_of(corpus: Corpus) -> list[JudgedPair]:
    return judged_pairs([corpus], [range(len(corpus.ids))], SETTINGS)


def test_a_perfect_reader_a_guess_and_one_that_knows_texts_alone(world: World) -> None:
    _, held_out = corpora(world)
    pairs = pairs_of(held_out)
    assert {t.pair.kind for t in pairs} == {"true", "other", "altered"}
    perfect = accuracies(pairs, [t.pair.kind == "true" for t in pairs], 0.5)
    assert set(perfect.values()) == {1.0}
    assert set(perfect) == {"", "other", "altered", "altered/color"}
    assert set(accuracies(pairs, [True] * len(pairs), 0.5).values()) == {0.5}  # whatever the head always says
    altered_alone = accuracies(pairs, [t.pair.kind != "altered" for t in pairs], 0.25)
    assert (altered_alone["altered"], altered_alone["other"]) == (1.0, 0.5)
    assert altered_alone[""] == 0.75 * 0.5 + 0.25 * 1.0


def test_fair_negatives_leave_nothing_to_the_text_alone(world: World) -> None:
    train, held_out = corpora(world)
    pairs = pairs_of(held_out)
    found = accuracies(pairs, text_alone([train], pairs, world.vocabulary.encoder()), 0.5)
    assert found["other"] == 0.5  # the same texts
    assert found["altered"] == pytest.approx(0.5, abs=0.1)


def test_a_telling_word_is_found_by_the_text_alone(world: World, tmp_path: Path) -> None:
    """Negatives that can be told from their words, as those drawn from texts of all kinds could."""
    rows = [
        {"example_id": f"{k}", "kind": "caption", "image_ids": [f"{k:03d}"], "split": split, "text": f"one circle {k}",
         "negatives": [f"one square {k}"]}
        for k, split in ((k, "train" if k % 4 else "val") for k in range(2, 100))
    ]  # fmt: skip
    write_examples(tmp_path, rows)
    train, held_out = corpora(World(Examples.at(tmp_path), world.shards, world.vocabulary))
    pairs = pairs_of(held_out)
    found = accuracies(pairs, text_alone([train], pairs, world.vocabulary.encoder()), 0.5)
    assert found["altered"] > 0.9
    assert found["other"] == 0.5


def test_validation_reports_all_of_it(world: World, tmp_path: Path) -> None:
    model = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0).eval()
    data = {"world": PretrainData(world.examples, world.shards)}
    task = Pretraining(data, world.vocabulary.encoder(), model, SETTINGS, 0)
    with torch.no_grad():
        figures, again = (task.validate(Ranks(job(tmp_path))) for _ in range(2))
    assert figures is not None
    assert figures == again  # the same pairs each time
    for seen in ("own", "exchanged", "none", "text"):
        for kind in ("other", "altered"):
            assert 0 <= figures[f"validation/match/{seen}/{kind}"] <= 1
    # Without regions a text is the same whatever image it stands beside.
    assert figures["validation/match/none/other"] == 0.5
    assert figures["validation/match/own/altered/color"] == figures["validation/match/own/altered"]


def test_matching_that_does_not_beat_the_text_is_doubted() -> None:
    assert "0.600" in str(matching_warning({"itm_accuracy": 0.6, "text_only_accuracy": 0.58}))
    assert matching_warning({"itm_accuracy": 0.9, "text_only_accuracy": 0.58}) is None
    assert matching_warning({"mlm_accuracy": 0.9}) is None
