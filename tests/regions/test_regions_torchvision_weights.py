"""Files of torchvision's detectors: read, checked, and from a URL to region features."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_httpserver import HTTPServer
from regions.fpn_world import CLASSES, KINDS, drawn, image, needs_photos, ours, photos, spec_of
from torch import Tensor

from flows.graph import weights_of
from tasks.download import download
from tasks.images import images
from tasks.regions import regions
from vbert.artifacts.making.engine import build_here
from vbert.data import readers
from vbert.data.source import Source
from vbert.data.spec import ReaderOptions
from vbert.errors import UserError
from vbert.regions.backends.torchvision_weights import read_start
from vbert.regions.boxes import Adaptive
from vbert.regions.detector import ExtractionNumerics, RegionSettings, detector_file, load_backend

MOBILE = "fasterrcnn_mobilenet_v3_large_fpn"
pytestmark = needs_photos


def saved(path: Path, tensors: Any, **options: Any) -> Path:
    torch.save(tensors, path, **options)
    return path


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torchvision's published files have them: names of 2019, and norms without counters."""
    changes = {r"(rpn\.head\.conv)\.0\.0\.": r"\1.", r"(fpn\.(inner|layer)_blocks\.\d)\.0\.": r"\1."}
    out = OrderedDict()
    for name, value in tensors.items():
        for new, old in changes.items():
            name = re.sub(new, old, name)
        if not name.endswith("num_batches_tracked"):
            out[name] = value
    return out


def read(path: Path, kind: str = MOBILE, **changes: Any) -> Any:
    files = {"weights": path} | ({"classes": changes.pop("classes_file")} if "classes_file" in changes else {})
    return load_backend("torchvision").read_published(spec_of(kind).model_copy(update=changes), files)


@pytest.mark.parametrize("kind", KINDS[::2])
def test_torchvisions_files_of_all_times_are_the_same_weights(tmp_path: Path, kind: str) -> None:
    tensors = drawn(kind)
    wanted = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    paths = [saved(tmp_path / "old.pth", old_names(tensors), _use_new_zipfile_serialization=False)]
    if kind == MOBILE:
        paths.append(saved(tmp_path / "new.pth", tensors))
        paths.append(saved(tmp_path / "run.pth", {"model": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}))
    for path in paths:
        found = read(path, kind)
        assert found.classes == list(CLASSES)
        assert found.tensors.keys() == wanted.keys()
        assert all(torch.equal(found.tensors[name], value) for name, value in wanted.items())


def test_what_is_missing_unexpected_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = dict(drawn(MOBILE))
    del tensors["rpn.head.bbox_pred.bias"]
    tensors["roi_heads.mask_head.weight"] = torch.zeros(1)
    tensors["roi_heads.box_head.fc7.bias"] = torch.zeros(7)
    with pytest.raises(UserError) as raised:
        read(saved(tmp_path / "a.pth", tensors))
    assert "a.pth for detector" in str(raised.value)
    assert "1 tensors missing: rpn.head.bbox_pred.bias;" in str(raised.value)
    assert "1 tensors unexpected: roi_heads.mask_head.weight;" in str(raised.value)
    assert "roi_heads.box_head.fc7.bias [7] in place of [1024]" in str(raised.value)
    with pytest.raises(UserError, match=r"tensors missing: .* and \d+ more; .*architecture"):
        read(saved(tmp_path / "b.pth", drawn(MOBILE)), KINDS[0])


