"""The detectron2 backend, beside detectron2 itself on the same weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from regions.detectron2_reference import (
    COCO,
    NEEDED,
    PHOTOS,
    drawn,
    extracted,
    features_at,
    narrow,
    narrow_c4,
    photos,
    raw,
    read,
)
from regions.detectron2_reference import spec_of as shipped
from regions.detectron2_training import trained
from regions.regions_tiny import picture
from safetensors.torch import save_file
from torch import Tensor

from vbert.errors import UserError
from vbert.metrics.detection import iou
from vbert.regions.backends import detectron2 as backend
from vbert.regions.boxes import Adaptive, Detections, Nms, select
from vbert.regions.candidates import Candidates
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import Detector, DetectorSpec, detector_file, detector_names
from vbert.regions.pixels import target_size

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [name for name in detector_names() if name.startswith("detectron2_")]
R50 = "detectron2_faster_rcnn_R_50_FPN_3x"
RULE, NMS = Adaptive(minimum=0, maximum=100, score=0.05), Nms(iou=0.5)  # detectron2's own


def ours(spec: DetectorSpec, tensors: dict[str, Tensor]) -> Detector:
    assert spec.classes is not None
    return backend.detector(spec, spec.classes, tensors, "cpu")


def detected(detector: Detector, image: Image.Image) -> Candidates:
    return detector.detect(detector.backbone([detector.prepare(image)]))[0]


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two rows, relative to the second's norm."""
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


