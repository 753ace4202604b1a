"""Two sets of features compared: the same ones under every disguise that the systems' files give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from regions import interop_files as files
from regions.interop_files import real_features

from vbert.errors import UserError
from vbert.regions.interop.comparing import CAUSES, FeatureComparison, compare, compared
from vbert.regions.interop.feature_sets import opened
from vbert.regions.interop.raw_regions import RawRegions

RNG = np.random.default_rng(5)


def one(n: int = 12, dim: int = 64, size: tuple[int, int] = (640, 427), relu: bool = True) -> RawRegions:
    corner = RNG.random((n, 2)) * [size[0] * 0.6, size[1] * 0.6]
    boxes = np.concatenate([corner, corner + 8 + RNG.random((n, 2)) * [size[0] * 0.35, size[1] * 0.35]], 1)
    features = RNG.normal(size=(n, dim))
    features = np.maximum(features, 0) if relu else features
    return RawRegions(features.astype(np.float32), boxes.astype(np.float32), "pixels", *size)


A = one()
SHUFFLED = RNG.permutation(12)
LEFT = one(relu=False)
OTHER = one()
DISGUISES: dict[str, tuple[RawRegions, RawRegions, str]] = {
    "same": (A, replace(A), ""),
    "in half precision": (A, replace(A, features=A.features.astype(np.float16)), ""),
    "order": (A, replace(A, features=A.features[SHUFFLED], boxes=A.boxes[SHUFFLED]), ""),
    "norm": (A, replace(A, features=2 * A.features), "B is 2 × A"),
    "unit": (A, replace(A, features=A.features / np.linalg.norm(A.features, axis=1, keepdims=True)), ""),
    "relu": (LEFT, replace(LEFT, features=np.maximum(LEFT.features, 0)), ""),
    "boxes scaled": (A, replace(A, boxes=A.boxes * np.float32(800 / 427)), "as if B were --boxes-in resized:800,1333"),
    "boxes scaled by any number": (A, replace(A, boxes=A.boxes / 3), "B is 0.3333 × A"),
    "boxes normalised": (A, replace(A, boxes=A.boxes / np.float32([640, 427, 640, 427])), ""),
    "boxes xywh": (A, replace(A, boxes=np.concatenate([A.boxes[:, :2], A.boxes[:, 2:] - A.boxes[:, :2]], 1)), ""),
    "boxes yxyx": (A, replace(A, boxes=A.boxes[:, [1, 0, 3, 2]]), ""),
    "boxes shuffled": (A, replace(A, boxes=A.boxes[SHUFFLED]), ""),
    "boxes": (A, replace(A, boxes=OTHER.boxes), ""),
    "fewer": (A, replace(A, features=A.features[:7], boxes=A.boxes[:7]), "7 of 12 regions"),
    "appended": (A, replace(A, features=np.concatenate([A.features, A.boxes, A.boxes[:, :2]], 1)), ""),
    "length": (A, one(dim=32), "64 and 32"),
    "features": (A, replace(OTHER, boxes=A.boxes), "cosine"),
    "some": (
        A,
        replace(
            A,
            features=np.concatenate([A.features[:5], OTHER.features[5:]]),
            boxes=np.concatenate([A.boxes[:5], OTHER.boxes[5:] + 900]),
        ),
        "",
    ),
    "different": (A, replace(OTHER, boxes=OTHER.boxes + 900), ""),
}


def near_duplicates(spread: float) -> RawRegions:
    """Twelve regions of one thing: features and boxes that differ in little, as a detector's often do."""
    features = A.features[:1] + spread * RNG.normal(size=A.features.shape)
    return replace(A, features=features.astype(np.float32), boxes=A.boxes[:1] + np.float32(spread) * A.boxes)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-4, 1e-3])
def test_near_duplicates_are_the_same_as_themselves_and_as_exported(spread: float) -> None:
    a = near_duplicates(spread)
    assert compared("x", a, replace(a)).cause == "same"
    exported = replace(a, features=a.features.astype(np.float16), boxes=np.round(a.boxes, 3))
    assert compared("x", a, exported).cause == "same"


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("part", ["features", "boxes"])
def test_one_region_of_many_that_differs_makes_no_other_order(part: str, spread: float) -> None:
    a = replace(A, **{name: np.repeat(getattr(near_duplicates(spread), name), 3, 0) for name in ("features", "boxes")})
    changed = getattr(a, part).copy()
    changed[5] = RNG.random(changed.shape[1]) * 500
    assert compared("x", a, replace(a, **{part: changed})).cause == "same"  # nine of ten agree, the rule elsewhere


