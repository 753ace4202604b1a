"""Retrieval: negatives, ranks from blocks of pairs, short lists, folds, controls and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.objectives_world import MODEL, World, job
from objectives.retrieval_world import BRIEF, evaluate, finetune, make_retrieval_world
from refused import refused

from vbert.metrics import retrieval as figures
from vbert.model.config import VisualBertConfig
from vbert.objectives import load, retrieval_blocks
from vbert.objectives.batches import ExampleRows
from vbert.objectives.retrieval import SIDES, RetrievalSettings, head, loss, official_text
from vbert.objectives.retrieval_data import RetrievalDataset
from vbert.objectives.retrieval_mining import mined
from vbert.objectives.retrieval_plan import RetrievalPlan, fold_bounds, short_lists
from vbert.objectives.retrieval_ranks import predictions, ranks
from vbert.objectives.trained import Model
from vbert.scoring.retrieval import score_retrieval
from vbert.training.ranks import Ranks
from vbert.training.sampler import generator

TWO_LAYERS = MODEL.model_copy(update={"layers": 2})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_retrieval_world(tmp_path_factory.mktemp("retrieval") / "world")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return finetune(tmp_path_factory.mktemp("trained"), world, steps=8, sizes=TWO_LAYERS)


def side(world: World, split: str = "train", **changes: Any) -> RetrievalDataset:
    given = RetrievalSettings.model_validate({"objective": "retrieval", **BRIEF, **changes})
    rows = ExampleRows(world.examples, world.shards, [split], ["caption"], text=given.text)
    described = {**head([], given), "max_text": 20, "images": given.images, "text": given.text}
    return RetrievalDataset(load("retrieval"), described, world.vocabulary.encoder(), rows, world.shards, "append6", 0)


def test_wrong_pairs_are_none_that_may_be_right(world: World) -> None:
    """Neither another caption of the image nor a caption that reads alike; with a group's right pair first."""
    of = side(world, wrong=3)
    by_text = {(t, i) for t, i in zip(of.texts, of.images, strict=True)}
    for i in range(len(of.ids)):
        batch, _ = of.batch([(i, 0)])
        items, pairs = batch.packed.items, batch.packed.pairs
        assert pairs.shape == (2, 1, 7)
        assert pairs[:, 0, 0].tolist() == [0, 0]
        assert items.places.bare == 4
        draw = generator(0, 0, of.ids[i])
        images, texts = of.wrong_images(i, 3, draw), of.wrong_texts(i, 3, draw)
        assert all((of.texts[i], of.images[j]) not in by_text for j in images)
        assert all((of.texts[j], of.images[i]) not in by_text for j in texts)
        assert len({*images}) == len({*texts}) == 3


def test_in_a_batch_captions_of_an_image_and_equal_ones_are_alike(world: World) -> None:
    of = side(world, negatives="batch")
    same = next(j for j in range(1, len(of.ids)) if of.texts[j] == of.texts[1] and j != 1)
    batch, _ = of.batch([(0, 0), (1, 0), (same, 0), (4, 0)])
    alike = batch.packed.alike
    assert alike[:3, :3].tolist() == [[True, True, False], [True, True, True], [True, True, True]] or alike[2, 0]
    assert not alike[3, :3].any() or of.texts[4] == of.texts[1]
    assert alike[1, 2]
    assert alike[2, 1]


def test_nothing_is_wrong_where_all_images_have_one_text(world: World) -> None:
    of = side(world)
    of._texts_of = {image: {*of.texts} for image in of.images}
    with refused("example", "types"):
        of.batch([(0, 0)])


