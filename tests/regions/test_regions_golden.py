"""Golden outcomes: what shards, box rules and the backend make of fixed inputs. Others need a new version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from regions.regions_tiny import small_spec, untrained

from vbert.artifacts.fingerprint import digest
from vbert.regions.boxes import Adaptive, Fixed, Given, Nms, select
from vbert.regions.detector import Candidates
from vbert.regions.pixels import prepare
from vbert.regions.shards import Sample, write_shard


def test_shards(tmp_path: Path) -> None:
    features = np.arange(6, dtype=np.float16).reshape(2, 3)
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    sample = Sample("a/1.x", "00", 8, 9, features, boxes, [0.5, 0.25], ["dog", "犬"], [["red"], []])
    bare = Sample("b", "01", 8, 9, features[:0], None, [], [], [])
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


def test_the_torchvision_backend(tmp_path: Path) -> None:
    """Of given boxes and to 1e-3: bits, and so near ties, are promised within one family of processors only."""
    from PIL import Image

    y, x = np.mgrid[:40, :56]
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], 2).astype(np.uint8))
    spec = small_spec()
    detector = untrained(tmp_path / "w", spec).load()
    boxes = torch.tensor([[4.0, 4, 30, 20], [0, 0, 56, 40], [20.5, 10.25, 33, 39]])
    (found,) = detector.describe(detector.look([prepare(image, spec.preprocessing)]), [boxes])
    figures = [*found.regressed[0, 1].tolist(), *found.scores[:, 0].tolist(), *found.attributes[0].tolist()]
    figures += [row.sum().item() for row in found.features]
    expected = [2.1403, 4.6102, 28.0376, 22.5938, 0.0, 0.0, 0.0, 0.5358, 0.4642, 2.3115, 2.2985, 2.3409]
    assert figures == pytest.approx(expected, abs=1e-3), "other features: raise the backend's version in BACKENDS"
