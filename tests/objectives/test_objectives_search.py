"""Search: the kept vectors of images, what is found by texts and by images, regions that mattered, and refusals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objectives.objectives_world import CONTRACT, MODEL, World
from objectives.retrieval_world import THINGS, finetune, make_retrieval_world
from refused import refused

from vbert.errors import UserError
from vbert.model.retrieval import PairScorer
from vbert.objectives import retrieval_index
from vbert.objectives.retrieval_index import ImageIndex, image_index
from vbert.objectives.retrieval_search import FoundImage, ImageSearch
from vbert.objectives.trained import WEIGHTS, Model
from vbert.regions.shards import RegionSample, Shards, foreign_files, write_contents, write_shard


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_retrieval_world(tmp_path_factory.mktemp("search") / "world")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return finetune(tmp_path_factory.mktemp("trained"), world, sizes=MODEL, steps=12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def features(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.shards.path, tmp_path / "features"))


def samples(shards: Shards) -> list[RegionSample]:
    return [
        RegionSample(i, "0" * 64, r.width, r.height, r.features, r.boxes, r.scores, r.classes, r.attributes)
        for i, r in ((i, shards.read(i)) for i in shards)
    ]


def rewrite(folder: Path, every: Sequence[RegionSample]) -> None:
    """The folder as `vbert preprocess` replaces it: new shards, what was kept of a search stays."""
    for path in [*folder.glob("*.tar"), *folder.glob("*.parquet")]:
        path.unlink()
    half = len(every) // 2
    parts = [write_shard(folder, k, part) for k, part in enumerate((every[:half], every[half:]))]
    write_contents(folder, parts, [], CONTRACT)


def index_file(folder: Path) -> Path:
    (path,) = folder.glob("search-*.safetensors")
    return path


def test_what_is_found_is_what_all_pairs_give(trained: Model, features: Path) -> None:
    """The order of the dual encoder by its vectors, that of the re-ranked by the cross-encoder's scores."""
    search = ImageSearch.open(trained.path, features)
    text = f"a {THINGS[0]} a {THINGS[3]} and a {THINGS[5]}"
    ids = list(search.index.image_ids)
    query = search.query(text)
    scorer = PairScorer(trained.load(), [query.tokens], [search.encoder.cls, search.encoder.sep],
                        [search.visuals(i) for i in ids])  # type: ignore[arg-type]  # fmt: skip
    scores = scorer.scores(np.zeros(len(ids), np.int64), np.arange(len(ids)))
    similar = scorer.image_vectors() @ scorer.text_vectors()[0]
    by_score = [ids[k] for k in np.argsort(-scores, kind="stable")]
    by_likeness = [ids[k] for k in np.argsort(-similar, kind="stable")]
    whole = search.by_text(text, top=9, rerank=len(ids))
    assert [one.image_id for one in whole] == by_score[:9]
    assert [one.score for one in whole] == pytest.approx(np.sort(scores)[::-1][:9], abs=1e-5)
    alone = search.by_text(text, top=9, rerank=0)
    assert [(one.image_id, one.score) for one in alone] == [(name, None) for name in by_likeness[:9]]
    assert [one.similarity for one in alone] == pytest.approx(np.sort(similar)[::-1][:9], abs=1e-5)
    part = search.by_text(text, top=9, rerank=4)
    assert [one.image_id for one in part] == [n for n in by_score if n in by_likeness[:4]] + by_likeness[4:9]
    assert [one.score is None for one in part] == 4 * [False] + 5 * [True]


def test_a_drop_is_the_score_with_the_region_minus_that_without(trained: Model, features: Path, tmp_path: Path) -> None:
    """By an image whose region is really gone: of the score, of the similarity to a text, and to an image."""
    search = ImageSearch.open(trained.path, features)
    query = search.query(f"there is a {THINGS[1]}")
    found = search.by_text(query, top=1)[0]
    alone = search.by_text(query, top=56, rerank=0)
    like = search.like(found.image_id, top=1)[0]
    for case, (one, by) in enumerate(((found, query), (alone[0], query), (like, found.image_id))):
        for mattered in search.mattered(one, by):
            every = samples(search.shards)
            kept = [k for k in range(3) if k != mattered.region]
            at = next(k for k, sample in enumerate(every) if sample.image_id == one.image_id)
            assert every[at].boxes is not None
            every[at] = replace(
                every[at], features=every[at].features[kept], boxes=every[at].boxes[kept], scores=[1.0] * 2,  # type: ignore[index]
                classes=["thing"] * 2, attributes=[[]] * 2,
            )  # fmt: skip
            folder = tmp_path / f"case {case} without {mattered.region}"
            folder.mkdir()
            rewrite(folder, every)
            other = ImageSearch.open(trained.path, folder)
            if isinstance(by, str):
                again = next(each for each in other.like(by, 56) if each.image_id == one.image_id)
            else:
                again = next(
                    each for each in other.by_text(by, 56, 56 if one.score is not None else 0)
                    if each.image_id == one.image_id
                )  # fmt: skip
            value, less = (one.similarity, again.similarity) if one.score is None else (one.score, again.score)
            assert less is not None
            assert mattered.drop == pytest.approx(value - less, abs=1e-4)


