"""A small Faster R-CNN of torchvision's RPN and RoI heads over a plain CNN, with an attribute head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import roi_align

from vbert.regions.architectures import PlainCnn
from vbert.regions.backends.faster_rcnn import (
    AttributeRoiHeads,
    FasterRcnn,
    FasterRcnnDetector,
    FloatRpnHead,
    StableRpn,
    folded,
)
from vbert.regions.detector import DetectorSpec

STRIDES = (4, 8)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class PlainBackbone(nn.Module):
    """[B, 3, H, W], H and W multiples of 8, to maps "0" and "1" of equal width at strides 4 and 8.

    The finer map has the coarser one added, upsampled, as in a feature pyramid.
    """

    def __init__(self, settings: PlainCnn) -> None:
        super().__init__()
        c2, c4, c8 = settings.channels
        self.out_channels = c4
        self.fine = nn.Sequential(
            _convolution(3, c2, 2), _convolution(c2, c4, 2), *(_convolution(c4, c4) for _ in range(settings.depth[0]))
        )
        self.coarse = nn.Sequential(
            _convolution(c4, c8, 2), *(_convolution(c8, c8) for _ in range(settings.depth[1] - 1))
        )
        self.lateral = nn.Conv2d(c8, c4, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        fine = self.fine(pixels)
        coarse = self.lateral(self.coarse(fine))
        return {"0": fine + interpolate(coarse, scale_factor=2.0, mode="nearest"), "1": coarse}


class RoiPool(nn.Module):
    """RoIAlign from the map at stride 4: boxes [n, 4] an image to [N, C, side, side]."""

    def __init__(self, side: int, samples: int) -> None:
        super().__init__()
        self.side, self.samples = side, samples

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], _shapes: Any) -> Tensor:
        pooled: Tensor = roi_align(
            maps["0"].float(), boxes, self.side, spatial_scale=1 / STRIDES[0], sampling_ratio=self.samples
        )
        return pooled


class PlainFasterRcnn(FasterRcnn):
    """Faster R-CNN over `PlainBackbone`."""

    def __init__(self, settings: PlainCnn, classes: int, attributes: int) -> None:
        super().__init__(STRIDES[-1], settings.proposals)
        self.backbone = PlainBackbone(settings)
        width = self.backbone.out_channels
        anchors = AnchorGenerator(settings.anchors, (settings.ratios,) * len(settings.anchors))
        self.rpn = StableRpn(
            anchors,
            FloatRpnHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=64,
            positive_fraction=0.5,
            pre_nms_top_n={"training": settings.before_nms, "testing": settings.before_nms},
            post_nms_top_n={"training": settings.proposals, "testing": settings.proposals},
            nms_thresh=settings.rpn_iou,
        )
        self.roi_heads = AttributeRoiHeads(
            RoiPool(settings.pooled, settings.samples),
            TwoMLPHead(width * settings.pooled**2, settings.hidden),
            FastRCNNPredictor(settings.hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=32,
            positive_fraction=0.5,
            bbox_reg_weights=None,
            score_thresh=0.0,
            nms_thresh=0.5,
            detections_per_img=settings.proposals,
            attributes=nn.Linear(settings.hidden, attributes) if attributes else None,
        )


def network(spec: DetectorSpec, classes: int) -> PlainFasterRcnn:
    """An untrained network, its weights drawn from torch's generator."""
    assert isinstance(spec.architecture, PlainCnn)
    return PlainFasterRcnn(spec.architecture, classes, len(spec.attributes))


def detector(
    spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str
) -> FasterRcnnDetector:
    """The detector of `spec` with the weights `tensors`."""
    with torch.random.fork_rng(devices=[]):
        whole = network(spec, len(classes))
    whole.load_state_dict(dict(tensors))
    folded(whole)
    return FasterRcnnDetector(spec, classes, whole, device)