class TestBesideDetectron2:
    pytestmark = NEEDED

    @pytest.mark.parametrize("name", NAMES)
    def test_the_spec_is_its_configuration(self, name: str) -> None:
        file = detector_file(name)
        config = backend.configuration(file.spec(), 80)
        rule = file.preprocessing
        assert (rule.colours, rule.resize) == (config.INPUT.FORMAT, "pillow")
        assert (rule.short_side, rule.long_side) == (config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
        assert (list(rule.mean), list(rule.std)) == (config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD)
        assert (file.nms.rule, file.nms.iou) == ("per_class", config.MODEL.ROI_HEADS.NMS_THRESH_TEST)
        assert isinstance(file.boxes, Adaptive)
        assert (file.boxes.score, file.boxes.maximum) == (
            config.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            config.TEST.DETECTIONS_PER_IMAGE,
        )

    def test_classes_are_in_its_order(self) -> None:
        from detectron2.data import MetadataCatalog

        assert list(detector_file(R50).classes or ()) == MetadataCatalog.get("coco_2017_val").thing_classes

    def test_sizes_are_those_of_its_resizing(self) -> None:
        from detectron2.data.transforms import ResizeShortestEdge

        rng = np.random.default_rng(0)
        for short, long in [(800, 1333), (600, 1000), (333, 500)]:
            rule = Preprocessing(resize="pillow", short_side=short, long_side=long, rounding="nearest")
            for width, height in rng.integers(1, 3000, (3000, 2)).tolist():
                wanted = ResizeShortestEdge.get_output_shape(height, width, short, long)
                assert target_size(width, height, rule) == tuple(max(1, side) for side in reversed(wanted))

    @PHOTOS
    def test_pixels_of_a_file_are_its_own(self) -> None:
        spec = shipped(R50, 320)
        detector = ours(narrow(320), drawn(narrow()).state_dict())
        for path in sorted((COCO / "val2017").glob("*.jpg"))[:5]:
            found = detector.prepare(Image.open(path).convert("RGB")).pixels
            theirs = read(path, spec)["image"]
            assert torch.equal(found, theirs - torch.tensor(spec.preprocessing.mean).view(3, 1, 1))

    @PHOTOS
    @pytest.mark.parametrize(
        "spec",
        [
            pytest.param(narrow(200), id="fpn fc7"),
            pytest.param(narrow(200, layer="fc6"), id="fpn fc6"),
            pytest.param(narrow_c4(200), id="c4"),
            *(pytest.param(shipped(name, 200), id=name, marks=pytest.mark.slow) for name in NAMES),
            pytest.param(shipped(R50, 800), id="R50 at 800", marks=pytest.mark.slow),
        ],
    )
    def test_features_of_given_boxes_are_its_own(self, spec: DetectorSpec) -> None:
        model = drawn(spec)
        detector = ours(spec, model.state_dict())
        generator = torch.Generator().manual_seed(0)
        for image in photos(2):
            prepared = detector.prepare(image)
            height, width = prepared.pixels.shape[1:]
            corners = torch.rand(45, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
            boxes = torch.cat([corners.flatten(1), torch.tensor([[0.0, 0, width, height]])])
            theirs = features_at(model, spec, raw(prepared.pixels, spec.preprocessing), boxes)
            scale = torch.tensor(prepared.scale * 2)
            (found,) = detector.roi_features(detector.backbone([prepared]), [boxes / scale])
            assert apart(found.features, theirs) < 1e-4

    @PHOTOS
    def test_detections_of_untrained_weights_are_its_own(self) -> None:
        """A scaled classifier, so that there are boxes. End to end, from the same inputs."""
        spec = narrow(200)
        model = drawn(spec, classifier=0.7)
        detector = ours(spec, model.state_dict())
        for image in photos(3):
            prepared = detector.prepare(image)
            one = {"image": raw(prepared.pixels, spec.preprocessing), "height": image.height, "width": image.width}
            assert same_detections(detected(detector, image), *extracted(model, spec, one), least=20)

    def test_bits_of_a_box_do_not_depend_on_how_many_there_are(self) -> None:
        detector = ours(narrow(), drawn(narrow()).state_dict())
        seen = detector.backbone([detector.prepare(picture(6, 90, 70))])
        boxes = torch.rand(230, 4, generator=torch.Generator().manual_seed(0)) * 30
        boxes[:, 2:] += boxes[:, :2] + 1
        (all_of_them,) = detector.roi_features(seen, [boxes])
        for count in (1, 2, 5, 99, 100, 101, 229):
            (some,) = detector.roi_features(seen, [boxes[:count]])
            assert torch.equal(some.features, all_of_them.features[:count])
            (late,) = detector.roi_features(seen, [boxes[-count:]])
            assert torch.equal(late.features, all_of_them.features[-count:])
        (none,) = detector.roi_features(seen, [boxes[:0]])
        assert none.features.shape == (0, 128)
        assert none.regressed.shape == (0, 80, 4)

    @pytest.mark.parametrize("spec", [narrow(64), narrow_c4(64)], ids=["fpn", "c4"])
    def test_bits_of_an_image_know_nothing_of_the_images_before(self, spec: DetectorSpec) -> None:
        tensors = drawn(spec).state_dict()
        images = [picture(i, *size) for i, size in enumerate([(64, 64), (33, 90), (1, 1), (40, 8)])]
        shared = ours(spec, tensors)
        backwards = [detected(shared, image) for image in reversed(images)][::-1]
        for image, late in zip(images, backwards, strict=True):
            alone = detected(ours(spec, tensors), image)
            for field in ("boxes", "scores", "regressed", "features"):
                assert torch.equal(getattr(alone, field), getattr(late, field))
            assert (alone.boxes[:, 2] <= image.width + 1e-3).all()
            assert (alone.boxes[:, 3] <= image.height + 1e-3).all()

    def test_a_batch_of_equal_sizes_gives_each_images_own(self) -> None:
        spec = narrow()
        detector = ours(spec, drawn(spec, classifier=0.7).state_dict())
        images = [picture(i, 90, 70) for i in range(3)]
        together = detector.detect(detector.backbone([detector.prepare(image) for image in images]))
        for image, found in zip(images, together, strict=True):
            alone = detected(detector, image)
            assert torch.allclose(alone.boxes[:20], found.boxes[:20], atol=1e-3)
            assert apart(found.features[:20], alone.features[:20]) < 1e-4

    def test_box_heads_of_other_kinds(self) -> None:
        """Convolutions before the linear layers, boxes regressed for all classes at once, sigmoids for softmax."""
        changes = {
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
            "MODEL.RESNETS.NORM": "BN",
        }
        spec = narrow()
        spec = spec.model_copy(
            update={
                "architecture": spec.architecture.model_copy(update={"changes": spec.architecture.changes | changes})
            }  # type: ignore[union-attr]
        )
        model = drawn(spec, classifier=0.02)
        # Drawn batch norms leave maps so large that the RPN would shift anchors by up to 46 of their sizes (trained
        # ones: about 1) and clip them to slivers of 2e-5 px. A delta's rounding, 5e-5, then moves proposals by 0.005 px
        # and what is pooled from a sliver by 1e-4 of its norm, on any processor; of the same proposals it is 2e-6.
        model.proposal_generator.rpn_head.anchor_deltas.weight.data *= 0.03
        detector = ours(spec, model.state_dict())
        image = picture(0, 90, 70)
        prepared = detector.prepare(image)
        one = {"image": raw(prepared.pixels, spec.preprocessing), "height": 70, "width": 90}
        assert same_detections(detected(detector, image), *extracted(model, spec, one), least=20)

    @pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
    def test_published_weights_are_read_in_each_form(self, tmp_path: Path, ending: str) -> None:
        spec = narrow()
        wanted = drawn(spec).state_dict()
        file = written(
            tmp_path / f"model_final.{ending}", wanted | {MASK: torch.zeros(3), "pixel_mean": torch.zeros(3)}
        )
        found = backend.read_published(spec, {"weights": file})
        assert (found.classes, found.attributes) == (spec.classes, ())
        assert found.tensors.keys() == wanted.keys()
        assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)

    def test_other_weights_are_refused_by_name(self, tmp_path: Path) -> None:
        spec = narrow()
        tensors = drawn(spec).state_dict()
        last = "roi_heads.box_head.fc2.weight"
        stem = "backbone.bottom_up.stem.conv1.weight"
        other = {name: tensor for name, tensor in tensors.items() if name != last} | {"extra.weight": torch.zeros(1)}
        other[stem] = torch.zeros(64, 3, 7, 7)
        with pytest.raises(UserError) as refused:
            backend.read_published(spec, {"weights": written(tmp_path / "a.pth", other)})
        for said in (
            f"1 tensors missing ({last})",
            "1 tensors unexpected (extra.weight)",
            f"1 tensors of another shape ({stem} (64, 3, 7, 7) for (16, 3, 7, 7))",
        ):
            assert said in refused.value.message
        few = spec.model_copy(update={"classes": ("cat", "dog")})
        with pytest.raises(UserError, match=r"know 80 classes, the spec .* names 2; name them"):
            backend.read_published(few, {"weights": written(tmp_path / "b.pth", tensors)})
        with pytest.raises(UserError, match="not the weights of a detectron2 R-CNN"):
            backend.read_published(spec, {"weights": written(tmp_path / "c.pth", {"fc.weight": torch.zeros(1)})})

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, Any]:
                return Path.touch, (tmp_path / "ran",)

        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Hostile()}))
        torch.save({"model": Hostile()}, tmp_path / "evil.pth")
        for name in ("evil.pkl", "evil.pth"):
            with pytest.raises(UserError, match=name):
                backend.read_published(narrow(), {"weights": tmp_path / name})
        detectron1 = tmp_path / "d1.pkl"
        detectron1.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}, protocol=2))
        with pytest.raises(UserError, match="it holds blobs"):
            backend.read_published(narrow(), {"weights": detectron1})
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("fields", "changes", "config", "said"),
        [
            ({}, {"MODEL.RESNETS.DEPHT": 50}, None, "Non-existent key"),
            ({}, {}, "COCO-Detection/faster_rcnn_R_50_FPN_4x.yaml", "did you mean.*R_50_FPN_3x"),
            ({}, {}, "../../../setup.yaml", "has no config"),
            ({}, {}, "COCO-Detection/retinanet_R_50_FPN_3x.yaml", "retinanet_R_50_FPN_3x.yaml is not plain YAML"),
            ({}, {}, "COCO-Detection/rpn_R_50_FPN_1x.yaml", "META_ARCHITECTURE is 'ProposalNetwork'"),
            ({}, {}, "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml", "CascadeROIHeads"),
            ({"layer": "res5_pool"}, {}, None, "has fc6 and fc7, not res5_pool"),
            ({"dim": 2048}, {}, None, "its fc7 gives 1024 numbers a region, not 2048"),
            ({}, {"MODEL.ROI_BOX_HEAD.NUM_FC": 1}, None, "1 linear layers"),
        ],
    )
    def test_what_can_not_be_built_is_said(
        self, fields: dict[str, Any], changes: dict[str, Any], config: str | None, said: str
    ) -> None:
        spec = shipped(R50, 800, changes, **fields)
        if config is not None:
            spec = spec.model_copy(update={"architecture": spec.architecture.model_copy(update={"config": config})})
        with pytest.raises(UserError, match=said):
            backend.network(spec, 80)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@PHOTOS
