"""torchvision's Faster R-CNNs with a feature pyramid: its own modules by its own names, so that its weights load, run
so that everything about an image is a function of that image alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from vbert.errors import UserError
from vbert.regions.architectures import TorchvisionFasterRcnn
from vbert.regions.backends.faster_rcnn import (
    AttributeRoiHeads,
    FasterRcnn,
    FasterRcnnDetector,
    StableRpn,
    folded,
)
from vbert.regions.detector import DetectorSpec

V2 = "fasterrcnn_resnet50_fpn_v2"
MOBILE = "fasterrcnn_mobilenet_v3_large_fpn"
SIZES = (32, 64, 128, 256, 512)  # sides of anchors in pixels of the input
RATIOS = (0.5, 1.0, 2.0)
WIDTH, POOLED, HIDDEN = 256, 7, 1024  # channels of the pyramid, side of a pooled box, width of the fully connected
DIVISOR = 32  # inputs are padded to its multiples (GeneralizedRCNNTransform)


class FpnRpnHead(RPNHead):  # type: ignore[misc]
    """torchvision's, its two outputs in fp32: box coordinates in bf16 would be off by pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for each in x:
            hidden = self.conv(each)
            with torch.autocast(each.device.type, enabled=False):
                logits.append(self.cls_logits(hidden.float()))
                deltas.append(self.bbox_pred(hidden.float()))
        return logits, deltas


class FixedRoiAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """torchvision's, with the maps' strides given: its own are guessed from the first image it sees, and kept."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__([str(i) for i in range(len(strides))], POOLED, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))


class FpnFasterRcnn(FasterRcnn):
    """The network of one of the three kinds, with an attribute head where there are attributes."""

    def __init__(self, settings: TorchvisionFasterRcnn, classes: int, attributes: int) -> None:
        super().__init__(DIVISOR, settings.rows)
        self.backbone = _backbone(settings)
        v2, mobile = settings.kind == V2, settings.kind == MOBILE
        sizes = (SIZES,) * 3 if mobile else tuple((side,) for side in SIZES)
        self.rpn = StableRpn(
            AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            FpnRpnHead(WIDTH, len(sizes[0]) * len(RATIOS), conv_depth=2 if v2 else 1),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * settings.before_nms, "testing": settings.before_nms},
            post_nms_top_n={"training": 2 * settings.proposals, "testing": settings.proposals},
            nms_thresh=settings.rpn_iou,
            score_thresh=settings.rpn_score,
        )
        self.roi_heads = AttributeRoiHeads(
            FixedRoiAlign((32, 32) if mobile else (4, 8, 16, 32)),
            FastRCNNConvFCHead((WIDTH, POOLED, POOLED), [WIDTH] * 4, [HIDDEN], norm_layer=_norm(settings))
            if v2
            else TwoMLPHead(WIDTH * POOLED**2, HIDDEN),
            FastRCNNPredictor(HIDDEN, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=settings.taught,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.0,
            nms_thresh=0.5,
            detections_per_img=100,
            attributes=nn.Linear(HIDDEN, attributes) if attributes else None,
            fill=not v2,
        )
        self.v2 = v2

    def pooled_from(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps in fp32 and channels-last, converted once an image: RoIAlign would convert them for each chunk of
        boxes."""
        return {name: each.float().contiguous() for name, each in maps.items()}

    def layers(self, pooled: Tensor) -> dict[str, Tensor]:
        return {"fc6": self.roi_heads.box_head(pooled)} if self.v2 else super().layers(pooled)

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            return super().predict(features.float())


def _norm(settings: TorchvisionFasterRcnn) -> Any:
    return partial(FrozenBatchNorm2d if settings.norm == "frozen" else nn.BatchNorm2d, eps=settings.epsilon)


def _backbone(settings: TorchvisionFasterRcnn) -> nn.Module:
    norm = _norm(settings)
    if settings.kind == MOBILE:
        mobile: nn.Module = mobilenet_backbone(
            backbone_name="mobilenet_v3_large",
            weights=None,
            fpn=True,
            norm_layer=norm,
            trainable_layers=settings.trained,
        )
        return mobile
    body = resnet50(norm_layer=norm)
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][: settings.trained]
    for name, parameter in body.named_parameters():
        learns = name.partition(".")[0] in stages or (settings.trained >= 5 and name.startswith("bn1"))
        parameter.requires_grad_(learns)
    names = {f"layer{i + 1}": str(i) for i in range(4)}
    whole: nn.Module = BackboneWithFPN(
        body, names, [WIDTH * 2**i for i in range(4)], WIDTH, norm_layer=norm if settings.kind == V2 else None
    )
    return whole


class FpnDetector(FasterRcnnDetector):
    """See `vbert.regions.detector.Detector`."""

    smallest = 1e-2  # RoIHeads.postprocess_detections: boxes regressed to nothing (beyond the border) don't count


def network(spec: DetectorSpec, classes: int) -> FpnFasterRcnn:
    """An untrained network, its weights drawn from torch's generator. Raises UserError for a layer it doesn't have."""
    assert isinstance(spec.architecture, TorchvisionFasterRcnn)
    layers = ("fc6",) if spec.architecture.kind == V2 else ("fc6", "fc7")
    if spec.layer not in layers or spec.dim != HIDDEN:
        raise UserError(
            f"detector {spec.name}: {spec.architecture.kind} has the layers {', '.join(layers)} of dim {HIDDEN}, not "
            f"{spec.layer} of dim {spec.dim}; mend layer and dim in its spec"
        )
    return FpnFasterRcnn(spec.architecture, classes, len(spec.attributes))


def detector(spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str) -> FpnDetector:
    """The detector of `spec` with the weights `tensors`."""
    with torch.random.fork_rng(devices=[]):
        whole = network(spec, len(classes))
    whole.load_state_dict(dict(tensors))
    folded(whole)
    return FpnDetector(spec, classes, whole, device)