def test_images_like_one_are_the_nearest_without_itself(trained: Model, features: Path) -> None:
    search = ImageSearch.open(trained.path, features)
    own = search.index.image_ids[7]
    similar = search.index.vectors @ search.index.vectors[7]
    order = [search.index.image_ids[k] for k in np.argsort(-similar, kind="stable") if k != 7]
    assert [one.image_id for one in search.like(own, top=5)] == order[:5]
    assert len(search.like(own, top=1000)) == 55


def test_only_changed_images_are_read_again(
    trained: Model, features: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what is kept then equals an index from nothing; the same bytes elsewhere cost nothing."""
    first = ImageSearch.open(trained.path, features)
    assert (first.kept.made, first.kept.path) == (56, index_file(features))
    assert foreign_files(features) == []
    written = index_file(features).stat()
    again = ImageSearch.open(trained.path, features)
    assert (again.kept.made, index_file(features).stat().st_mtime_ns) == (0, written.st_mtime_ns)
    assert np.array_equal(again.index.vectors, first.index.vectors)
    every = samples(first.shards)
    every[3] = replace(every[3], features=every[3].features + np.float16(1))
    assert every[9].boxes is not None
    every[9] = replace(every[9], boxes=every[9].boxes + np.float32(1))
    every[20] = replace(every[20], image_id="images/new.jpg")
    del every[30]
    rewrite(features, sorted(every, key=lambda sample: sample.image_id))
    changed = ImageSearch.open(trained.path, features)
    assert changed.kept.made == 3
    assert changed.index.image_ids == changed.shards.image_ids()
    monkeypatch.setattr(retrieval_index, "READ_AT_ONCE", 10)
    shutil.copytree(features, tmp_path / "other", ignore=shutil.ignore_patterns("search-*"))
    whole = ImageSearch.open(trained.path, tmp_path / "other")
    assert whole.kept.made == 55
    assert np.allclose(whole.index.vectors, changed.index.vectors, atol=1e-6)
    moved = tmp_path / "copied"
    shutil.copytree(features, moved)
    assert ImageSearch.open(trained.path, moved).kept.made == 0


def test_another_model_has_its_own_index(world: World, trained: Model, features: Path, tmp_path: Path) -> None:
    other = finetune(tmp_path / "other", world, sizes=MODEL, steps=1)
    assert [ImageSearch.open(model.path, features).kept.made for model in (trained, other, trained)] == [56, 56, 0]
    assert len([*features.glob("search-*.safetensors")]) == 2


def test_a_damaged_index_is_made_again(trained: Model, features: Path) -> None:
    good = ImageSearch.open(trained.path, features).index
    path, draw = index_file(features), np.random.default_rng(0)
    content = path.read_bytes()
    for at in [*range(8), *draw.integers(0, len(content), 100).tolist()]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(draw.integers(8))
        with pytest.raises(ValueError):  # noqa: PT011  any
            ImageIndex.from_bytes(bytes(flipped))
    for broken in (content[:-7], b"", b"{}" * 40):
        path.chmod(0o644)
        path.write_bytes(broken)
        again = ImageSearch.open(trained.path, features)
        assert again.kept.made == 56
        assert np.array_equal(again.index.vectors, good.vectors)
        assert ImageIndex.from_bytes(path.read_bytes()).image_ids == good.image_ids


def test_killed_anywhere_the_old_index_stands_or_the_new_one(
    trained: Model, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends at any step of the writing, without a word."""
    ImageSearch.open(trained.path, features)
    old = index_file(features).read_bytes()
    every = samples(Shards.at(features))
    every[0] = replace(every[0], features=every[0].features * np.float16(2))
    rewrite(features, every)

    for step in ("make_directories", "write_file", "rename", "sync_directory"):
        pid = os.fork()
        if not pid:  # the child dies behind the step
            real = getattr(retrieval_index.durable, step)

            def last(*arguments: Any, real: Any = real) -> None:
                real(*arguments)
                os._exit(9)

            monkeypatch.setattr(retrieval_index.durable, step, last)
            try:
                ImageSearch.open(trained.path, features)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9, step
        now = index_file(features).read_bytes()
        assert (now == old) == (step in ("make_directories", "write_file")), step
        assert ImageIndex.from_bytes(now).image_ids == list(Shards.at(features))
        assert foreign_files(features) == []
        if now != old:
            assert ImageSearch.open(trained.path, features).kept.made == 0
            path = index_file(features)
            path.chmod(0o644)
            path.write_bytes(old)
    assert ImageSearch.open(trained.path, features).kept.made == 1
    assert [path.name for path in features.glob(".search*")] == [], "what the killed ones left is gone"


def test_where_the_folder_can_t_be_written_the_index_is_in_the_cache(
    trained: Model, features: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = retrieval_index._write

    def write(path: Path, content: bytes) -> None:
        if path.parent == features:
            raise PermissionError(13, "Permission denied")
        real(path, content)

    monkeypatch.setattr(retrieval_index, "_write", write)
    kept = ImageSearch.open(trained.path, features).kept
    assert kept.path is not None
    assert cache in kept.path.parents
    assert str(features) in kept.reason
    assert ImageSearch.open(trained.path, features).kept.made == 0

    def never(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system")

    shutil.rmtree(cache)
    monkeypatch.setattr(retrieval_index, "_write", never)
    kept = ImageSearch.open(trained.path, features).kept
    assert (kept.path, kept.made) == (None, 56)
    assert "Read-only" in kept.reason


def test_features_of_a_store_get_no_file(trained: Model, features: Path, cache: Path) -> None:
    (features / "manifest.json").write_text("{}")
    kept = ImageSearch.open(trained.path, features).kept
    assert kept.path is not None
    assert cache in kept.path.parents
    assert kept.reason == ""
    assert [*features.glob("*search*")] == []


def test_an_image_without_regions_is_found_too(trained: Model, features: Path) -> None:
    every = samples(Shards.at(features))
    assert every[0].boxes is not None
    every[0] = replace(
        every[0], features=every[0].features[:0], boxes=every[0].boxes[:0], scores=[], classes=[], attributes=[]
    )
    rewrite(features, every)
    search = ImageSearch.open(trained.path, features)
    query = search.query(f"there is a {THINGS[0]}")
    found = next(one for one in search.by_text(query, top=56) if one.image_id == every[0].image_id)
    assert np.isfinite(found.similarity)
    assert search.mattered(found, query) == []


def test_texts_that_the_model_can_t_read_are_refused_or_told(trained: Model, features: Path) -> None:
    search = ImageSearch.open(trained.path, features)
    for text in ("", "  ", "\n"):
        with refused("empty"):
            search.query(text)
    with refused("猫", "vocabulary"):
        search.query("猫 犬")
    query = search.query(f"a {THINGS[0]} and a 猫")
    assert "'猫'" in query.notes[0]
    assert len(query.notes) == 1
    long = search.query(" ".join([THINGS[0]] * 50 + [THINGS[1]]))
    assert len(long.tokens[0]) == search.longest == 40
    assert str(search.longest - 2) in long.notes[0]
    assert search.query(THINGS[0]).notes == []


def test_what_can_t_be_searched_is_refused_by_its_name(
    world: World, trained: Model, features: Path, tmp_path: Path
) -> None:
    with refused("nowhere", "no such folder", "vbert preprocess"):
        ImageSearch.open(trained.path, tmp_path / "nowhere")
    with refused("offsets.parquet", "vbert preprocess"):
        ImageSearch.open(trained.path, trained.path)
    with refused("head.json", "vbert path"):
        ImageSearch.open(features, features)
    write_contents(features, [write_shard(features, 0, samples(world.shards))], [],
                   CONTRACT.model_copy(update={"weights": "1" * 64}))  # fmt: skip
    with refused("weights", "0" * 64, "1" * 64):
        ImageSearch.open(trained.path, features)
    write_contents(features, [write_shard(features, 0, [])], [], CONTRACT)
    with refused(str(features), "no image"):
        ImageSearch.open(trained.path, features)
    search = ImageSearch.open(trained.path, world.shards.path)
    index_file(world.shards.path).unlink()
    with refused("images/COCO_000000000007.jpeg", "images/COCO_000000000007.jpg"):
        search.like("images/COCO_000000000007.jpeg")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dual": 0, "evaluate": {"rerank": "all"}}, "dual"),
        ({"images": "none"}, "control"),
        ({"text": "shuffled"}, "control"),
    ],
    ids=str,
)
def test_models_that_can_t_search_are_refused(
    world: World, tmp_path: Path, features: Path, changes: dict[str, Any], named: str
) -> None:
    model = finetune(tmp_path / "m", world, sizes=MODEL, **{"steps": 1, **changes})
    with refused(named, error=UserError):
        ImageSearch.open(model.path, features)


def test_vectors_hang_on_the_weights(trained: Model, features: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(trained.path, tmp_path / "model"))
    tensors = load_file(other / WEIGHTS)
    tensors["dual.image.bias"] = tensors["dual.image.bias"] + torch.ones(1)
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    first, second = (ImageSearch.open(folder, features) for folder in (trained.path, other))
    assert second.kept.made == 56
    assert not np.allclose(first.index.vectors, second.index.vectors)
    unchanged = image_index(Model.at(other), second.network, second.encoder, second.shards, second.visuals)  # type: ignore[arg-type]
    assert unchanged.made == 0
    assert isinstance(second.by_text("a dog", top=1)[0], FoundImage)
