from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from regions.regions_tiny import SETTINGS, all_bits, collection, encoded, extracted, picture, small_spec, untrained

from vbert.data.images import Images
from vbert.errors import BuildError, UserError
from vbert.regions.boxes import Fixed, Given
from vbert.regions.detector import DetectorWeights, ExtractionNumerics, RegionSettings
from vbert.regions.extract import ShardUnit, shard_plan

SIZES = [(64, 64), (80, 48), (47, 61), (33, 9), (1, 1), (8, 100), (96, 96)]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    files = {f"train/{i}": encoded(picture(i, *SIZES[i % len(SIZES)])) for i in range(28)}
    boxes: list[dict[str, Any]] = [
        {"image_id": f"train/{i}", "x1": 1, "y1": 2, "x2": 9 + k, "y2": 7, "class": "square", "attributes": []}
        for i in range(0, 28, 2)
        for k in range(i % 5)
    ]
    return collection(tmp_path_factory.mktemp("images"), files, boxes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> DetectorWeights:
    return untrained(tmp_path_factory.mktemp("detector") / "weights", small_spec())


def test_no_setting_changes_an_images_bits(tmp_path: Path, images: Images, weights: DetectorWeights) -> None:
    """Order, neighbours, shard size, what else runs in the process: 0 of all (image, setting) pairs differ."""
    reference = all_bits(extracted(tmp_path / "reference", images, weights))
    assert len(reference) == 28
    assert len({features for features, _, _ in reference.values()}) == 28
    rows = shard_plan(images.table(), 28)[0][1].images
    plans = {size: shard_plan(images.table(), size) for size in (1, 2, 5, 28)}
    for seed in range(100, 146):  # any part of them in any order, any number at a time, as after any kill
        draw = random.Random(seed)
        some, size = draw.sample(rows, draw.randint(10, 28)), draw.randint(1, 12)
        parts = [some[start : start + size] for start in range(0, len(some), size)]
        plans[seed] = [(f"{i:06d}", ShardUnit(i, part)) for i, part in enumerate(parts)]
    differing = compared = 0
    for number, plan in plans.items():
        for name, bits in all_bits(extracted(tmp_path / str(number), images, weights, plan=plan)).items():
            differing += bits != reference[name]
            compared += 1
    assert compared >= 1000
    assert differing == 0


def test_the_plan_is_fixed_by_the_sorted_ids(images: Images) -> None:
    plan = shard_plan(images.table(), 10)
    assert [key for key, _ in plan] == ["000000", "000001", "000002"]
    ids = [wanted.image_id for _, unit in plan for wanted in unit.images]
    assert ids == sorted(f"train/{i}" for i in range(28))
    assert shard_plan(images.table().take(list(range(27, -1, -1))), 10) == plan


def test_what_is_stored_is_what_the_detector_found(tmp_path: Path, images: Images, weights: DetectorWeights) -> None:
    shards = extracted(tmp_path / "s", images, weights)
    detector = weights.load()
    for image_id in shards.image_ids():
        (found,) = detector.detect(detector.backbone([detector.prepare(images.open(image_id))]))
        stored = shards.read(image_id)
        assert 1 <= len(stored.features) <= 5
        assert stored.scores == sorted(stored.scores, reverse=True)
        for feature, score, name, attributes in zip(
            stored.features, stored.scores, stored.classes, stored.attributes, strict=True
        ):
            at = int((found.features.half() - torch.from_numpy(feature.copy())).abs().sum(1).argmin())
            assert np.array_equal(found.features[at].half().numpy(), feature)
            assert found.scores[at, detector.classes.index(name)].item() == pytest.approx(score, abs=1e-6)
            assert attributes == [weights.spec().attributes[int(found.attributes[at].argmax())]]
    contract = shards.contract()
    assert (contract.detector, contract.dim, contract.layer) == ("small", 32, "fc7")
    assert contract.weights == weights.digest()


def test_given_boxes_are_kept_in_their_order(tmp_path: Path, images: Images, weights: DetectorWeights) -> None:
    shards = extracted(tmp_path / "s", images, weights, SETTINGS.model_copy(update={"boxes": Given()}))
    for i in range(28):
        read = shards.read(f"train/{i}")
        wanted = [[1, 2, 9 + k, 7] for k in range(i % 5)] if i % 2 == 0 else []
        assert read.boxes.tolist() == wanted
        assert read.features.shape == (len(wanted), 32)
    assert shards.contract().features_of == "given"


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("fp16", 0.9999)])
def test_in_half_precision_features_are_nearly_the_same(
    precision: str, least: float, tmp_path: Path, images: Images, weights: DetectorWeights
) -> None:
    given = SETTINGS.model_copy(update={"boxes": Given()})
    exact = extracted(tmp_path / "fp32", images, weights, given)
    half = extracted(tmp_path / precision, images, weights, given, numerics=ExtractionNumerics(precision=precision))
    pairs = [[shards.read(f"train/{i}").features.astype(np.float32) for i in range(28)] for shards in (exact, half)]
    a, b = (torch.from_numpy(np.concatenate(one)) for one in pairs)
    assert not torch.equal(a, b)
    assert torch.cosine_similarity(a, b).min() > least


