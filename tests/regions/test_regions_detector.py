from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from regions.regions_tiny import picture, small_spec, untrained
from torchvision.models.detection.image_list import ImageList

from vbert.regions.candidates import Candidates
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import Detector, DetectorWeights
from vbert.regions.pixels import normalised, prepare, target_size

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(64, 64), (80, 48), (47, 61), (33, 9), (1, 1), (8, 100)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> DetectorWeights:
    return untrained(tmp_path_factory.mktemp("detector") / "weights", small_spec())


@pytest.fixture(scope="module")
def detector(weights: DetectorWeights) -> Detector:
    return weights.load()


def detected(detector: Detector, image: Image.Image) -> Candidates:
    return detector.detect(detector.backbone([detector.prepare(image)]))[0]


def same(a: Candidates, b: Candidates) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "scores", "regressed", "features"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_gives_proposals_within_the_image(detector: Detector, size: tuple[int, int]) -> None:
    found = detected(detector, picture(0, *size))
    assert 1 <= len(found.boxes) <= 12
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= size[0]).all()
    assert (found.boxes[:, 3] <= size[1]).all()
    assert torch.isfinite(found.features).all()
    assert found.features.shape == (len(found.boxes), 32)
    assert torch.allclose(found.attributes.sum(1), torch.ones(len(found.boxes)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_proposals_are_torchvisions_own(detector: Detector, size: tuple[int, int]) -> None:
    prepared = detector.prepare(picture(3, *size))
    network, pixels = detector.network, detector.backbone([prepared]).maps[0]
    with torch.inference_mode():
        (theirs,), _ = network.rpn(ImageList(pixels, [size[::-1]]), network.backbone(pixels))
    assert torch.equal(detected(detector, picture(3, *size)).boxes, theirs)


def test_it_is_torchvisions_own_network(detector: Detector) -> None:
    """torchvision's unchanged RPN and RoI heads, run as its GeneralizedRCNN runs them, on the same weights."""
    from torchvision.models.detection.roi_heads import RoIHeads

    network = detector.network
    prepared = detector.prepare(picture(3, 80, 48))
    pixels = prepared.pixels[None]
    with torch.inference_mode():
        maps = network.backbone(pixels)
        proposals, _ = network.rpn(ImageList(pixels, [(48, 80)]), maps)
        network.roi_heads.detections_per_img = 30
        (theirs,), _ = RoIHeads.forward(network.roi_heads, maps, proposals, [(48, 80)])
    found = detected(detector, picture(3, 80, 48))
    assert torch.allclose(found.boxes, proposals[0], atol=1e-4)
    assert len(theirs["scores"])
    for box, label, score in zip(theirs["boxes"], theirs["labels"], theirs["scores"], strict=True):
        ours = found.regressed[:, label - 1]
        at = (ours - box).abs().sum(1).argmin()
        assert torch.allclose(ours[at], box, atol=1e-3)
        assert torch.allclose(found.scores[at, label - 1], score, atol=1e-4)


def test_an_images_bits_know_nothing_of_what_was_detected_before(weights: DetectorWeights) -> None:
    """torchvision's MultiScaleRoIAlign keeps the scales of the first image it sees; here the first one is 1×1."""
    images = [picture(i, *size) for i, size in enumerate(SIZES)]
    alone = [detected(weights.load(), image) for image in images]
    shared = weights.load()
    backwards = [detected(shared, image) for image in reversed(images)][::-1]
    assert all(same(a, b) for a, b in zip(alone, backwards, strict=True))


def test_given_proposals_have_the_features_of_proposals(detector: Detector) -> None:
    prepared = detector.prepare(picture(5, 64, 64))
    (found,) = detector.detect(detector.backbone([prepared]))
    (described,) = detector.roi_features(detector.backbone([prepared]), [found.boxes])
    assert same(found, described)


def test_a_given_boxs_bits_do_not_depend_on_how_many_there_are(detector: Detector) -> None:
    prepared = detector.prepare(picture(6, 64, 64))
    boxes = torch.rand(40, 4) * 30
    boxes[:, 2:] += boxes[:, :2] + 1
    (all_of_them,) = detector.roi_features(detector.backbone([prepared]), [boxes])
    for count in (1, 2, 5, 12, 13, 39):
        (some,) = detector.roi_features(detector.backbone([prepared]), [boxes[:count]])
        assert torch.equal(some.features, all_of_them.features[:count])
        (late,) = detector.roi_features(detector.backbone([prepared]), [boxes[-count:]])
        assert torch.equal(late.features, all_of_them.features[-count:])
    (none,) = detector.roi_features(detector.backbone([prepared]), [boxes[:0]])
    assert none.features.shape == (0, 32)


def test_stock_torchvision_lets_a_neighbour_change_an_image(detector: Detector) -> None:
    """Why one image a forward: its batches are padded to the largest, and the padding is seen."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    stock = GeneralizedRCNNTransform(64, 200, [0.5] * 3, [0.25] * 3, size_divisible=8)
    stock.eval()
    one, large = (torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in ((64, 64), (64, 160)))

    def map_of_the_first(images: list[torch.Tensor]) -> torch.Tensor:
        batch, _ = stock(images)
        with torch.inference_mode():
            return detector.network.backbone(batch.tensors)["0"][0, :, :16, :16]

    alone, beside = map_of_the_first([one]), map_of_the_first([one, large])
    assert (alone - beside).abs().max() > 1e-3 * alone.abs().max()


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_the_layer_is_the_one_named(tmp_path: Path, layer: str) -> None:
    weights = untrained(tmp_path / "w", small_spec(layer=layer))
    detector = weights.load()
    prepared = detector.prepare(picture(1, 64, 64))
    (found,) = detector.detect(detector.backbone([prepared]))
    heads = detector.network.roi_heads
    with torch.inference_mode():
        pixels = detector.backbone([prepared]).maps[0]
        pooled = heads.box_roi_pool(detector.network.backbone(pixels), [found.boxes], None)
        fc6 = torch.relu(heads.box_head.fc6(pooled.flatten(1)))
        wanted = fc6 if layer == "fc6" else torch.relu(heads.box_head.fc7(fc6))
    assert torch.allclose(found.features, wanted, atol=1e-5)


def test_resized_inputs_give_boxes_in_pixels_of_the_image(tmp_path: Path) -> None:
    doubled = Preprocessing(resize="pillow", short_side=96, long_side=200, mean=(0.5,) * 3, std=(0.25,) * 3)
    detector = untrained(tmp_path / "w", small_spec(preprocessing=doubled)).load()
    prepared = detector.prepare(picture(2, 48, 60))
    assert prepared.pixels.shape == (3, 120, 96)
    (found,) = detector.detect(detector.backbone([prepared]))
    assert found.boxes[:, 2].max() <= 48
    assert found.boxes[:, 3].max() <= 60
    (again,) = detector.roi_features(detector.backbone([prepared]), [found.boxes])
    assert torch.allclose(again.features, found.features, atol=1e-5)


def test_sizes_and_colours_follow_the_preprocessing() -> None:
    rule = Preprocessing(resize="torch", short_side=600, long_side=1000)
    assert target_size(640, 480, rule) == (800, 600)
    assert target_size(1000, 300, rule) == (1000, 300)
    assert target_size(5, 8000, rule) == (1, 1000)
    grey = Image.new("RGB", (30, 20), (10, 20, 30))
    assert prepare(grey, Preprocessing(resize="torch", short_side=40)).pixels.shape == (3, 40, 60)
    caffe = Preprocessing(colours="BGR", scale=1.0, mean=(3.0, 2.0, 1.0), std=(1.0, 1.0, 1.0))
    assert normalised(torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1), caffe).flatten().tolist() == [
        27,
        18,
        9,
    ]