class Harmful:
    """What unpickles to a call: a marker that it happened."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm-was-done",)


@pytest.mark.parametrize("old", [False, True])
def test_nothing_in_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.pth", {"weight": Harmful()}, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"a\.pth: no tensors by name.* it holds weight \(a posix\.mkdir\)"):
        read(path)
    assert not (tmp_path / "harm-was-done").exists()


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no tensors here")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("no tensors here")
    for name in ("text.pth", "empty.pth", "text.safetensors"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
    for value in ([1, 2], {}, {"a": 1}, {"a": torch.zeros(1)}, torch.zeros(2)):
        with pytest.raises(UserError, match=r"x\.pth: "):
            read(saved(tmp_path / "x.pth", value))


def test_a_file_of_torchvisions_name_must_have_its_digest(tmp_path: Path) -> None:
    path = saved(tmp_path / "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", drawn(MOBILE))
    with pytest.raises(UserError, match=r"its sha256 begins with [0-9a-f]{8}, not with fb6a3cc7 as its name says"):
        read(path)
    assert read(path.rename(tmp_path / "mine-20260101.pth")).classes == list(CLASSES)


def test_classes_must_be_named_by_somebody(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", drawn(MOBILE))
    with pytest.raises(UserError, match=r"a\.pth: scores 6 classes, but detector .* knows 0; name them in"):
        read(path, classes=None)
    with pytest.raises(UserError, match=r"scores 6 classes, but detector .* knows 2"):
        read(path, classes=("cat", "dog"))
    names = tmp_path / "names.txt"
    names.write_text("__background__\ncat\ndog\n\n犬\na b\nc\nd\n", encoding="utf-8")
    assert read(path, classes_file=names).classes == ["cat", "dog", "犬", "a b", "c", "d"]
    names.write_text("cat\n")
    with pytest.raises(UserError, match=r"scores 6 classes, but names\.txt names 1"):
        read(path, classes_file=names)
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"names\.txt: must be a text in UTF-8"):
        read(path, classes_file=names)


def test_training_starts_from_a_classifier_or_another_detector(tmp_path: Path) -> None:
    from torchvision.models import get_model

    spec = spec_of(MOBILE)
    fresh = load_backend("torchvision").network(spec, 2).state_dict()
    classifier = get_model("mobilenet_v3_large", weights=None).state_dict()
    from_imagenet = read_start(spec, fresh, saved(tmp_path / "a.pth", classifier))
    for name, value in from_imagenet.items():
        body = name.removeprefix("backbone.body.")
        wanted = classifier[f"features.{body}"] if body != name else fresh[name]
        assert torch.equal(value, wanted), name
    other = drawn(MOBILE)
    from_detector = read_start(spec, fresh, saved(tmp_path / "b.pth", other))
    for name, value in from_detector.items():
        new = name.startswith("roi_heads.box_predictor")
        assert torch.equal(value, fresh[name] if new else other[name]), name
    with pytest.raises(UserError, match=r"c\.pth to start detector .* from: \d+ tensors missing"):
        read_start(spec, fresh, saved(tmp_path / "c.pth", get_model("resnet18", weights=None).state_dict()))


def test_from_a_url_to_region_features(tmp_path: Path, httpserver: HTTPServer) -> None:
    """download → weights → regions, with a file in torchvision's format in place of the spec's weights."""
    path = saved(tmp_path / "own.pth", old_names(drawn(MOBILE)), _use_new_zipfile_serialization=False)
    httpserver.expect_request("/own.pth").respond_with_data(path.read_bytes())
    published = detector_file(f"torchvision_{MOBILE}").model_dump(mode="json")
    small = spec_of(MOBILE).model_dump(mode="json")
    own = tmp_path / "own_mobile.yaml"
    changes = {key: small[key] for key in ("architecture", "classes", "preprocessing")} | {"name": "own_mobile"}
    own.write_text(json.dumps(published | changes))
    file = detector_file(str(own))
    made = weights_of(file, httpserver.url_for("/own.pth"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(photos(3)):
        (folder / f"{number}.jpg").write_bytes(data)
    held = images(
        {"photos": download(Source(path=str(folder)).pinned())}, readers.reader("jsonl"), None, ReaderOptions()
    )
    rule = RegionSettings(boxes=Adaptive(minimum=3, maximum=20, score=0.3)).resolved(file)
    (shards,) = build_here([regions(held, made, rule, ExtractionNumerics())], tmp_path / "store")
    assert shards.figures["images"] == 3
    assert shards.figures["quarantined"] == 0
    detector = ours(spec_of(MOBILE))
    for number, data in enumerate(photos(3)):
        read_back = shards.read(f"{number}.jpg")
        assert read_back.features.shape == (len(read_back.boxes), 1024)
        assert 3 <= len(read_back.boxes) <= 20
        boxes = torch.from_numpy(read_back.boxes.copy())
        (found,) = detector.detect(detector.backbone([detector.prepare(image(data))]))
        assert all((found.regressed - box).abs().amax(2).min() < 0.01 for box in boxes)
        assert set(read_back.classes) <= set(CLASSES)
    assert shards.contract().detector == "own_mobile"
    assert made.bound(shards.store).classes() == list(CLASSES)
