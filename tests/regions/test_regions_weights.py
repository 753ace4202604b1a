"""The stage `weights`: published weights, checked and brought into one form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from regions.regions_tiny import CLASSES, SMALL, small_spec, untrained

from flows.graph import weights_of
from vbert.artifacts.making.engine import build_here
from vbert.errors import UserError
from vbert.regions.detector import DetectorFile, detector_file


def spec_file(folder: Path, **changes: object) -> DetectorFile:
    fields = small_spec().model_dump(mode="json") | {"backend": "torchvision", "title": "Small", "licence": "none"}
    (folder / "small.yaml").write_text(json.dumps(fields | {"boxes": {"rule": "fixed", "count": 5}} | changes))
    return detector_file(str(folder / "small.yaml"))


def test_a_trained_detectors_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    mine = untrained(tmp_path / "mine", small_spec())
    (made,) = build_here([weights_of(spec_file(tmp_path), str(tmp_path / "mine"))], tmp_path / "store")
    assert made.digest() == mine.digest()
    assert made.classes() == list(CLASSES)
    assert made.spec().attributes == ("red", "blue")
    assert made.figures["classes"] == len(CLASSES)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    untrained(tmp_path / "mine", small_spec())
    other = spec_file(tmp_path, architecture=SMALL.model_copy(update={"hidden": 16}).model_dump(mode="json"))
    with pytest.raises(UserError, match="whose architecture is not that of small"):
        build_here([weights_of(other, str(tmp_path / "mine"))], tmp_path / "store")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    untrained(tmp_path / "mine", small_spec())
    tensors = load_file(tmp_path / "mine" / "weights.safetensors")
    del tensors["roi_heads.box_head.fc6.weight"]
    save_file(tensors, tmp_path / "mine" / "weights.safetensors")
    with pytest.raises(UserError, match=r"not the weights of small.*box_head\.fc6\.weight"):
        build_here([weights_of(spec_file(tmp_path), str(tmp_path / "mine"))], tmp_path / "store")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "has no published weights: train it"),
        ({"import_only": "nobody has them"}, "can't be run from images: nobody has them"),
    ],
)
def test_a_detector_without_weights_says_so(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        weights_of(spec_file(tmp_path, **changes))


def test_an_architecture_of_another_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture plain_cnn belongs to backend 'torchvision'"):
        spec_file(tmp_path, backend="bottom_up")
