"""The bottom-up-attention detector against the same network computed plainly, and its bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from regions.bottom_up_tiny import (
    ATTRIBUTES,
    CAFFE,
    CLASSES,
    SMALL,
    caffe_anchors,
    plain_head,
    plain_maps,
    plain_proposals,
    random_weights,
    regress,
    small_spec,
)
from regions.regions_tiny import picture
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from vbert.errors import UserError
from vbert.regions.backends.bottom_up import BottomUpDetector, detector, network
from vbert.regions.backends.bottom_up_network import cell_anchors
from vbert.regions.boxes import Fixed, ProposalNms, select
from vbert.regions.candidates import Candidates
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import DetectorFile, detector_file
from vbert.regions.pixels import prepare, target_size

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(64, 64), (90, 60), (47, 71), (200, 40), (101, 67), (3, 3), (5, 900)]


def made(**changes: object) -> BottomUpDetector:
    spec = small_spec(**changes)
    return detector(spec, CLASSES, random_weights(spec), "cpu")


@pytest.fixture(scope="module")
def small() -> BottomUpDetector:
    return made()


def detected(of: BottomUpDetector, image: Image.Image) -> Candidates:
    return of.detect(of.backbone([of.prepare(image)]))[0]


def same(a: Candidates, b: Candidates) -> bool:
    return all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "scores", "regressed", "features", "attributes")
    )


@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_it_is_the_published_network(small: BottomUpDetector, size: tuple[int, int]) -> None:
    """Unfolded normalisation, anchors and suppression one by one, regression box by box."""
    weights = random_weights(small_spec())
    image = picture(1, *size)
    prepared = small.prepare(image)
    found = detected(small, image)
    factor = min(96 / min(size), 160 / max(size))
    maps = plain_maps(prepared.pixels, weights, SMALL)
    proposals = plain_proposals(maps, weights, tuple(prepared.pixels.shape[1:]), factor, SMALL)
    assert len(proposals) > 5
    assert found.boxes.shape == proposals.shape
    assert torch.allclose(found.boxes, proposals / factor, atol=1e-2)

    features, scores, deltas, attributes = plain_head(maps, found.boxes * factor, weights, SMALL)
    assert torch.allclose(found.features, features, atol=1e-4 * float(features.abs().max()))
    assert torch.allclose(found.scores, scores[:, 1:], atol=1e-4)
    assert found.attributes is not None
    assert torch.allclose(found.attributes, attributes[:, 1:], atol=1e-4)
    moved = np.array(
        [
            [regress(box, delta[4 * c : 4 * c + 4], *size) for c in range(len(CLASSES))]
            for box, delta in zip(found.boxes.double().numpy(), deltas.double().numpy(), strict=True)
        ]
    )
    assert np.allclose(found.regressed.numpy(), moved, atol=1e-2)


def test_the_attribute_head_sees_the_background_too(small: BottomUpDetector) -> None:
    weights = random_weights(small_spec())
    weights["head.classes.bias"][0] += 1000.0
    background = detector(small_spec(), CLASSES, weights, "cpu")
    image = picture(1, 64, 64)
    found, other = detected(background, image), detected(small, image)
    assert len(set(other.scores.argmax(1).tolist())) > 1
    prepared = small.prepare(image)
    maps = plain_maps(prepared.pixels, weights, SMALL)
    _, scores, _, attributes = plain_head(maps, found.boxes * 1.5, weights, SMALL)
    assert (scores.argmax(1) == 0).all()
    assert found.attributes is not None
    assert torch.allclose(found.attributes, attributes[:, 1:], atol=1e-4)
    assert not torch.allclose(found.attributes, other.attributes, atol=1e-2)


def test_anchors_are_caffes_or_detectron2s() -> None:
    assert torch.equal(cell_anchors("caffe"), torch.from_numpy(caffe_anchors()))
    ours = cell_anchors("detectron2")
    assert torch.allclose(ours[:, :2], -ours[:, 2:])
    theirs = AnchorGenerator(((64, 128, 256, 512),), ((0.5, 1.0, 2.0),)).cell_anchors[0]  # rounded to whole pixels
    assert torch.allclose(ours, theirs, atol=0.51)


def test_in_detectron2s_geometry_boxes_reach_the_edges() -> None:
    right: dict[str, list[float]] = {}
    for geometry in ("caffe", "detectron2"):
        one = made(architecture=SMALL.model_copy(update={"geometry": geometry}))
        found = [(size, detected(one, picture(2, *size))) for size in SIZES[:4]]
        right[geometry] = [size[0] - float(each.boxes[:, 2].max()) for size, each in found]
        last = 1 if geometry == "caffe" else 0
        assert all(each.regressed[..., 3].max() <= size[1] - last for size, each in found)
    assert min(right["detectron2"]) == pytest.approx(0, abs=1e-4)
    assert min(right["caffe"]) > 47 / 96 - 1e-4  # a pixel of the input of the image that grows most


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_gives_proposals_within_the_image(small: BottomUpDetector, size: tuple[int, int]) -> None:
    found = detected(small, picture(0, *size))
    assert 1 <= len(found.boxes) <= SMALL.proposals
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= size[0]).all()
    assert (found.boxes[:, 3] <= size[1]).all()
    assert found.features.shape == (len(found.boxes), 64)
    assert found.regressed.shape == (len(found.boxes), len(CLASSES), 4)
    assert torch.isfinite(found.features).all()
    overlaps = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert (overlaps <= SMALL.rpn_iou + 0.05).all()


def test_features_are_those_of_the_proposals(small: BottomUpDetector) -> None:
    """As the spec says (`features_of: proposals`): the boxes kept are proposals, and their features are those of the
    proposals, not of what the box head makes of them."""
    assert all(detector_file(name).features_of == "proposals" for name in SPECS)
    image = picture(5, 90, 60)
    seen = small.backbone([small.prepare(image)])
    (found,) = small.detect(seen)
    (described,) = small.roi_features(seen, [found.boxes])
    kept = select(found, Fixed(count=10), ProposalNms(rule="proposals"))
    assert torch.equal(kept.boxes, found.boxes[kept.proposals])
    (of_kept,) = small.roi_features(seen, [kept.boxes])
    assert torch.allclose(of_kept.features, found.features[kept.proposals], atol=1e-4)
    assert torch.allclose(described.features, found.features, atol=1e-4)
    (regressed,) = small.roi_features(seen, [found.regressed[kept.proposals, kept.classes]])
    assert not torch.allclose(regressed.features, of_kept.features, atol=1e-1)


def test_an_images_bits_know_nothing_of_what_was_detected_before(small: BottomUpDetector) -> None:
    images = [picture(i, *size) for i, size in enumerate(SIZES)]
    alone = [detected(made(), image) for image in images]
    backwards = [detected(small, image) for image in reversed(images)][::-1]
    assert all(same(a, b) for a, b in zip(alone, backwards, strict=True))


def test_a_given_boxs_bits_do_not_depend_on_how_many_there_are(small: BottomUpDetector) -> None:
    seen = small.backbone([small.prepare(picture(6, 64, 64))])
    boxes = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) * 30
    boxes[:, 2:] += boxes[:, :2] + 1
    (all_of_them,) = small.roi_features(seen, [boxes])
    for count in (1, 2, 5, 8, 9, 29):
        (some,) = small.roi_features(seen, [boxes[:count]])
        assert torch.equal(some.features, all_of_them.features[:count])
        assert torch.equal(some.scores, all_of_them.scores[:count])
        (late,) = small.roi_features(seen, [boxes[-count:]])
        assert torch.equal(late.features, all_of_them.features[-count:])
    (none,) = small.roi_features(seen, [boxes[:0]])
    assert none.features.shape == (0, 64)


def test_bf16_is_near_and_its_heads_are_fp32(small: BottomUpDetector) -> None:
    seen = small.backbone([small.prepare(picture(7, 64, 64))])
    boxes = torch.tensor([[0.0, 0, 40, 40], [10, 5, 60, 50], [20, 20, 63, 63]])
    (exact,) = small.roi_features(seen, [boxes])
    with torch.autocast("cpu", torch.bfloat16):
        again = small.backbone([small.prepare(picture(7, 64, 64))])
        (near,) = small.roi_features(again, [boxes])
    assert again.maps.dtype == torch.bfloat16
    assert {near.features.dtype, near.scores.dtype, near.regressed.dtype} == {torch.float32}
    assert (torch.cosine_similarity(near.features, exact.features) > 0.99).all()
    head = small.network.head
    with torch.inference_mode():
        logits = head.classes(near.features)
    assert torch.allclose(near.scores, logits.softmax(1)[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (800, 600)),
        ((500, 333), (901, 600)),  # 900.9: to the nearest, not down
        ((333, 500), (600, 901)),
        ((640, 383), (1000, 598)),  # 1002.6 is too long: 1000 / 640 · 383 = 598.4
        ((1667, 1000), (1000, 600)),  # 1000.2 rounds to 1000, which isn't too long
        ((5, 8000), (1, 1000)),
    ],
)
def test_sizes_are_fast_rcnns(size: tuple[int, int], expected: tuple[int, int]) -> None:
    rule = CAFFE.model_copy(update={"short_side": 600, "long_side": 1000})
    assert target_size(*size, rule) == expected
    assert prepare(Image.new("RGB", size), rule).pixels.shape == (3, *expected[::-1])


@pytest.mark.parametrize("size", [(500, 333), (640, 480), (77, 130), (1200, 900), (1300, 400), (9, 7)], ids=str)
def test_pixels_are_opencvs(size: tuple[int, int]) -> None:
    """Fast R-CNN's own preprocessing with the real OpenCV. On noise, which resizes worst: one level of 255 is 1."""
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    rule = CAFFE.model_copy(update={"short_side": 600, "long_side": 1000})
    image = picture(3, *size)
    pixels = np.asarray(image)[:, :, ::-1].astype(np.float32) - np.array([[[102.9801, 115.9465, 122.7717]]], np.float32)
    factor = 600 / min(size)
    if round(factor * max(size)) > 1000:
        factor = 1000 / max(size)
    wanted = cv2.resize(pixels, None, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    ours = prepare(image, rule).pixels.permute(1, 2, 0).numpy()
    assert ours.shape == wanted.shape
    assert np.abs(ours - wanted).max() < 0.1


def test_pixels_by_hand() -> None:
    """Two pixels to four: at −¼, ¼, ¾ and 1¼ of the way; the edges repeat."""
    image = Image.fromarray(np.uint8([[[0, 0, 100], [0, 0, 200]]]))
    rule = Preprocessing(
        resize="opencv", short_side=2, colours="BGR", scale=1.0, mean=(10.0, 0, 0), std=(1.0, 1.0, 1.0)
    )
    pixels = prepare(image, rule).pixels
    assert pixels.shape == (3, 2, 4)
    assert pixels[0].tolist() == [[90.0, 115.0, 165.0, 190.0]] * 2
    assert pixels[1:].abs().max() == 0


SPECS = ["bottom_up_attention_36", "bottom_up_attention_10_100", "py_bottom_up_attention_36"]


@pytest.mark.parametrize("name", SPECS)
def test_specs_describe_the_whole_network(name: str) -> None:
    file: DetectorFile = detector_file(name)
    assert set(file.weights) == {"weights", "classes", "attributes"}
    assert file.import_only is None
    with torch.device("meta"):
        whole = network(file.spec().model_copy(update={"attributes": tuple("x" * 400)}), 1600)
    shapes = {n: tuple(t.shape) for n, t in whole.state_dict().items()}
    assert shapes["backbone.res4.22.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["head.res5.2.conv3.norm.running_var"] == (2048,)
    assert shapes["head.embedding.weight"] == (1601, 256)
    assert shapes["head.hidden.weight"] == (512, 2304)
    assert shapes["head.attributes.weight"] == (401, 512)
    # ResNet-101 without its fc, folded, has 42.4 M; then RPN, boxes, classes, attributes.
    assert sum(p.numel() for p in whole.parameters()) == pytest.approx(65.3e6, rel=2e-3)


def test_wrong_specs_and_training_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"layer fc7, dim 64: this architecture's features are res5_pool, of 64 numbers"
    ):
        network(small_spec(layer="fc7"), 5)
    with pytest.raises(UserError, match=r"dim 2048: .* of 64 numbers"):
        network(small_spec(dim=2048), 5)
    with pytest.raises(UserError, match="is not trained here: use its published weights"):
        network(small_spec(), 5)(torch.zeros(1, 3, 8, 8))
    bare = small_spec(attributes=())
    assert detected(detector(bare, CLASSES, random_weights(bare), "cpu"), picture(0, 64, 64)).attributes is None
    assert len(ATTRIBUTES) == 3
