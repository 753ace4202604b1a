"""Golden digests of shards, box rules and the backend on fixed inputs. Others need a new version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from regions import bottom_up_tiny
from regions.regions_tiny import small_spec, untrained

from vbert.artifacts.steps.fingerprint import digest
from vbert.regions.backends.bottom_up import detector as bottom_up
from vbert.regions.boxes import Adaptive, Fixed, Given, Nms, ProposalNms, RisingNms, select
from vbert.regions.candidates import Candidates
from vbert.regions.pixels import prepare
from vbert.regions.shards import RegionSample, write_shard


def test_shards(tmp_path: Path) -> None:
    features = np.arange(6, dtype=np.float16).reshape(2, 3)
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    sample = RegionSample("a/1.x", "00", 8, 9, features, boxes, [0.5, 0.25], ["dog", "犬"], [["red"], []])
    bare = RegionSample("b", "01", 8, 9, features[:0], None, [], [], [])
    rows = write_shard(tmp_path, 7, [sample, bare])
    found = [rows, hashlib.sha256((tmp_path / "000007.tar").read_bytes()).hexdigest()]
    assert digest(found) == "c754baab26a9ef82190ffb3e2b9fbc1bbd1f15ce78843447a15b3989aaf8ef37", (
        "other shards: raise the version of the stage `regions`"
    )


def test_box_rules() -> None:
    at = torch.arange(30.0)
    corners = torch.stack([at * 7 % 23, at * 11 % 19], 1)
    regressed = torch.stack([torch.cat([corners + c, corners + 6 + (at * 5 % 9)[:, None]], 1) for c in range(3)], 1)
    scores = torch.stack([(at * (3 + c) + c) % 8 / 8 for c in range(3)], 1)
    found = Candidates(regressed[:, 0], scores, regressed, scores, None)
    kept = {}
    for nms in (Nms(iou=0.25), Nms(rule="class_agnostic", iou=0.25)):
        for rule in (Adaptive(minimum=2, maximum=9, score=0.6), Fixed(count=25), Given()):
            one = select(found, rule, nms)
            kept[f"{nms.rule} {rule.rule}"] = [one.proposals.tolist(), one.classes.tolist()]
    assert digest(kept) == "570619314cd2079e540c4b239b1eb6ac8248223ba744d9e211605ad294bc3e46", (
        "the rules keep other boxes: raise the rule's version"
    )


def test_rules_on_proposals_and_with_a_rising_threshold() -> None:
    at = torch.arange(60.0)
    corners = torch.stack([at * 7 % 53, at * 11 % 47], 1)
    boxes = torch.cat([corners, corners + 9 + (at * 5 % 13)[:, None]], 1)
    regressed = boxes[:, None] + torch.arange(4.0)[:, None]
    scores = torch.stack([(at * (3 + c) + c) % 16 / 16 for c in range(4)], 1)
    found = Candidates(boxes, scores, regressed, scores, None)
    kept = {}
    for nms in (ProposalNms(rule="proposals"), RisingNms(rule="rising")):
        for rule in (Adaptive(minimum=2, maximum=50, score=0.9), Adaptive(minimum=30, maximum=50), Fixed(count=36)):
            one = select(found, rule, nms)
            kept[f"{nms.rule} {rule}"] = [one.proposals.tolist(), one.classes.tolist()]
    assert digest(kept) == "1870defbe3fbf2817ecc83584be719d6f7253f3626516a05cab4b6dc4b78fa0e", (
        "the rules keep other boxes: raise the rule's version"
    )


def test_the_bottom_up_backend() -> None:
    """Of given boxes and to 1e-3, as below."""
    y, x = np.mgrid[:40, :56]
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], 2).astype(np.uint8))
    spec = bottom_up_tiny.small_spec()
    network = bottom_up(spec, bottom_up_tiny.CLASSES, bottom_up_tiny.random_weights(spec), "cpu")
    boxes = torch.tensor([[4.0, 4, 30, 20], [0, 0, 56, 40], [20.5, 10.25, 33, 39]])
    (found,) = network.roi_features(network.backbone([network.prepare(image)]), [boxes])
    assert found.attributes is not None
    figures = [*found.regressed[0, 1].tolist(), *found.scores[:, 2].tolist(), *found.attributes[0].tolist()]
    figures += [row.mean().item() for row in found.features]
    expected = [0.0, 12.2127, 16.4888, 27.5353, 0.294, 0.2818, 0.2619, 0.7147, 0.0009, 0.28, 2.4648, 2.5585, 2.3092]
    assert figures == pytest.approx(expected, abs=1e-3), "other features: raise the backend's version in BACKENDS"


def test_the_torchvision_backend(tmp_path: Path) -> None:
    """Of given boxes and to 1e-3: bits, and so near ties, are promised within one family of processors only."""
    y, x = np.mgrid[:40, :56]
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], 2).astype(np.uint8))
    spec = small_spec()
    detector = untrained(tmp_path / "w", spec).load()
    boxes = torch.tensor([[4.0, 4, 30, 20], [0, 0, 56, 40], [20.5, 10.25, 33, 39]])
    (found,) = detector.roi_features(detector.backbone([prepare(image, spec.preprocessing)]), [boxes])
    figures = [*found.regressed[0, 1].tolist(), *found.scores[:, 0].tolist(), *found.attributes[0].tolist()]
    figures += [row.sum().item() for row in found.features]
    expected = [2.1403, 4.6102, 28.0376, 22.5938, 0.0, 0.0, 0.0, 0.5358, 0.4642, 2.3115, 2.2985, 2.3409]
    assert figures == pytest.approx(expected, abs=1e-3), "other features: raise the backend's version in BACKENDS"