def test_mined_pairs_are_the_hardest_whatever_the_number_of_processes(world: World, trained: Model) -> None:
    of = side(world, negatives="mined", candidates=9, hard=4)
    network = trained.load()
    samples = [(i, 0) for i in range(20)]

    class Told:
        """Ranks that are asked one after the other: `gather` gives what the others told before."""

        def __init__(self, rank: int, size: int, told: dict[int, list[Any]]) -> None:
            self.rank, self.world, self.told = rank, size, told

        def gather(self, value: Any) -> list[Any]:
            self.told.setdefault(self.rank, []).append(value)
            turn = len(self.told[self.rank]) - 1
            return [values[turn] for values in self.told.values() if turn < len(values)]

    told: dict[int, list[Any]] = {}
    whole = mined(network, of, samples, Told(0, 1, {}))  # type: ignore[arg-type]
    mined(network, of, samples, Told(1, 2, told))  # type: ignore[arg-type]
    assert torch.equal(mined(network, of, samples, Told(0, 2, told)), whole)  # type: ignore[arg-type]
    of.use_mined(samples, {"rows": whole})
    for k in (2, 3):
        i, rows = samples[k][0], whole[k].tolist()
        draw = generator(of.seed, "candidates", 0, of.ids[i])
        candidates = (of.wrong_texts if k % 2 else of.wrong_images)(i, 9, draw)
        pairs = [(of.texts[j], of.images[i]) if k % 2 else (of.texts[i], of.images[j]) for j in candidates]
        batch = [(of.tokens(text), of.visual(image)) for text, image in pairs]
        scorer = retrieval_blocks.PairScorer(network, [t for t, _ in batch], of.bare, [v for _, v in batch])
        scores = scorer.scores(np.arange(9), np.arange(9))
        assert rows == [candidates[place] for place in np.argsort(-scores, kind="stable")[:4]]
        assert of.batch([samples[k]])[0].packed.pairs.shape == (2, 1, 5)


def test_candidates_beyond_what_there_is_are_scored_once_and_said(
    world: World, trained: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of = side(world, negatives="mined", candidates=500, hard=6)
    rows = mined(trained.load(), of, [(i, 0) for i in range(4)], Ranks(job(tmp_path / "ranks")))
    assert all(len(set(its)) == 6 for its in rows.tolist())
    finetune(tmp_path, world, negatives="mined", candidates=500, hard=6, steps=1)
    assert f"candidates: 500, but there are {len(of.ids)} training examples" in caplog.text


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[int], int]:
    """(scores [texts, images] with ties; the text and the image of each caption; folds)."""
    images = draw(st.integers(1, 7))
    owners = sorted([*range(images), *draw(st.lists(st.integers(0, images - 1), max_size=6))])
    different = draw(st.lists(st.integers(0, len(owners) - 1), min_size=len(owners), max_size=len(owners)))
    _, text_of = np.unique(different, return_inverse=True)
    level = st.integers(-2, 2).map(float)
    scores = [[draw(level) for _ in range(images)] for _ in range(int(text_of.max()) + 1)]
    return np.array(scores, np.float32), text_of.tolist(), owners, draw(st.sampled_from([0, 0, 2]))


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_ranks_are_those_of_the_whole_matrix(given: tuple[np.ndarray, list[int], list[int], int]) -> None:
    """In blocks of texts, equal texts once, with ties; in folds as alone."""
    scores, text_of, owners, folds = given
    folds = folds if scores.shape[1] >= folds else 0
    bounds = fold_bounds(scores.shape[1], folds)
    plan = RetrievalPlan(np.array(text_of), np.array(owners), *scores.shape, bounds, [], True)
    blocks = [(k, scores[k : k + 2]) for k in range(0, len(scores), 2)]
    ours, theirs = ranks(plan, lambda: iter(blocks))
    matrix = scores[text_of].T
    wanted = figures.ranks(matrix, owners)
    assert (ours.rank + 1).tolist() == wanted.texts
    assert (theirs.rank + 1).tolist() == wanted.images
    assert int((ours.tied > 0).sum() + (theirs.tied > 0).sum()) == wanted.tied
    for (images, texts), (first, last) in zip(figures.folds(owners, scores.shape[1], folds or 1), bounds, strict=False):
        part = figures.ranks(matrix[first:last][:, texts], [owners[t] - first for t in texts])
        assert ours.fold is not None
        assert theirs.fold is not None
        assert (ours.fold[texts] + 1).tolist() == part.texts
        assert (theirs.fold[list(images)] + 1).tolist() == part.images
    for q, each in enumerate(matrix.T):
        assert ours.best[q].tolist() == sorted(range(len(each)), key=lambda k: (-each[k], k))
    for q, each in enumerate(matrix):
        assert theirs.best[q].tolist() == sorted(range(len(each)), key=lambda k: (-each[k], k))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 9), st.integers(0, 99))