def test_given_boxes_need_a_table_of_them(tmp_path: Path, weights: DetectorWeights) -> None:
    bare = collection(tmp_path / "images", {"a": encoded(picture(0, 20, 20))})
    with pytest.raises(UserError, match="has no boxes"):
        extracted(tmp_path / "s", bare, weights, SETTINGS.model_copy(update={"boxes": Given()}))


def test_features_of_regressed_boxes_are_pooled_there(tmp_path: Path, images: Images) -> None:
    weights = untrained(tmp_path / "w", small_spec(features_of="regressed"))
    shards = extracted(tmp_path / "s", images, weights, SETTINGS.model_copy(update={"boxes": Fixed(count=3)}))
    detector = weights.load()
    read = shards.read("train/0")
    (described,) = detector.roi_features(
        detector.backbone([detector.prepare(images.open("train/0"))]), [torch.from_numpy(read.boxes.copy())]
    )
    assert np.array_equal(described.features.half().numpy(), read.features)


def test_broken_images_are_set_aside_with_their_reasons(tmp_path: Path, weights: DetectorWeights) -> None:
    good = encoded(picture(0, 40, 40))
    files = {"good": good, "cut": encoded(picture(1, 60, 60))[:900], "empty": b"", "text": b"no picture", "other": good}
    images = collection(tmp_path / "images", files)
    shards = extracted(tmp_path / "s", images, weights)
    table = shards.quarantine()
    assert shards.image_ids() == ["good", "other"]
    assert {row["image_id"]: row["reason"] for row in table.to_pylist()} == {
        "cut": "damaged",
        "empty": "empty",
        "text": "not an image",
    }
    assert all(row["path"].startswith("raw/") and row["detail"] for row in table.to_pylist())


def test_features_beyond_float16_are_set_aside(tmp_path: Path) -> None:
    images = collection(tmp_path / "images", {"a": encoded(picture(0, 40, 40))})
    weights = untrained(tmp_path / "w", small_spec())
    from safetensors.torch import load_file

    from vbert.regions.detector import write_weights

    tensors = load_file(weights.file("weights.safetensors"))
    tensors["roi_heads.box_head.fc7.bias"] += 1e6
    write_weights(tmp_path / "w", weights.spec(), weights.classes(), tensors)
    shards = extracted(tmp_path / "s", images, weights)
    assert shards.quarantine().to_pylist()[0]["reason"] == "not finite"


def test_unresolved_rules_are_refused(tmp_path: Path, images: Images, weights: DetectorWeights) -> None:
    with pytest.raises(BuildError, match="must be resolved"):
        extracted(tmp_path / "s", images, weights, RegionSettings())