def test_near_duplicate_features_in_another_order_of_boxes_are_no_same() -> None:
    a = replace(near_duplicates(1e-4), boxes=A.boxes)
    assert compared("x", a, replace(a, boxes=a.boxes[SHUFFLED])).cause != "same"


@pytest.mark.parametrize("disguise", DISGUISES)
def test_the_likely_cause_is_named(disguise: str) -> None:
    a, b, detail = DISGUISES[disguise]
    cause = {"in half precision": "same", "boxes scaled by any number": "boxes scaled"}.get(disguise, disguise)
    row = compared("x", a, b)
    assert row.cause == cause
    assert row.detail.startswith(detail)
    other_way = compared("x", b, a).cause
    assert other_way == cause
    if cause == "same":
        assert (row.matched, row.iou, row.norm_ratio) == (12, 1.0, pytest.approx(1, abs=1e-3))


def test_without_boxes_regions_are_matched_by_their_features() -> None:
    bare = replace(A, boxes=None)
    assert compared("x", bare, bare).cause == "same"
    assert compared("x", bare, A).cause == "same"
    assert compared("x", bare, replace(bare, features=bare.features[SHUFFLED])).cause == "order"
    assert compared("x", bare, replace(OTHER, boxes=None)).cause == "different"


def test_features_of_zeros_and_images_without_regions() -> None:
    blank = replace(A, features=np.zeros_like(A.features))
    assert compared("x", blank, blank).cause == "same"
    empty = RawRegions(np.zeros((0, 64)), np.zeros((0, 4)))
    assert compared("x", empty, empty).cause == "same"
    assert compared("x", empty, A).cause == "fewer"


def sets(a: Path, b: Path, **options: object) -> tuple[FeatureComparison, list[object]]:
    total = FeatureComparison()
    with opened(a) as left, opened(b, **options) as right:
        rows = list(compare(left, right, lambda done, of: None, total))
    return total, rows


def test_the_same_features_in_two_systems_files(tmp_path: Path) -> None:
    given = files.images(dim=32)
    lxmert, ban = files.lxmert_tsv(tmp_path / "a.tsv", given), files.mmf_npy(tmp_path / "npy", given)
    total, rows = sets(lxmert, ban)
    assert (total.same, total.images, len(rows)) == (True, 5, 5)
    assert total.verdict() == "the same: boxes and features of all 5 images agree"
    total, _ = sets(ban, files.mmf_npy(tmp_path / "less", given[1:]))
    assert not total.same
    assert (total.only_a, total.only_b) == (1, 0)
    assert total.verdict().endswith("1 images are in A only")
    total, _ = sets(lxmert, lxmert)
    assert total.same


def test_sets_without_a_common_image(tmp_path: Path) -> None:
    a = files.lxmert_tsv(tmp_path / "a.tsv", files.images())
    b = files.bottom_up_tsv(tmp_path / "b.tsv", files.images())
    with pytest.raises(
        UserError, match="have no image in common; --ids-a and --ids-b take ids out of names"
    ) as refused:
        sets(a, b)
    assert files.images()[-1].name in refused.value.details
    with opened(a, ids=r"COCO_\w+_0*(\d+)") as left, opened(b) as right:
        total = FeatureComparison()
        list(compare(left, right, lambda done, of: None, total))
    assert total.same


def test_an_unreadable_entry_is_a_row(tmp_path: Path) -> None:
    a, b = (files.lxmert_tsv(tmp_path / name, files.images(dim=32)) for name in ("a.tsv", "b.tsv"))
    b.write_bytes(b.read_bytes()[:-30])
    total, rows = sets(a, b)
    assert total.causes == {"same": 4, "unreadable": 1}
    assert "b.tsv:5" in next(row.detail for row in rows if row.cause == "unreadable")


@real_features
def test_real_features_against_their_resized_selves(tmp_path: Path) -> None:
    """What a user sees who imports boxes of the resized image as if they were of the original."""
    right, wrong = files.detected(), files.detected(resized=True)
    a = files.mmf_npy(tmp_path / "a", right, padding=0)
    b = files.mmf_npy(tmp_path / "b", wrong, padding=0)
    total = FeatureComparison()
    with opened(a) as left, opened(b) as other:
        rows = list(compare(left, other, lambda done, of: None, total))
    assert {row.cause for row in rows} == {"boxes scaled"}
    assert "as if B were --boxes-in resized:800" in total.verdict()


def test_every_cause_has_a_sentence() -> None:
    tried = {cause for cause in DISGUISES if cause in CAUSES}
    assert set(CAUSES) - tried == {"unreadable"}