def test_short_lists_rank_their_pairs_and_the_others_behind(
    given: tuple[np.ndarray, list[int], list[int], int], size: int, seed: int
) -> None:
    """Against a plain reading: the dual encoder's order, its first `size` sorted by the score of the pair."""
    scores, text_of, owners, folds = given
    folds = folds if scores.shape[1] >= folds else 0
    bounds = fold_bounds(scores.shape[1], folds)
    draw = np.random.default_rng(seed)
    texts, images = (draw.integers(-2, 3, (n, 3)).astype(np.float32) for n in scores.shape)
    spans = [(0, scores.shape[1]), *bounds]
    lists = [short_lists(np.array(text_of), np.array(owners), texts, images, span, size) for span in spans]
    plan = RetrievalPlan(np.array(text_of), np.array(owners), *scores.shape, bounds, lists, False)
    again = RetrievalPlan.from_arrays(plan.arrays())
    assert np.array_equal(again.pairs, plan.pairs)
    rows = np.full(scores.size, np.nan, np.float32)
    rows[plan.pairs] = scores.reshape(-1)[plan.pairs]
    blocks = [(k, rows.reshape(scores.shape)[k : k + 2]) for k in range(0, len(scores), 2)]
    ours, theirs = ranks(again, lambda: iter(blocks))
    alike = texts[text_of] @ images.T

    def rank(alone: np.ndarray, pair: np.ndarray, right: np.ndarray) -> int:
        listed = sorted(range(len(alone)), key=lambda k: (-alone[k], k))[:size]
        good = [k for k in listed if right[k]]
        if good:
            best = max(pair[k] for k in good)
            return sum(pair[k] >= best for k in listed if not right[k])
        return max(len(listed), int(((alone >= alone[right].max()) & ~right).sum()))

    for c, owner in enumerate(owners):
        right = np.arange(scores.shape[1]) == owner
        assert ours.rank[c] == rank(alike[c], scores[text_of[c]], right)
    for i in range(scores.shape[1]):
        assert theirs.rank[i] == rank(alike[:, i], scores[text_of][:, i], np.array(owners) == i)


