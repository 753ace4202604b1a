"""Pre-training on the labels of a task: statements over two images, and which of several choices is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from objectives.objectives_world import MODEL, World, job
from objectives.tasks_world import COLOURS, evaluate, finetune, make_tasks_world
from pydantic import ValidationError

from vbert.artifacts.steps.settings import Numerics
from vbert.errors import UserError
from vbert.model.start import Initialization
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.mlm_itm import Pretraining
from vbert.objectives.pretraining.run import run_pretrain
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model

BRIEF = {"steps": 60, "batch_size": 32, "learning_rate": 5e-3, "itm_target": "task_label", "validation_examples": 20}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tasks_world(tmp_path_factory.mktemp("tasks"))


def on(*kinds: str, **changes: Any) -> PretrainSettings:
    return PretrainSettings.model_validate({**BRIEF, "kinds": kinds, "matched": kinds, **changes})


def task(world: World, settings: PretrainSettings) -> Pretraining:
    model = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0)
    data = {"world": PretrainData(world.examples, world.shards)}
    return Pretraining(data, world.vocabulary.encoder(), model, settings, 0)


@pytest.mark.parametrize(("kind", "name"), [("pair", "nlvr2"), ("choice", "choice")])
def test_the_task_s_head_starts_from_what_was_learnt_of_its_labels(
    kind: str, name: str, world: World, tmp_path: Path
) -> None:
    """Without a step of fine-tuning it answers as the matching head, from what a pre-training of masks begins with."""
    data, start = {"world": PretrainData(world.examples, world.shards)}, Initialization(world.vocabulary, MODEL)
    run_pretrain(job(tmp_path / "masks"), data, start, on("question", itm_target="off", steps=2), Numerics(), 0)
    first = Model.at(tmp_path / "masks" / "out")
    figures = run_pretrain(job(tmp_path / "labels"), data, first, on(kind), Numerics(), 0)
    assert figures["itm_accuracy"] >= 0.95, figures
    still = finetune(tmp_path / "same", world, name, Model.at(tmp_path / "labels" / "out"), steps=1, learning_rate=0.0)
    assert evaluate(tmp_path / "test", world, still, name).metrics()["accuracy"] >= 0.95


def test_a_statement_is_matched_with_both_of_its_images(world: World) -> None:
    made = task(world, on("pair"))
    corpus = made.train[0]
    for i in range(12):
        ((_, found),) = made._training_samples(i, 0)
        row = corpus.rows.row(i)
        assert (list(found.input.images), found.match) == (row["image_ids"], int(row["label"] == "true"))
        assert len(found.input.images) == 2


def test_each_choice_is_a_sequence_and_the_right_one_matches(world: World) -> None:
    """`[CLS] context [SEP] choice [SEP]` of each with segments 0 and 1, masked, words naming their regions."""
    made = task(world, on("choice", masked=0.5))
    corpus, encoder, masked = made.train[0], made.encoder, 0
    for i in range(12):
        found = [one for _, one in made._training_samples(i, 0)]
        row = corpus.rows.row(i)
        assert [one.match for one in found] == [int(str(k) == row["label"]) for k in range(len(COLOURS))]
        for one, choice in zip(found, row["choices"], strict=True):
            ids = list(one.input.text.ids)
            for place, piece in zip(one.input.at, one.true, strict=True):
                ids[place] = piece
            assert encoder.text(ids) == f"[CLS] {row['text']} [SEP] {choice['text']} [SEP]"
            ((region, place),) = one.input.aligned
            assert (region, encoder.text([ids[place]])) == (0, choice["text"].split()[-1])
            assert one.input.text.types[place] == 1
            masked += len(one.true)
    assert masked > 60
    batch = made.collate([(i, 0) for i in range(12)])
    assert (len(batch.packed.lengths), batch.tensors["match"].tolist()) == (36, [0, 1, 0] * 12)


def test_unmatched_choices_are_masked_alone_and_true(world: World) -> None:
    """Also where other images' regions are shown, which have no names."""
    made = task(world, on("choice", matched=("pair",), masked=0.9))
    for i in range(6):
        ((_, found),) = made._training_samples(i, 0)
        assert found.match == -1
        assert found.input.at
    shuffled = task(world, on("choice", images="shuffled"))
    assert all(not one.input.aligned for i in range(6) for _, one in shuffled._training_samples(i, 0))


def test_a_choice_shows_the_regions_that_it_is_about(world: World, tmp_path: Path) -> None:
    from vbert.data.examples import Examples, write_examples

    rows = [row | {"boxes": [[8, 8, 40, 40]]} for row in world.examples.table().to_pylist() if row["kind"] == "choice"]
    write_examples(tmp_path, rows)
    made = task(world._replace(examples=Examples.at(tmp_path)), on("choice"))
    assert [list(one.input.regions or ()) for _, one in made._training_samples(0, 0)] == [[1]] * 3
    assert made.collate([(0, 0)]).packed.visual.shape[0] == 3


def test_what_can_not_be_matched_by_labels_is_refused(world: World, tmp_path: Path) -> None:
    from vbert.data.examples import Examples, write_examples

    with pytest.raises(ValidationError, match="write itm_target: task_label"):
        on("choice", itm_target="mismatch")
    rows = [row | {"label": None} for row in world.examples.table().to_pylist() if row["kind"] == "choice"]
    write_examples(tmp_path, rows)
    made = task(world._replace(examples=Examples.at(tmp_path)), on("choice"))
    with pytest.raises(UserError, match=r"example 'c.*' has no label"):
        made._training_samples(0, 0)


def test_the_vocabulary_knows_the_words_of_choices(world: World) -> None:
    from tasks.vocabulary import training_texts

    assert {f"it is {colour}" for colour in COLOURS} <= set(training_texts(world.examples))