class TestTrained:
    """On weights trained for a few hundred steps on the miniatures, which score as trained ones do."""

    pytestmark = NEEDED

    @pytest.fixture(scope="class")
    def spec(self) -> DetectorSpec:
        return narrow(160)

    @pytest.fixture(scope="class")
    def model(self, spec: DetectorSpec, request: pytest.FixtureRequest) -> Any:
        model = backend.network(spec, 80).eval()
        model.load_state_dict(trained(spec, 400, False, request.config.cache.mkdir("detectron2")))
        return model

    @pytest.fixture(scope="class")
    def detector(self, spec: DetectorSpec, model: Any) -> Detector:
        return ours(spec, model.state_dict())

    def test_from_ready_tensors_the_same_boxes(self, spec: DetectorSpec, model: Any, detector: Detector) -> None:
        for image in photos(50):
            prepared = detector.prepare(image)
            one = {"image": raw(prepared.pixels, spec.preprocessing), "height": image.height, "width": image.width}
            assert same_detections(detected(detector, image), *extracted(model, spec, one), least=20)

    def test_from_the_file_the_same_boxes(self, spec: DetectorSpec, model: Any, detector: Detector) -> None:
        from vbert.data.decode import decode

        for path in sorted((COCO / "val2017").glob("*.jpg")):
            theirs = extracted(model, spec, read(path, spec))
            assert same_detections(detected(detector, decode(path.read_bytes())), *theirs, least=20)


