"""Pre-training's sequences (true and negative pairs, masks, labels), and that it learns and resumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.objectives_world import COLOURS, MODEL, SHAPES, World, job, make_world
from pydantic import ValidationError

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.errors import BuildError, UserError
from vbert.model.start import Initialization
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.mlm_itm import Pretraining
from vbert.objectives.pretraining.run import run_pretrain
from vbert.objectives.pretraining.sequences import PretrainingSequence, PretrainingSequences
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model
from vbert.training.ranks import Ranks
from vbert.training.sampler import generator

BASE = PretrainSettings(steps=150, batch_size=64, learning_rate=5e-3, matched=("caption", "question"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), images=120)


def task(world: World, **changes: object) -> Pretraining:
    settings = BASE.model_copy(update=changes)
    model = Initialization(world.vocabulary, MODEL).build(world.shards.dim, 0)
    data = {"world": PretrainData(world.examples, world.shards)}
    return Pretraining(data, world.vocabulary.encoder(), model, settings, 0)


def samples(task: Pretraining, epochs: int = 3) -> list[tuple[Sequence[str], list[str], int]]:
    """(images, the sequence's texts as read, match) of every sequence of every training example."""
    out = []
    for epoch in range(epochs):
        for i in range(task.size()):
            for _, sample in task._training_samples(i, epoch):
                ids = list(sample.input.text.ids)
                for place, piece in zip(sample.input.at, sample.true, strict=True):
                    ids[place] = piece
                texts = task.encoder.text(ids).removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
                out.append((sample.input.images, texts, sample.match))
    return out


def sample(task: Pretraining, i: int, epoch: int = 0) -> PretrainingSequence:
    """The one sequence of an example."""
    ((_, found),) = task._training_samples(i, epoch)
    return found


def truth(image: str) -> tuple[str, str]:
    return SHAPES[int(image) % 3], COLOURS[int(image) // 3 % 4]


def is_true(image: str, text: str) -> bool:
    """Whether the world's text, answers included, holds of the image."""
    shape, colour = truth(image)
    words = text.replace("?", " ?").split()
    if words[-1] in ("yes", "no"):
        return (words[2] == colour) == (words[-1] == "yes")
    return all(w == shape for w in words if w in SHAPES) and all(w == colour for w in words if w in COLOURS)


def test_pairs_match_where_they_are_true_and_only_there(world: World) -> None:
    """Captions, and questions with an answer: images of equal texts are never wrong ones of each other."""
    for changes in ({"captions": 1, "mismatched": 0.3}, {"itm_draw": "paired", "altered": 0.4}):
        seen = samples(task(world, **changes))
        assert all(is_true(images[0], text) is (match == 1) for images, (text,), match in seen)
        share = sum(match == 0 for *_, match in seen) / len(seen)
        assert share == pytest.approx(0.5 if "itm_draw" in changes else 0.3, abs=0.03)


def test_a_wrong_pair_is_a_text_of_the_data_beside_another_image(world: World) -> None:
    """The same texts stand as often in pairs that match as in others, so a text tells nothing."""
    seen = samples(task(world, itm_draw="paired", kinds=("question",)))
    true, wrong = (Counter(text for _, (text,), match in seen if match == m) for m in (1, 0))
    assert true == wrong


def test_images_known_to_be_false_are_the_ones_taken(world: World) -> None:
    corpus = task(world).train[0]
    rows = corpus.false_of.to_pylist()
    known = {i: [image for image in rows[i] if image in corpus.of_image] for i in range(len(rows)) if rows[i]}
    assert sum(map(bool, known.values())) > 20
    for i, images in known.items():
        for turn in range(4):
            pair = corpus.negative_pair(i, generator(i, turn), "other")
            assert pair is not None
            assert not images or pair.images[0] in images


def test_nothing_is_matched_with_images_that_have_the_same_text(world: World, tmp_path: Path) -> None:
    """One text for all images can't be wrong of any."""
    rows = [
        {"example_id": f"{k}", "kind": "caption", "image_ids": [f"{k:03d}"], "split": "train", "text": "a picture"}
        for k in range(2, 8)
    ]
    write_examples(tmp_path, rows)
    alike = World(Examples.at(tmp_path), world.shards, world.vocabulary)
    with pytest.raises(BuildError, match=r"pretrain\.matched"):
        samples(task(alike, itm_draw="paired"))


def test_altered_texts_are_false(world: World) -> None:
    corpus = task(world).train[0]
    changed = [i for i in range(len(corpus.ids)) if corpus.negatives[i].as_py()]
    assert len(changed) > 50
    for i in changed:
        pair = corpus.negative_pair(i, generator(i), "altered")
        assert pair is not None
        assert pair.images == corpus.images[i]
        assert pair.changed == "color"
        assert not is_true(pair.images[0], pair.texts[0].text)


@pytest.fixture
def changes(world: World, tmp_path: Path) -> World:
    """Ten captions with a relation, each with negatives that turn it around or change a color; ten without."""
    rows = [
        {
            "example_id": str(k),
            "kind": "caption",
            "image_ids": [f"{k + 2:03d}"],
            "split": "train",
            "text": f"a red circle left of a blue square {k}" if k % 2 else f"a red circle {k}",
            "question_type": "relation" if k % 2 else "list",
            "negatives": ["right of", "a green one", "a black one", "a gray one"][0 if k % 2 else 1 :],
            "changed": ["relation", "color", "color", "color"][0 if k % 2 else 1 :],
        }
        for k in range(20)
    ]
    write_examples(tmp_path, rows)
    return World(Examples.at(tmp_path), world.shards, world.vocabulary)


def test_examples_and_changes_can_be_chosen(changes: World) -> None:
    pretraining = task(changes, question_types=("relation",), altered_by=("relation",), altered=1.0, itm_draw="paired")
    wrong = [texts for _, texts, match in samples(pretraining) if match == 0]
    assert pretraining.size() == 10
    assert len(wrong) == 30
    assert all(texts == ["right of"] for texts in wrong)


def test_chosen_names_that_no_example_has_are_refused(changes: World) -> None:
    with pytest.raises(UserError, match=r"question_types.*'relations'.*did you mean 'relation'"):
        task(changes, question_types=("list", "relations"))
    with pytest.raises(UserError, match=r"altered_by.*'colour'.*did you mean 'color'"):
        task(changes, altered_by=("colour",))


def test_question_sets_enter_with_an_answer(world: World) -> None:
    seen = samples(task(world, itm_target="off"), epochs=1)
    assert {match for *_, match in seen} == {-1}
    assert any(text == "what color is it ? red" for _, (text,), _ in seen)
    assert all(is_true(images[0], text) for images, (text,), _ in seen)


def test_kinds_that_are_not_matched_are_masked_alone(world: World) -> None:
    pretraining = task(world, matched=("caption",), itm_rows="unmasked", itm_share=1.0)
    for i in range(pretraining.size()):
        found = sample(pretraining, i)
        name = pretraining.train[0].ids[i]
        assert (found.match >= 0) == ("c" in name)
        assert not found.input.at or found.match < 0


def test_two_captions_first_is_true(world: World) -> None:
    seen = samples(task(world, captions=2), epochs=1)
    assert all(len(texts) == 2 and is_true(images[0], texts[0]) for images, texts, _ in seen)
    assert all(is_true(images[0], texts[1]) for images, texts, match in seen if match == 1)
    captions = samples(task(world, captions=2, kinds=("caption",)), epochs=1)
    assert all(is_true(images[0], texts[1]) is (match == 1) for images, texts, match in captions)
    assert sum(match for *_, match in seen) / len(seen) == pytest.approx(0.5, abs=0.06)


def test_unmasked_rows_are_either_matched_or_masked(world: World) -> None:
    pretraining = task(world, itm_rows="unmasked", itm_share=0.4)
    made = [sample(pretraining, i) for i in range(pretraining.size())]
    assert all(not sample.input.at for sample in made if sample.match >= 0)
    assert sum(sample.match >= 0 for sample in made) / len(made) == pytest.approx(0.4, abs=0.06)
    batch = pretraining.collate([(i, 0) for i in range(16)])
    assert len(batch.tensors["matched"]) + len({*_sequence_of(batch)}) <= 16


def _sequence_of(batch: object) -> list[int]:
    packed, masked = batch.packed, batch.packed.at  # type: ignore[attr-defined]
    return torch.bucketize(masked, packed.lengths.cumsum(0), right=True).tolist()


def test_masked_positions_hold_their_words(world: World) -> None:
    """The packed rows named `masked` are those of the hidden pieces: unmask them and the text is whole."""
    pretraining = task(world, masked=0.9)
    items = [(i, 0) for i in range(12)]
    batch, made = pretraining.collate(items), [sample(pretraining, i, e) for i, e in items]
    tokens = torch.cat([batch.packed.text_ids, torch.full((len(batch.packed.visual),), -1)])[batch.packed.order]
    tokens[batch.packed.at] = batch.tensors["words"]
    for start, found in zip(batch.packed.starts().tolist(), made, strict=True):
        ids = list(found.input.text.ids)
        for place, piece in zip(found.input.at, found.true, strict=True):
            ids[place] = piece
        assert tokens[start : start + len(ids)].tolist() == ids


def test_task_labels_are_the_matching_target(world: World) -> None:
    pretraining = task(world, itm_target="task_label", kinds=("caption",))
    made = [sample(pretraining, i) for i in range(8)]
    ids = [pretraining.train[0].ids[i] for i in range(8)]
    assert [found.match for found in made] == [int(name.endswith("c0")) for name in ids]
    with pytest.raises(UserError, match="label None, not true or false"):
        samples(task(world, itm_target="task_label"), epochs=1)


def test_the_commonest_hidden_word_is_what_guessing_nothing_else_gives(world: World, tmp_path: Path) -> None:
    made: Any = task(world, itm_target="off")
    hidden = Counter(piece for i in range(made.size()) for piece in sample(made, i).true)
    found = made.commonest_word()
    assert found is not None
    data = {"world": PretrainData(world.examples, world.shards)}
    needs_no_model = PretrainingSequences(data, made.encoder, made.model.encoder.config, made.settings, 0)
    assert needs_no_model.commonest_word() == found
    word, share = found
    piece = made.encoder.tokens.index(word)
    assert hidden[piece] == max(hidden.values())
    with torch.no_grad():
        made.model.get_parameter("masked_language.bias")[piece] = 1e4  # it says nothing else
        figures = made.validate(Ranks(job(tmp_path)))
    assert figures is not None
    assert figures["validation/mlm_accuracy"] == pytest.approx(share)
    assert task(world, masked=0.0).commonest_word() is None


def test_content_words_are_those_that_decide(world: World) -> None:
    pretraining = task(world, content=0.3)
    words = {pretraining.encoder.tokens[i] for i in pretraining.content}
    assert words == {*SHAPES, *COLOURS, "yes", "no"}


@pytest.mark.parametrize("rows", ["masked", "unmasked"])
@pytest.mark.parametrize("most", [40, 6])
def test_answers_have_a_share_of_their_own(rows: str, most: int, world: World) -> None:
    """Whether the pair is true or not, and whatever of the question is cut: the answer's pieces and no others."""
    changes = {"itm_rows": rows, "itm_share": 0.0, "max_text": most, "itm_draw": "paired", "altered": 0.5}
    pretraining = task(world, answers=1.0, masked=0.0, content=0.0, **changes)
    for i in range(pretraining.size()):
        for _, found in pretraining._training_samples(i, 0):
            question = "c" not in pretraining.train[0].ids[i]
            assert list(found.input.at) == ([len(found.input.text.ids) - 2] if question else [])
            if question:
                (answer,) = pretraining.train[0].answers[i].as_py()
                assert pretraining.encoder.text(found.true) == answer["answer"]


def test_samples_depend_on_seed_epoch_and_example_alone(world: World) -> None:
    one, two = task(world), task(world)
    forth = one.collate([(5, 0), (9, 1)])
    for i in reversed(range(20)):
        two.collate([(i, 0)])
    again = two.collate([(5, 0), (9, 1)])
    assert torch.equal(forth.packed.text_ids, again.packed.text_ids)
    assert not torch.equal(one.collate([(5, 0)]).packed.text_ids, one.collate([(5, 2)]).packed.text_ids)


def test_what_no_loss_reaches_is_not_trained(world: World) -> None:
    frozen = [n for n, p in task(world, itm_target="off").model.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.pooler.weight", "encoder.pooler.bias", "matching.dense.weight", "matching.dense.bias"]
    frozen = [n for n, p in task(world, train_pooler=False).model.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.pooler.weight", "encoder.pooler.bias"]


def test_it_learns_from_images_and_its_model_is_whole(world: World, tmp_path: Path) -> None:
    settings = BASE.model_copy(
        update={"itm_rows": "unmasked", "altered": 1.0, "captions": 1, "content": 0.4, "validate_every": 50}
    )
    data = {"b": PretrainData(world.examples, world.shards), "a": PretrainData(world.examples, world.shards)}
    figures = run_pretrain(job(tmp_path), data, Initialization(world.vocabulary, MODEL), settings, Numerics(), 0)
    assert figures["dropped"] == 24
    assert figures["mlm_accuracy"] > 0.65
    assert 0.3 < figures["itm_accuracy"] <= 1
    assert figures["text_only_accuracy"] == 0.5  # altered texts are as frequent as true ones in this world
    assert not any(name.startswith("match/") for name in figures)
    model = Model.at(tmp_path / "out")
    assert model.head()["kind"] == "pretraining"
    assert model.contract().box_input == "append6"
    assert [row["step"] for row in model.curves() if "validation/loss" in row] == [50, 100, 150]
    mean = model.load().state_dict()["encoder.embeddings.feature_mean"]
    assert mean[11] == 5


def test_texts_beyond_the_positions_are_refused(world: World, tmp_path: Path) -> None:
    data = {"world": PretrainData(world.examples, world.shards)}
    settings = BASE.model_copy(update={"max_text": 41})
    with pytest.raises(UserError, match=r"max_text 41 is beyond the model's 40 positions"):
        run_pretrain(job(tmp_path), data, Initialization(world.vocabulary, MODEL), settings, Numerics(), 0)


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="steps"):
        PretrainSettings(steps=-1, learning_rate=1e-3)
    with pytest.raises(ValidationError, match="itm_target"):
        PretrainSettings.model_validate({"steps": 1, "learning_rate": 1e-3, "itm_target": "always"})
