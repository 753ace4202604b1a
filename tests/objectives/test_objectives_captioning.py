"""Captioning: what a caption's inputs are, that the cache gives the captions of recomputing, and that it is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objectives.objectives_world import MODEL, World, job, make_world

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.data.names import official_number
from vbert.errors import UserError
from vbert.metrics.evaluation import Evaluation
from vbert.model.beams import search
from vbert.model.start import Initialization
from vbert.objectives import captioning, downstream, load, objective
from vbert.objectives.batches import ExampleRows, pack
from vbert.objectives.captioning import CachedReader, CaptioningEvaluateSettings, CaptioningSettings, readable
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.downstream import run_finetune, run_predict, run_score
from vbert.objectives.trained import Model
from vbert.training.sampler import generator

CAPTIONING = objective("captioning")
BRIEF: dict[str, Any] = {"data": "world", "steps": 300, "batch_size": 32, "learning_rate": 2e-3}
GREEDY = CaptioningEvaluateSettings(beams=1, resamples=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("captions") / "world")


def train(folder: Path, world: World, **changes: Any) -> Model:
    start = Initialization(world.vocabulary, MODEL)
    settings = CaptioningSettings(**{**BRIEF, **changes})
    run_finetune(job(folder), world.examples, world.shards, start, CAPTIONING, settings, Numerics(), 0)
    return Model.at(folder / "out")


def evaluate(folder: Path, world: World, model: Model, settings: CaptioningEvaluateSettings) -> Evaluation:
    run_predict(job(folder), model, world.examples, world.shards, CAPTIONING, settings, "test", Numerics())
    run_score(job(folder), model, world.examples, world.shards, CAPTIONING, settings, "test")
    return Evaluation.at(folder / "out")


@pytest.fixture(scope="module", params=["mask", "next", "tags"])
def trained(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    changes: dict[str, Any] = {"predict": request.param, "mask": 0.5}
    if request.param == "tags":
        changes = {"mask": 0.5, "tags": True, "max_text": 22, "tag_pieces": 8}
    return train(tmp_path_factory.mktemp(request.param), world, **changes)


def side_of(world: World, model: Model, split: str = "test") -> ObjectiveDataset[Any]:
    rows = ExampleRows(world.examples, world.shards, [split], ["caption"], evaluated=captioning.evaluated)
    encoder = world.vocabulary.encoder()
    return ObjectiveDataset(load("captioning"), model.head(), encoder, rows, world.shards, model.config().box_input)


def test_it_learns_to_name_what_is_seen(trained: Model, world: World, tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path, world, trained, CaptioningEvaluateSettings(beams=3, resamples=0))
    words = {row["example_id"]: row["text"].split()[-2:] for row in side_of(world, trained).rows}  # colour and shape
    right = [set(words[p["example_id"]]) <= set(p["answer"].split()) for p in evaluation.predictions()]
    assert np.mean(right) > 0.7
    assert len({p["answer"] for p in evaluation.predictions()}) > 4


class Recomputing:
    """As `CachedReader`, with all of every text computed again at every step."""

    def __init__(self, model: Any, side: ObjectiveDataset[Any], images: list[int], tags: list[list[int]]) -> None:
        self.model, self.side, self.images, self.tags = model, side, images, tags
        self.texts: list[list[int]] = []

    def __call__(self, last: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        order = range(len(last)) if rows is None else rows.tolist()
        before = self.texts or [[] for _ in order]
        self.texts = [[*before[row], piece] for row, piece in zip(order, last.tolist(), strict=True)]
        width, masked = len(last) // len(self.images), self.side.head["predict"] == "mask"
        made = []
        for k, text in enumerate(self.texts):
            one = captioning.inputs(self.side.rows, self.images[k // width], self.side.encoder, self.side.head, None)[0]
            text = [*text, self.side.encoder.mask] if masked else list(text)
            tags = self.tags[k // width]
            one.text.ids, one.text.types = text + tags, [0] * len(text) + [1] * len(tags)
            first = self.side.head["max_text"]
            one.text.positions = [*range(len(text)), *range(first, first + len(tags))]
            one.at = (len(text) - 1,)
            made.append(one)
        with torch.no_grad():
            packed = pack(made, (self.side.visuals.of(one.images) for one in made))
            return self.model(packed).float().log_softmax(-1)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_gives_the_captions_of_recomputing(trained: Model, world: World, beams: int) -> None:
    side, model = side_of(world, trained), trained.load()
    rows = side.rows[list(range(len(side.rows)))]
    settings = CaptioningEvaluateSettings(beams=beams)
    reader = CachedReader(model, side, rows)
    order = reader.cache.images.tolist()
    tags = [captioning._tags(side.rows, rows[i]["image_ids"][0], side.encoder, side.head) for i in order]
    whole = Recomputing(model, side, order, tags if side.head["tags"] else [[] for _ in order])
    rules = captioning._rules(side.encoder, settings, 8)
    for cached, expected in zip(
        search(reader, side.encoder.cls, len(rows), rules),
        search(whole, side.encoder.cls, len(rows), rules),
        strict=True,
    ):
        assert cached.pieces == expected.pieces
        assert cached.total == pytest.approx(expected.total, abs=1e-4)


def test_predictions_are_the_same_in_any_batch(trained: Model, world: World) -> None:
    side, model = side_of(world, trained), trained.load()
    every = list(range(len(side.rows)))
    found = [
        [p["answer"] for p in captioning.predict(model, side, every, GREEDY.model_copy(update={"batch_size": n}))]
        for n in (1, 5, 64)
    ]
    assert found[0] == found[1] == found[2]


def test_one_to_three_pieces_are_masked_and_the_end_among_them(world: World) -> None:
    rows = ExampleRows(world.examples, world.shards, ["train"], ["caption"])
    encoder, head = world.vocabulary.encoder(), {"max_text": 40, **captioning.head([], CaptioningSettings(**BRIEF))}
    ends, kinds = 0, {"mask": 0, "same": 0, "other": 0}
    for i in range(len(rows)):
        for epoch in range(8):
            (one,) = captioning.inputs(rows, i, encoder, {**head, "mask": 0.3}, generator(0, epoch, i))
            true = (*encoder(rows.row(i)["text"]).ids, encoder.sep)
            assert one.causal
            assert 1 <= len(one.at) <= 3
            assert list(one.at) == sorted(set(one.at))
            assert [true[place - 1] for place in one.at] == one.ragged["pieces"].tolist()
            ends += one.at[-1] == len(true)
            for place, piece in zip(one.at, one.ragged["pieces"], strict=True):
                seen = one.text.ids[place]
                kinds["mask" if seen == encoder.mask else "same" if seen == piece else "other"] += 1
    total = sum(kinds.values())
    assert ends > 0.15 * len(rows) * 8
    assert [round(kinds[name] / total, 1) for name in ("mask", "same", "other")] == [0.8, 0.1, 0.1]


def test_next_reads_every_piece_from_the_one_before_it(world: World) -> None:
    rows = ExampleRows(world.examples, world.shards, ["train"], ["caption"])
    head = {"max_text": 40, **captioning.head([], CaptioningSettings(predict="next", **BRIEF))}
    (one,) = captioning.inputs(rows, 0, world.vocabulary.encoder(), head, generator(0))
    assert one.text.ids[1:] == one.ragged["pieces"].tolist()
    assert list(one.at) == list(range(len(one.ragged["pieces"])))


def test_an_image_is_one_example_whose_references_are_all_its_captions(world: World) -> None:
    table = ExampleRows(world.examples, world.shards, ["test"], ["caption"]).table
    one = captioning.evaluated(table).to_pylist()
    assert [row["image_ids"] for row in one] == [
        [image] for image in sorted({i for (i,) in table["image_ids"].to_pylist()})
    ]
    texts = {row["image_ids"][0]: row["given"] for row in one}
    assert texts == {i: [r["text"] for r in table.to_pylist() if r["image_ids"] == [i]] for i in texts}
    assert {len(given) for given in texts.values()} == {2}


@pytest.mark.parametrize(("references", "count"), [(None, 1), (("list", "place"), 2)])
def test_references_may_be_of_other_types_than_those_trained_on(
    references: tuple[str, ...] | None, count: int, world: World, tmp_path: Path
) -> None:
    kinds = {"/c0": "list", "/c1": "place"}
    rows = [row | {"question_type": kinds.get(row["example_id"][-3:])} for row in world.examples.table().to_pylist()]
    (tmp_path / "texts").mkdir()
    write_examples(tmp_path / "texts", rows)
    typed = World(Examples.at(tmp_path / "texts"), world.shards, world.vocabulary)
    model = train(tmp_path / "model", typed, steps=1, types=("list",), references=references)
    evaluated = downstream.evaluated_rows(typed.examples, world.shards, "test", load("captioning"), model.head())
    assert {len(row["given"]) for row in evaluated} == {count}
    assert model.head()["types"] == ["list"]


def test_an_image_without_regions_gets_an_empty_caption_in_the_submission(world: World, tmp_path: Path) -> None:
    model = train(tmp_path / "model", world, steps=2)
    world = World(world.examples, world.shards, world.vocabulary)
    settings, folder = GREEDY.model_copy(update={"splits": ("train",)}), tmp_path / "evaluated"
    run_predict(job(folder), model, world.examples, world.shards, CAPTIONING, settings, "train", Numerics())
    run_score(job(folder), model, world.examples, world.shards, CAPTIONING, settings, "train")
    results = json.loads((folder / "out" / "captions.json").read_bytes())
    assert [r["caption"] for r in results if r["image_id"] in (0, 1)] == ["", ""]
    assert len({r["image_id"] for r in results}) == len(results) == 36


@pytest.mark.parametrize("images", ["shuffled", "none"])
def test_controls_see_no_regions_and_no_tags_of_their_image(images: str, world: World, tmp_path: Path) -> None:
    tags = {"tags": True, "max_text": 22, "tag_pieces": 8} if images == "shuffled" else {}
    model = train(tmp_path, world, images=images, steps=30, **tags)
    side = side_of(world, model)
    for row in side.rows:
        tags = captioning._tags(side.rows, row["image_ids"][0], side.encoder, side.head)
        other = side.rows.shown.get(row["image_ids"][0], "")
        classes = [] if images == "none" else world.shards.read(other).classes
        expected = [*side.encoder(classes[0]).ids, side.encoder.sep] if classes else []
        assert tags == expected
    found = {p["answer"] for p in captioning.predict(model.load(), side, range(len(side.rows)), GREEDY)}
    assert images == "shuffled" or len(found) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": True, "max_text": 22}, "need 52 positions, and the model has 40"),
        ({"references": ["nosuch"]}, "references: no examples with the question type 'nosuch'; they have none: leave"),
    ],
)
def test_what_can_not_be_is_refused(changes: dict[str, Any], message: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, world, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": ["lists"]}, r"no examples with the question type 'lists'; did you mean 'list'\?"),
        ({"references": ["lists"], "validation_examples": 0}, "did you mean 'list'"),
        ({"references": ["place"]}, r"no held-out examples \(split val\) of place, but list; name one of these"),
    ],
)
def test_references_that_no_held_out_example_has_are_refused_before_training(
    changes: dict[str, Any], message: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "run_training", lambda *_: pytest.fail("it began to train"))
    rows = [
        row | {"question_type": "place" if row["split"] == "test" else "list"}
        for row in world.examples.table().to_pylist()
    ]
    (tmp_path / "texts").mkdir()
    write_examples(tmp_path / "texts", rows)
    with pytest.raises(UserError, match=message):
        train(tmp_path / "m", World(Examples.at(tmp_path / "texts"), world.shards, world.vocabulary), **changes)


def test_one_held_out_image_has_no_cider_to_select_by(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "run_training", lambda *_: pytest.fail("it began to train"))
    rows = world.examples.table().to_pylist()
    one = next(row["image_ids"] for row in rows if row["split"] == "val")
    (tmp_path / "texts").mkdir()
    write_examples(tmp_path / "texts", [row for row in rows if row["split"] != "val" or row["image_ids"] == one])
    alone = World(Examples.at(tmp_path / "texts"), world.shards, world.vocabulary)
    with pytest.raises(UserError, match=r"have no figure 'cider', but bleu_1, .*rouge_l.*; name one of these"):
        train(tmp_path / "m", alone, select="best")


def test_captions_grow_no_longer_than_those_of_training(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = train(tmp_path / "model", world, steps=1, max_text=6)
    side = side_of(world, model)
    found = captioning.predict(model.load(), side, range(len(side.rows)), GREEDY.model_copy(update={"minimum": 9}))
    assert {len(side.encoder(p["answer"]).ids) for p in found} == {4}
    evaluate(tmp_path / "short", world, model, GREEDY.model_copy(update={"length": 4}))
    assert not caplog.messages
    evaluate(tmp_path / "long", world, model, GREEDY.model_copy(update={"length": 5}))
    assert [line.partition(": none")[0] for line in caplog.messages] == [
        "evaluate.length: 5, but the model was trained on captions of 4 pieces at most (max_text - 2)"
    ]


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ("a dog , a cat and one ( small ) bird .", "a dog, a cat and one (small) bird."),
        ("a man ' s t - shirt isn ' t red", "a man's t-shirt isn't red"),
        ("he said ' no ' twice", "he said ' no ' twice"),
        ("一 只 猫 在 sofa 上", "一只猫在 sofa 上"),
    ],
)
def test_word_pieces_are_joined_as_they_would_be_written(pieces: str, written: str) -> None:
    assert readable(pieces) == written


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("1000092795.jpg", 1000092795),
        ("b/cat.jpg", "b/cat.jpg"),
        ("a7", 7),
    ],
)
def test_official_numbers_end_a_file_s_stem(name: str, number: int | str) -> None:
    assert official_number(name) == number
