"""Several images a forward, as on a GPU: an image's bits are the same alone, beside any others and in any place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from regions import bottom_up_tiny, detectron2_reference, fpn_world
from regions.regions_tiny import picture, small_spec, untrained

from vbert.regions import suppression
from vbert.regions.candidates import Candidates
from vbert.regions.detector import Detector, load_backend

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS = 4
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
DETECTRON2 = [
    *detectron2_reference.NEEDED,
    pytest.mark.skipif(not detectron2_reference.COCO.is_dir(), reason="no photos"),
]


def plain(device: str, at: Path) -> Detector:
    return untrained(at / "w", small_spec()).load(device)


def fpn(device: str, at: Path) -> Detector:
    spec = fpn_world.spec_of(fpn_world.KINDS[2], 96, 160, proposals=40)
    return load_backend("torchvision").detector(spec, fpn_world.CLASSES, fpn_world.tensors_of(spec), device)


def bottom_up(device: str, at: Path) -> Detector:
    spec = bottom_up_tiny.small_spec()
    return load_backend("bottom_up").detector(spec, bottom_up_tiny.CLASSES, bottom_up_tiny.random_weights(spec), device)


def detectron2(device: str, at: Path) -> Detector:
    spec = detectron2_reference.narrow(96)
    tensors = detectron2_reference.drawn(spec, 30.0).state_dict()
    return load_backend("detectron2").detector(spec, spec.classes or (), tensors, device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "make",
    [
        plain,
        pytest.param(fpn, marks=fpn_world.needs_photos),
        bottom_up,
        pytest.param(detectron2, marks=DETECTRON2),
    ],
)
def test_an_images_bits_know_nothing_of_its_batch(
    make: Callable[[str, Path], Detector], device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "_by_matrix", lambda *_: True)  # also on a CPU
    detector = make(device, tmp_path)
    images = [picture(seed, 96, 72) for seed in range(5)]
    compared = 0
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        alone = [found(detector, [image])[0] for image in images]
        assert not torch.equal(alone[0].features, alone[1].features)
        for together in ([1, 0], [0, 1, 2, 3], [3, 2, 1, 0], [4, 0, 3], [0, 0, 0, 0], [2, 4, 0, 1]):
            for i, mine in zip(together, found(detector, [images[i] for i in together]), strict=True):
                for name in ("boxes", "scores", "regressed", "features"):
                    assert torch.equal(getattr(mine, name), getattr(alone[i], name)), (name, together, i)
                compared += 1
    assert compared == 21


@pytest.mark.parametrize(
    "make",
    [plain, pytest.param(fpn, marks=fpn_world.needs_photos), pytest.param(detectron2, marks=DETECTRON2)],
)
def test_pooled_for_all_images_at_once_features_are_the_same(
    make: Callable[[str, Path], Detector], tmp_path: Path
) -> None:
    """As on a GPU, of fewer images than there are slots, one of them without a box."""
    detector = make("cpu", tmp_path)
    seen = detector.backbone([detector.prepare(picture(seed, 96, 72)) for seed in range(3)], SLOTS)
    apart = detector.detect(seen)
    boxes = [apart[0].boxes[:7], torch.zeros(0, 4), apart[2].boxes[:1]]
    given = detector.roi_features(seen, boxes)
    detector.together = True  # type: ignore[attr-defined]
    for one, other in zip([*apart, *given], [*detector.detect(seen), *detector.roi_features(seen, boxes)], strict=True):
        assert one.features.shape == other.features.shape
        assert torch.allclose(one.features, other.features, rtol=1e-3, atol=1e-4 * float(apart[0].features.max()))
        assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("make", [plain, bottom_up])
def test_given_boxes_of_several_images_are_their_own(make: Callable[[str, Path], Detector], tmp_path: Path) -> None:
    """As many as each has, none among them."""
    detector = make("cpu", tmp_path)
    images = [picture(seed, 96, 72) for seed in range(3)]
    boxes = [torch.tensor([[1.0, 2, 50, 60], [30, 20, 90, 70]]), torch.zeros(0, 4), torch.tensor([[5.0, 5, 20, 30]])]
    seen = detector.backbone([detector.prepare(image) for image in images], SLOTS)
    described = detector.roi_features(seen, boxes)
    assert [len(one.features) for one in described] == [2, 0, 1]
    for image, mine, one in zip(images, boxes, described, strict=True):
        (alone,) = detector.roi_features(detector.backbone([detector.prepare(image)], SLOTS), [mine])
        assert torch.equal(alone.features, one.features)
        assert torch.allclose(one.boxes, mine)


def found(detector: Detector, images: list[Image.Image]) -> list[Candidates]:
    return detector.detect(detector.backbone([detector.prepare(image) for image in images], SLOTS))
