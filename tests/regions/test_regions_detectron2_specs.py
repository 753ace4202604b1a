"""The specs of detectron2's detectors, and the error where detectron2 is not installed."""

from __future__ import annotations

import sys

import pytest

from vbert.artifacts.steps.fingerprint import digest
from vbert.errors import UserError
from vbert.regions.backends import detectron2 as backend
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import detector_file, detector_names
from vbert.regions.pixels import target_size

NAMES = [name for name in detector_names() if name.startswith("detectron2_")]
R50 = "detectron2_faster_rcnn_R_50_FPN_3x"


def test_the_shipped_specs_name_their_weights_and_classes() -> None:
    assert len(NAMES) == 4
    for name in NAMES:
        file = detector_file(name)
        config = file.architecture.config.removesuffix(".yaml")  # type: ignore[union-attr]
        assert file.name == f"detectron2_{config.rpartition('/')[2]}"
        assert file.weights["weights"].url.startswith(f"https://dl.fbaipublicfiles.com/detectron2/{config}/")  # type: ignore[union-attr]
        assert file.classes is not None
        assert len(file.classes) == 80
        assert (file.layer, file.dim) == (("res5_pool", 2048) if "C4" in name else ("fc7", 1024))


def test_without_detectron2_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(UserError, match=r"needs detectron2.*install it: python -m pip install") as refused:
        backend.network(detector_file(R50).spec(), 80)
    assert "\n" not in refused.value.message


def test_sides_are_rounded_to_the_nearest_and_old_fingerprints_stay() -> None:
    rule = Preprocessing(resize="pillow", short_side=800, long_side=1333, rounding="nearest")
    assert target_size(640, 427, rule) == (1199, 800)  # 1199.06
    assert target_size(500, 353, rule) == (1133, 800)  # 1133.14
    assert target_size(333, 500, rule) == (800, 1201)  # 1201.20
    assert target_size(2000, 1111, rule) == (1333, 740)  # 740.48
    assert target_size(7, 4000, rule) == (2, 1333)
    assert target_size(612, 612, rule) == (800, 800)
    assert target_size(427, 640, rule) != target_size(428, 640, rule.model_copy(update={"rounding": "down"}))
    down = Preprocessing()
    assert digest(down) == digest(down.model_copy(update={"rounding": "down"}))
    assert digest(down) == "24d7db694cabc74174bd75fb069dcf150b897015c6f38e299c2b655d3424edce"
    assert digest(rule) != digest(rule.model_copy(update={"rounding": "down"}))