@pytest.mark.slow
@pytest.mark.timeout(5400)
@PHOTOS
class TestTrainedByHeart:
    """On weights whose scores and boxes are as far apart as those of a full training: half precision flips ties."""

    pytestmark = NEEDED

    def test_in_bf16_nearly_the_same_boxes(self, request: pytest.FixtureRequest) -> None:
        """Of what detectron2 keeps at 0.05, what is found at 0.03: a score just below the threshold is no other box."""
        spec = narrow(160)
        model = backend.network(spec, 80).eval()
        model.load_state_dict(trained(spec, 2500, True, request.config.cache.mkdir("detectron2")))
        detector = ours(spec, model.state_dict())
        total = near = 0
        cosines = []
        for path, image in zip(sorted((COCO / "val2017").glob("*.jpg")), photos(50), strict=True):
            theirs, features = extracted(model, spec, read(path, spec))
            with torch.autocast("cpu", torch.bfloat16):
                found = detected(detector, image)
            assert found.features.dtype == found.boxes.dtype == torch.float32
            kept = select(found, RULE.model_copy(update={"score": 0.03, "maximum": 300}), NMS)
            overlap = torch.from_numpy(iou(theirs.pred_boxes.tensor.numpy(), kept.boxes.numpy()))
            overlap[theirs.pred_classes[:, None] != kept.classes[None]] = 0
            best, at = overlap.max(1)
            total, near = total + len(best), near + int((best >= 0.9).sum())
            mine = found.features[kept.proposals][at][best >= 0.9]
            cosines.append(torch.cosine_similarity(mine, features[best >= 0.9]))
        similar = torch.cat(cosines)
        print(f"bf16: {near / total:.4f} of {total} boxes at IoU 0.9; cosine {similar.mean():.5f}, {similar.min():.4f}")
        assert total >= 500
        assert near >= 0.97 * total
        assert similar.min() >= 0.99


MASK = "roi_heads.mask_head.mask_fcn1.weight"  # what files of Mask R-CNNs hold beside a detector of boxes


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint as the world writes it."""
    if path.suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        held = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
        path.write_bytes(pickle.dumps(held))
    elif path.suffix == ".pth":
        torch.save({"model": tensors, "iteration": 7, "optimizer": {"state": {}, "param_groups": []}}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def same_detections(found: Candidates, theirs: Any, features: Tensor, least: int, pixels: float = 0.01) -> bool:
    """Whether the same boxes of the same classes are kept, with the same scores and features; `theirs` at least so
    many. Boxes whose scores tie to within rounding may change places."""
    kept = select(found, RULE, NMS)
    assert len(theirs) == len(features), "detectron2 dropped an empty box"
    assert len(theirs) >= least, f"{len(theirs)} boxes are too few to compare"
    assert len(kept.boxes) == len(theirs)
    at = matched(kept, theirs, pixels)
    assert torch.allclose(kept.scores, theirs.scores[at], atol=1e-4)
    return apart(found.features[kept.proposals], features[at]) < 1e-4


def matched(kept: Detections, theirs: Any, pixels: float) -> Tensor:
    far = (kept.boxes[:, None] - theirs.pred_boxes.tensor[None]).abs().amax(2)
    far[kept.classes[:, None] != theirs.pred_classes[None]] = 1e9
    nearest = far.min(1)
    assert nearest.values.max() < pixels
    assert len(nearest.indices.unique()) == len(kept.boxes)
    return nearest.indices