def test_a_list_of_all_is_exhaustive_and_blocks_change_nothing(
    world: World, trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(tmp_path / "whole", world, trained, rerank="all", folds=3)
    listed = evaluate(tmp_path / "listed", world, trained, rerank=1000, folds=3)
    monkeypatch.setattr(retrieval_blocks, "BLOCK", 50)
    monkeypatch.setattr(retrieval_blocks, "TILE", 16)
    in_blocks = evaluate(tmp_path / "blocks", world, trained, rerank="all", folds=3)
    assert len(list((tmp_path / "blocks" / "scratch" / "predictions").glob("*.pairs"))) > 5
    for other in (listed, in_blocks):
        assert other.metrics() == whole.metrics()
        assert other.predictions() == whole.predictions() or other is listed
    found = whole.metrics()
    assert {"text_to_image_r1", "image_to_text_r10", "rsum", "text_to_image_median"} <= found.keys()
    assert {"text_to_image_r1/unique", "text_to_image_r1/one", "rsum/folds"} <= found.keys()
    few = evaluate(tmp_path / "few", world, trained, rerank=3).predictions()
    assert len(few[0]["text_to_image"]["top"]) == 3


def test_the_file_of_rankings_has_official_ids(world: World, trained: Model, tmp_path: Path) -> None:
    made = evaluate(tmp_path, world, trained, rerank="all")
    lines = [json.loads(line) for line in made.file("rankings.jsonl").read_text().splitlines()]
    texts = {line["text_id"]: line["images"] for line in lines if "text_id" in line}
    images = {line["image_id"]: line["texts"] for line in lines if "image_id" in line}
    assert {*texts} == {10 * i + k for i in range(2, 56, 3) for k in (0, 1)}
    assert {*images} == {*range(2, 56, 3)}
    assert {len(ranked) for ranked in texts.values()} == {18}
    by_id = {official_text(p["example_id"]): p for p in made.predictions()}
    for text, ranked in texts.items():
        assert ranked.index(text // 10) < by_id[text]["text_to_image"]["rank"]  # ties stand before the truth
    annotations = {
        "images": [{"id": i} for i in images],
        "annotations": [{"id": t, "image_id": t // 10, "caption": "a"} for t in texts],
    }
    (tmp_path / "captions.json").write_text(json.dumps(annotations))
    score = score_retrieval(tmp_path / "captions.json", [made.file("rankings.jsonl")]).figures
    ours = made.metrics()
    assert score["text_to_image"] == {
        name: pytest.approx(ours[f"text_to_image_{name}"]) for name in ("r1", "r5", "r10", "median")
    }
    assert score["image_to_text"]["r1"] >= ours["image_to_text_r1"]  # type: ignore[index]
    assert ours["tied"] == sum(p[side]["tied"] > 0 for p in made.predictions() for side in SIDES if side in p) / 54
    assert official_text("test/00012/caption/3") == "test/00012/caption/3"


@pytest.mark.parametrize(
    "changes", [{"images": "none"}, {"images": "shuffled"}, {"text": "none"}, {"text": "shuffled"}], ids=str
)
def test_controls_train_and_evaluate(changes: dict[str, str], world: World, tmp_path: Path) -> None:
    model = finetune(tmp_path / "m", world, steps=2, **changes)
    found = evaluate(tmp_path / "e", world, model, rerank="all").metrics()
    if changes in ({"images": "none"}, {"text": "none"}):  # everything is level
        assert found["text_to_image_r1"] <= 0.1


def test_losses_are_those_of_their_definitions() -> None:
    from vbert.model.retrieval import RetrievalOutputs

    scores = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 9.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    similar = torch.tensor([[2.0, 1.0], [0.5, 1.5]])
    tensors = {"example": torch.arange(2), "alike": torch.tensor([[True, False], [True, True]])}
    outputs = RetrievalOutputs(scores, valid, similar)
    made = loss(outputs, tensors, {"loss": "cross_entropy"})
    wanted = -scores[0].log_softmax(0)[0] - scores[1, :2].log_softmax(0)[0]
    torch.testing.assert_close(made["matching"], wanted)
    rows = -similar[0].log_softmax(0)[0] - 0.0  # the other text fits the first image too
    columns = -similar[:, 1].log_softmax(0)[1]
    torch.testing.assert_close(made["dual"], rows + columns)
    made = loss(outputs, tensors, {"loss": "margin", "margin": 0.2})
    likely = scores.sigmoid()
    wanted = torch.relu(0.2 + likely[0, 1:] - likely[0, 0]).sum() + 0.2 + likely[1, 1] - likely[1, 0]
    torch.testing.assert_close(made["matching"], wanted)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dual": 0, "negatives": "batch"}, "dual"),
        ({"dual": 0}, "rerank"),
        ({"negatives": "mined", "hard": 9, "candidates": 5}, "candidates"),
        ({"evaluate": {"rerank": 0}}, "rerank"),
    ],
)
def test_settings_that_can_not_be_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RetrievalSettings.model_validate({"objective": "retrieval", **BRIEF, **changes})


def test_without_a_dual_encoder_all_pairs_are_scored(world: World, tmp_path: Path) -> None:
    model = finetune(tmp_path / "m", world, steps=2, dual=0, evaluate={"rerank": "all"})
    assert "rsum" in evaluate(tmp_path / "e", world, model, rerank="all").metrics()
    with refused("rerank", "all"):
        evaluate(tmp_path / "f", world, model, rerank=5)


def test_a_start_gives_encoder_matching_head_and_projections(world: World, trained: Model) -> None:
    module, source = load("retrieval"), trained.load()
    config = VisualBertConfig.model_validate(trained.config().model_dump())
    described = {**trained.head(), "dual": 16}
    fresh = module.model(config, described, 1)
    module.begin(fresh, described, source, trained.head())
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"wrong": 3},
        {"negatives": "batch", "wrong": 2},
        {"negatives": "mined", "mine_every": 20, "candidates": 20, "hard": 4},
    ],
    ids=("random", "batch", "mined"),
)
def test_it_learns(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    """All captions that name everything find their image among those trained on."""
    more = {"steps": 400, "learning_rate": 2e-3, "batch_size": 32, "sizes": TWO_LAYERS}
    model = finetune(tmp_path / "m", world, **more, **changes)
    for rerank in ("all", 4):
        found = evaluate(tmp_path / f"{rerank}", world, model, "train", rerank=rerank).metrics()
        assert found["text_to_image_r1/unique"] > 0.9
        assert found["image_to_text_r10"] > 0.9


def test_predictions_name_what_was_found() -> None:
    plan = RetrievalPlan(np.array([0, 1]), np.array([0, 1]), 2, 2, [], [], True)
    rows = np.array([[1.0, 0.0], [3.0, 2.0]], np.float32)
    first, second = predictions(plan, lambda: iter([(0, rows)]), ["a", "b"], ["x", "y"])
    assert (first["answer"], first["text_to_image"]["rank"], first["image_to_text"]["rank"]) == ("x", 1, 2)
    assert (second["answer"], second["text_to_image"]["top"]) == ("x", ["x", "y"])
    assert second["image_to_text"] == {"rank": 1, "tied": 0, "among": 2, "top": ["b", "a"]}
