"""torchvision's detectors: our run of them against torchvision's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from regions.fpn_world import CLASSES, KINDS, image, needs_photos, ours, photos, pixels, spec_of, stock, tensors_of
from regions.regions_tiny import all_bits, collection, extracted
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image

from vbert.errors import UserError
from vbert.regions.boxes import Adaptive, Nms, select
from vbert.regions.detector import DetectorWeights, RegionSettings, detector_file, load_backend, write_weights
from vbert.regions.extract import ShardUnit, shard_plan

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 3


@torch.inference_mode()
def stock_features(model: nn.Module, data: bytes, boxes: Tensor) -> Tensor:
    """The output of torchvision's box head for boxes in pixels of the image, through its own transform."""
    model.roi_heads.box_roi_pool.scales = None  # or it would keep those of the first image it saw
    batch, _ = model.transform([pixels(data)])
    height, width = pixels(data).shape[1:]
    (h, w) = batch.image_sizes[0]
    maps = model.backbone(batch.tensors)
    inside = boxes * torch.tensor([w / width, h / height] * 2)
    return model.roi_heads.box_head(model.roi_heads.box_roi_pool(maps, [inside], batch.image_sizes))


@needs_photos
@pytest.mark.parametrize("kind", KINDS)
def test_given_boxes_have_torchvisions_features(kind: str) -> None:
    spec = spec_of(kind)
    detector, model = ours(spec), stock(spec)
    for data in photos(COUNT):
        width, height = image(data).size
        corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(1)).sort(1).values
        boxes = corners.flatten(1) * torch.tensor([width, height, width, height])
        (found,) = detector.roi_features(detector.backbone([detector.prepare(image(data))]), [boxes])
        theirs = stock_features(model, data, boxes)
        assert theirs.abs().max() > 0.1
        assert len(theirs.unique(dim=0)) == 40
        worst = ((found.features - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
        assert worst < 1e-4


@needs_photos
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_file_the_same_boxes_come_out(kind: str) -> None:
    """Decoding, resizing, proposals, box head, suppression; torchvision's usual cut."""
    spec = spec_of(kind)
    detector, model = ours(spec), stock(spec)
    for data in photos(COUNT):
        model.roi_heads.box_roi_pool.scales = None
        with torch.inference_mode():
            (theirs,) = model([pixels(data)])
        (found,) = detector.detect(detector.backbone([detector.prepare(image(data))]))
        kept = select(found, Adaptive(minimum=0, maximum=100, score=0.05), Nms(iou=0.5))
        assert len(theirs["boxes"]) >= 20
        assert len(set(theirs["labels"].tolist())) > 1
        assert len(kept.boxes) == len(theirs["boxes"])
        apart = (theirs["boxes"][:, None] - kept.boxes[None]).abs().amax(2)
        apart[theirs["labels"][:, None] - 1 != kept.classes[None]] = torch.inf
        nearest = apart.min(1)
        assert nearest.values.max() < 0.01  # pixels; two of nearly equal scores may have changed places
        assert sorted(nearest.indices.tolist()) == list(range(len(kept.boxes)))
        assert (kept.scores[nearest.indices] - theirs["scores"]).abs().max() < 1e-3


@needs_photos
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_image_decides_its_bits(kind: str) -> None:
    """Order, what was seen before, and a fresh or a used detector: 0 of all (image, setting) pairs differ."""
    spec = spec_of(kind, 96, 160, proposals=40)
    files = [*map(image, photos(3)), Image.linear_gradient("L").resize((900, 5)).convert("RGB")]
    alone = {}
    for at, picture in enumerate(files):
        fresh = ours(spec)
        alone[at] = fresh.detect(fresh.backbone([fresh.prepare(picture)]))[0]
    used, compared, differing = ours(spec), 0, 0
    for order in ([3, 2, 1, 0], [1, 3]):  # the narrow one first: torchvision would keep what it takes for its scales
        for at in order:
            (again,) = used.detect(used.backbone([used.prepare(files[at])]))
            names = ("boxes", "scores", "regressed", "features")
            differing += not all(torch.equal(getattr(again, n), getattr(alone[at], n)) for n in names)
            compared += 1
    assert (compared, differing) == (6, 0)


@needs_photos
def test_no_setting_of_the_extraction_changes_an_images_bits(tmp_path: Path) -> None:
    """Order, neighbours, shard size, what is left to do after a kill: 0 of all (image, setting) pairs differ."""
    spec = spec_of(KINDS[2], 96, 160, proposals=40)
    index = collection(tmp_path / "images", {f"photo {i}": data for i, data in enumerate(photos(6))})
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights", spec, CLASSES, tensors_of(spec))
    weights = DetectorWeights.at(tmp_path / "weights")
    settings = RegionSettings(boxes=Adaptive(minimum=5, maximum=20, score=0.3), nms=Nms(), images_per_shard=6)
    reference = all_bits(extracted(tmp_path / "reference", index, weights, settings))
    assert len({features for features, _, _ in reference.values()}) == 6
    rows = shard_plan(index.table(), 6)[0][1].images
    plans = {
        "one a shard": shard_plan(index.table(), 1),
        "four a shard": shard_plan(index.table(), 4),
        "backwards": [("000000", ShardUnit(0, rows[::-1]))],
        "the rest": [("000000", ShardUnit(0, rows[3:]))],
    }
    compared = differing = 0
    for number, plan in enumerate(plans.values()):
        for name, bits in all_bits(extracted(tmp_path / str(number), index, weights, settings, plan=plan)).items():
            compared += 1
            differing += bits != reference[name]
    assert (compared, differing) == (21, 0)


@needs_photos
def test_stock_torchvision_changes_features_beside_a_larger_image() -> None:
    """Why one image a forward: a batch is padded to its largest, and what is seen of the padding is no rounding."""
    spec = spec_of(KINDS[0])
    model, detector = stock(spec), ours(spec)
    one, large = pixels(photos(1)[0])[:, :150, :150], torch.rand(3, 150, 300)
    boxes = torch.tensor([[10.0, 10, 140, 140], [60, 60, 149, 149], [0, 0, 150, 150]])

    def stock_features_in(images: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            batch, _ = model.transform(images)
            heads, maps = model.roi_heads, model.backbone(batch.tensors)
            heads.box_roi_pool.scales = None
            inside = [boxes * 160 / 150, *(boxes[:1] for _ in images[1:])]
            return heads.box_head(heads.box_roi_pool(maps, inside, batch.image_sizes))[:3]

    alone, beside = stock_features_in([one]), stock_features_in([one, large])
    change = ((alone - beside).norm(dim=1) / alone.norm(dim=1)).max().item()
    assert change > 0.02
    small, wide = (to_pil_image(each) for each in (one, large))
    features = []
    for neighbours in ([small], [wide, small], [small, wide]):
        for each in neighbours:
            seen = detector.backbone([detector.prepare(each)])
            if each is small:
                features.append(detector.roi_features(seen, [boxes])[0].features)
    assert all(torch.equal(features[0], each) for each in features[1:])
    assert ((features[0] - alone).norm(dim=1) / alone.norm(dim=1)).max() < 1e-4


@needs_photos
def test_a_given_boxs_bits_know_nothing_of_the_others() -> None:
    spec = spec_of(KINDS[0])
    detector = ours(spec)
    seen = detector.backbone([detector.prepare(image(photos(1)[0]))])
    corners = torch.rand(70, 2, 2, generator=torch.Generator().manual_seed(2)).sort(1).values
    boxes = corners.flatten(1) * 400
    (together,) = detector.roi_features(seen, [boxes])
    for count in (1, 2, 29, 30, 31):
        for part in (slice(count), slice(-count, None)):
            (some,) = detector.roi_features(seen, [boxes[part]])
            assert torch.equal(some.features, together.features[part])
    assert detector.roi_features(seen, [boxes[:0]])[0].features.shape == (0, 1024)


@needs_photos
@pytest.mark.parametrize("kind", KINDS[::2])
def test_under_bf16_boxes_and_features_are_nearly_the_same(kind: str) -> None:
    """Random weights forgive less than trained ones, for which 0.99 is asked."""
    detector = ours(spec_of(kind, 96, 160, proposals=40))
    for data in photos(1):
        prepared = detector.prepare(image(data))
        (exact,) = detector.detect(detector.backbone([prepared]))
        with torch.autocast("cpu", torch.bfloat16):
            seen = detector.backbone([prepared])
            (coarse,) = detector.roi_features(seen, [exact.boxes])
            (found,) = detector.detect(seen)
        assert all(each.dtype == torch.float32 for each in (coarse.features, found.boxes, found.scores))
        assert torch.nn.functional.cosine_similarity(exact.features, coarse.features).min() > 0.95
        assert (box_iou(exact.boxes, found.boxes).max(1).values >= 0.9).float().mean() > 0.5


def test_layers_that_an_architecture_does_not_have_are_refused() -> None:
    spec = spec_of("fasterrcnn_resnet50_fpn_v2").model_copy(update={"layer": "fc7"})
    with pytest.raises(UserError, match="has the layers fc6 of dim 1024, not fc7 of dim 1024; mend layer and dim"):
        load_backend("torchvision").network(spec, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_specs_name_torchvisions_classes_and_files(kind: str) -> None:
    file = detector_file(f"torchvision_{kind}")
    (weights,) = get_model_weights(kind)
    assert list(file.classes) == weights.meta["categories"][1:]
    assert file.weights["weights"].url == weights.url
    assert file.weights["weights"].sha256 is None
    assert file.architecture.epsilon == (0.0 if kind == "fasterrcnn_resnet50_fpn" else 1e-5)
