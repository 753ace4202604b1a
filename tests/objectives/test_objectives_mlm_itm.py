"""What pre-training makes of texts: true and wrong ones, masks, labels; and that it learns and resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_world import COLOURS, MODEL, SHAPES, World, job, make_world

from vbert.artifacts.errors import UserError
from vbert.artifacts.settings import Numerics
from vbert.model.trained import Model
from vbert.objectives.mlm_itm import PretrainData, Pretraining, PretrainSettings
from vbert.training.pretraining import run_pretrain
from vbert.training.sampler import generator
from vbert.training.start import Fresh

BASE = PretrainSettings(steps=150, batch_size=64, learning_rate=5e-3, matched=("caption", "question"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), images=120)


def task(world: World, **changes: object) -> Pretraining:
    settings = BASE.model_copy(update=changes)
    model = Fresh(world.vocabulary, MODEL).build(world.shards.dim, 0)
    data = {"world": PretrainData(world.examples, world.shards)}
    return Pretraining(data, world.vocabulary.encoder(), model, "append6", settings, 0)


def samples(task: Pretraining, epochs: int = 3) -> list[tuple[str, list[str], list[str], int]]:
    """(image, its own texts, the sequence's texts as read, match) of every training example."""
    corpus = task.train[0]
    out = []
    for epoch in range(epochs):
        for i in range(task.size()):
            _, sample = task._training_sample(i, epoch)
            ids = list(sample.text.ids)
            for place, piece in zip(sample.at, sample.true, strict=True):
                ids[place] = piece
            texts = task.encoder.text(ids).removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
            own = [corpus.texts[j] for j in corpus.of_image[sample.images[0]]]
            out.append((sample.images[0], own, texts, sample.match))
    return out


def truth(image: str) -> tuple[str, str]:
    return SHAPES[int(image) % 3], COLOURS[int(image) // 3 % 4]


def is_true(image: str, text: str) -> bool:
    """Whether the world's text, answers included, holds of the image."""
    shape, colour = truth(image)
    words = text.replace("?", " ?").split()
    if words[-1] in ("yes", "no"):
        return (words[2] == colour) == (words[-1] == "yes")
    return all(w == shape for w in words if w in SHAPES) and all(w == colour for w in words if w in COLOURS)


def test_unpaired_texts_stand_beside_other_images(world: World) -> None:
    """The control keeps texts, images and compute: what it pairs is noise, in training and on held-out images."""
    own, unpaired = task(world), task(world, images="shuffled")
    for mine, other in zip((*own.train, *own.held_out), (*unpaired.train, *unpaired.held_out), strict=True):
        assert mine.texts == other.texts
        assert mine.images == other.images
        images = sorted({image for ids in mine.images for image in ids})
        assert all(other.visuals.shown[image] != image for image in images)
        assert sorted(other.visuals.shown.values()) == images
        assert not mine.visuals.shown


def test_true_pairs_are_true_and_wrong_ones_come_from_elsewhere(world: World) -> None:
    seen = samples(task(world, captions=1, mismatched=0.3))
    assert all(is_true(image, text) for image, _, (text,), match in seen if match == 1)
    share = sum(match == 0 for *_, match in seen) / len(seen)
    assert share == pytest.approx(0.3, abs=0.03)
    for _, own, (text,), match in seen:
        if match == 0 and text.split()[-1] not in ("yes", "no", *SHAPES, *COLOURS):
            assert text not in own


def test_altered_texts_are_false(world: World) -> None:
    """Each change of a true attribute makes a falsehood of the same image: checked negatives, other answers."""
    corpus = task(world, altered=1.0).train[0]
    changed = [i for i in range(len(corpus.ids)) if corpus.negatives[i].as_py() or corpus.answers[i].as_py()]
    assert len(changed) > 300
    for i in changed:
        assert not is_true(corpus.images[i][0], corpus.wrong_text(i, generator(i)))


def test_question_sets_enter_with_an_answer(world: World) -> None:
    seen = samples(task(world, itm_target="off"), epochs=1)
    assert {match for *_, match in seen} == {-1}
    texts = [text for _, _, (text,), _ in seen]
    assert any(text == "what color is it ? red" for text in texts)
    assert all(is_true(image, text) for image, _, (text,), _ in seen)


def test_kinds_that_are_not_matched_are_masked_alone(world: World) -> None:
    pretraining = task(world, matched=("caption",), itm_rows="unmasked", itm_share=1.0)
    for i in range(pretraining.size()):
        _, sample = pretraining._training_sample(i, 0)
        name = pretraining.train[0].ids[i]
        assert (sample.match >= 0) == ("c" in name)
        assert not sample.at or sample.match < 0


def test_two_captions_first_is_true(world: World) -> None:
    seen = samples(task(world, captions=2), epochs=1)
    assert all(len(texts) == 2 and is_true(image, texts[0]) for image, _, texts, _ in seen)
    assert all(is_true(image, texts[1]) for image, _, texts, match in seen if match == 1)
    assert sum(match for *_, match in seen) / len(seen) == pytest.approx(0.5, abs=0.06)


def test_unmasked_rows_are_either_matched_or_masked(world: World) -> None:
    pretraining = task(world, itm_rows="unmasked", itm_share=0.4)
    made = [pretraining._training_sample(i, 0)[1] for i in range(pretraining.size())]
    assert all(not sample.at for sample in made if sample.match >= 0)
    assert sum(sample.match >= 0 for sample in made) / len(made) == pytest.approx(0.4, abs=0.06)
    batch = pretraining.collate([(i, 0) for i in range(16)])
    assert len(batch.tensors["matched"]) + len({*_sequence_of(batch)}) <= 16


def _sequence_of(batch: object) -> list[int]:
    packed, masked = batch.packed, batch.tensors["masked"]  # type: ignore[attr-defined]
    return torch.bucketize(masked, packed.lengths.cumsum(0), right=True).tolist()


def test_masked_positions_hold_their_words(world: World) -> None:
    """The packed rows named `masked` are those of the hidden pieces: unmask them and the text is whole."""
    pretraining = task(world, masked=0.9)
    items = [(i, 0) for i in range(12)]
    batch, made = pretraining.collate(items), [pretraining._training_sample(i, e)[1] for i, e in items]
    tokens = torch.cat([batch.packed.text_ids, torch.full((len(batch.packed.visual),), -1)])[batch.packed.order]
    tokens[batch.tensors["masked"]] = batch.tensors["words"]
    for start, sample in zip(batch.packed.starts().tolist(), made, strict=True):
        ids = list(sample.text.ids)
        for place, piece in zip(sample.at, sample.true, strict=True):
            ids[place] = piece
        assert tokens[start : start + len(ids)].tolist() == ids


def test_task_labels_are_the_matching_target(world: World) -> None:
    pretraining = task(world, itm_target="task_label", kinds=("caption",))
    made = [pretraining._training_sample(i, 0)[1] for i in range(8)]
    ids = [pretraining.train[0].ids[i] for i in range(8)]
    assert [sample.match for sample in made] == [int(name.endswith("c0")) for name in ids]
    with pytest.raises(UserError, match="label None, not true or false"):
        samples(task(world, itm_target="task_label"), epochs=1)


def test_content_words_are_those_that_decide(world: World) -> None:
    pretraining = task(world, content=0.3)
    words = {pretraining.encoder.tokens[i] for i in pretraining.content}
    assert words == {*SHAPES, *COLOURS, "yes", "no"}


def test_answers_have_a_share_of_their_own(world: World) -> None:
    pretraining = task(world, itm_target="off", answers=1.0, masked=0.0, content=0.0)
    for i in range(pretraining.size()):
        _, sample = pretraining._training_sample(i, 0)
        question = "c" not in pretraining.train[0].ids[i]
        assert sample.at == ([len(sample.text.ids) - 2] if question else [])


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
    figures = run_pretrain(job(tmp_path), data, Fresh(world.vocabulary, MODEL), settings, Numerics(), 0)
    assert figures["dropped"] == 24
    assert figures["mlm_accuracy"] > 0.65
    assert 0.3 < figures["itm_accuracy"] <= 1
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
        run_pretrain(job(tmp_path), data, Fresh(world.vocabulary, MODEL), settings, Numerics(), 0)


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="steps"):
        PretrainSettings(steps=-1, learning_rate=1e-3)
    with pytest.raises(ValidationError, match="itm_target"):
        PretrainSettings.model_validate({"steps": 1, "learning_rate": 1e-3, "itm_target": "always"})
