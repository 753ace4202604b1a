"""A small Faster R-CNN of torchvision's RPN and RoI heads over a plain CNN, with an attribute head.

torchvision's own batched inference makes an image's features depend on its neighbours (padding) and on the first image
a process saw (`MultiScaleRoIAlign` keeps the scales of its first input); here they are functions of the image alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad, relu, softmax
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align

from vbert.regions.architectures import PlainCnn
from vbert.regions.detector import Candidates, DetectorSpec, Prepared, Seen
from vbert.regions.pixels import padded_size, prepare, stacked, target_size

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


class FloatRpnHead(RPNHead):  # type: ignore[misc]
    """Under autocast its outputs come back in fp32: box coordinates in bf16 would be off by half a pixel."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class StableRpn(RegionProposalNetwork):  # type: ignore[misc]
    """Equal scores in the order of their anchors; torch's `topk` promises none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.anchors: dict[tuple[int, int], tuple[Tensor, ...]] = {}  # of the last input size, by map

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        kept, offset = [], 0
        for scores in torch.split(objectness, num_anchors_per_level, 1):
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.pre_nms_top_n()]
            kept.append(best + offset)
            offset += scores.shape[1]
        return torch.cat(kept, dim=1)

    def propose(self, pixels: Tensor, maps: dict[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """What `forward` proposes in evaluation, image by image; of the anchors only the best are decoded.

        pixels [B, 3, H, W] are padded, sizes are the (h, w) that the first of them were padded from.
        """
        logits, deltas = self.head(list(maps.values()))
        grid = (pixels.shape[2], pixels.shape[3])
        if grid not in self.anchors:
            whole = self.anchor_generator(ImageList(pixels[:1], [grid]), list(maps.values()))[0]
            self.anchors = {grid: torch.split(whole, [each[0].numel() for each in logits])}
        proposals = []
        for i, size in enumerate(sizes):
            best, boxes, levels = [], [], []
            for level, anchors in enumerate(self.anchors[grid]):
                scores = logits[level][i].permute(1, 2, 0).reshape(-1)
                scores, at = (t[: self.pre_nms_top_n()] for t in scores.sort(descending=True, stable=True))
                moves = deltas[level][i].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
                boxes.append(self.box_coder.decode_single(moves[at], anchors[at]))
                best.append(scores)
                levels.append(torch.full_like(at, level))
            found = clip_boxes_to_image(torch.cat(boxes), size)
            large = remove_small_boxes(found, self.min_size)
            found = found[large]
            kept = batched_nms(found, torch.cat(best)[large].sigmoid(), torch.cat(levels)[large], self.nms_thresh)
            proposals.append(found[kept[: self.post_nms_top_n()]])
        return proposals


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


class AttributeRoiHeads(RoIHeads):  # type: ignore[misc]
    """RoI heads whose training also teaches `attributes`, a linear layer on fc7, on the boxes sampled as objects.

    Targets are distributions over the attributes (a box with two gives each one half); a box without any teaches none.
    """

    def __init__(self, *args: Any, attributes: nn.Linear | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attributes = attributes

    def losses(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(maps, proposals, shapes).flatten(1)
        # Always as many rows: for each new size of a matrix product oneDNN compiles and keeps another kernel.
        rows, count = len(pooled), len(targets) * self.fg_bg_sampler.batch_size_per_image
        features = self.box_head(pad(pooled, (0, 0, 0, count - rows)))
        logits, deltas = (each[:rows].float() for each in self.box_predictor(features))
        classification, boxes = fastrcnn_loss(logits, deltas, labels, regression)
        losses = {"classes": classification, "boxes": boxes}
        if self.attributes is not None:
            none = features.new_zeros(1, self.attributes.out_features, dtype=torch.float32)
            known = [t["attributes"] if len(t["boxes"]) else none for t in targets]
            wanted = torch.cat([each[m] for each, m in zip(known, matched, strict=True)])
            taught = (torch.cat(labels) > 0) & (wanted.sum(1) > 0)
            scores = self.attributes(features)[:rows].float()
            total = cross_entropy(scores[taught], wanted[taught], reduction="sum")
            losses["attributes"] = total / taught.sum().clamp(min=1)
        return losses


class FasterRcnn(nn.Module):
    """Backbone, RPN and RoI heads; in training mode its forward gives losses."""

    def __init__(self, settings: PlainCnn, classes: int, attributes: int) -> None:
        super().__init__()
        self.settings = settings
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

    def forward(
        self, pixels: Tensor, shapes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses. pixels [B, 3, H, W], padded below and to the right; shapes: each image's (h, w); targets: boxes
        float32 [n, 4], labels int64 [n] from 1, attributes float32 [n, A]."""
        maps = self.backbone(padded(pixels))
        proposals, rpn = self.rpn(ImageList(pixels, shapes), maps, targets)
        roi = self.roi_heads.losses(maps, proposals, shapes, targets)
        return {"objectness": rpn["loss_objectness"], "rpn_boxes": rpn["loss_rpn_box_reg"], **roi}


def padded(pixels: Tensor) -> Tensor:
    """Zeros below and to the right, up to multiples of the coarsest stride."""
    height, width = pixels.shape[-2:]
    return pad(pixels, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))


class PlainDetector:
    """See `vbert.regions.detector.Detector`."""

    def __init__(self, spec: DetectorSpec, classes: Sequence[str], network: FasterRcnn, device: str) -> None:
        self.spec, self.device = spec, device
        self.classes: Sequence[str] = classes
        self.attributes: Sequence[str] = spec.attributes
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)

    def prepare(self, image: Image.Image) -> Prepared:
        return prepare(image, self.spec.preprocessing)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return padded_size(*target_size(width, height, self.spec.preprocessing), STRIDES[-1])

    @torch.inference_mode()
    def look(self, batch: Sequence[Prepared], slots: int = 1) -> Seen:
        pixels = stacked(batch, slots, STRIDES[-1], self.device)
        return Seen(batch, (pixels, self.network.backbone(pixels)))

    @torch.inference_mode()
    def detect(self, seen: Seen) -> list[Candidates]:
        pixels, maps = seen.maps
        sizes = [(p.pixels.shape[1], p.pixels.shape[2]) for p in seen.inputs]
        proposals = self.network.rpn.propose(pixels, maps, sizes)
        whole = [torch.tensor([[0.0, 0.0, width, height]], device=self.device) for height, width in sizes]
        mine = [found if len(found) else all_of_it for found, all_of_it in zip(proposals, whole, strict=True)]
        return self._candidates(maps, seen.inputs, mine)

    @torch.inference_mode()
    def describe(self, seen: Seen, boxes: Sequence[Tensor]) -> list[Candidates]:
        inputs = [b.to(self.device) * self._scale(p) for b, p in zip(boxes, seen.inputs, strict=True)]
        return self._candidates(seen.maps[1], seen.inputs, inputs)

    def _scale(self, prepared: Prepared) -> Tensor:
        return torch.tensor(prepared.scale * 2, device=self.device)

    def _candidates(
        self, maps: dict[str, Tensor], batch: Sequence[Prepared], boxes: Sequence[Tensor]
    ) -> list[Candidates]:
        out = []
        for i, (prepared, mine) in enumerate(zip(batch, boxes, strict=True)):
            height, width = prepared.pixels.shape[1:]
            one = {name: each[i : i + 1] for name, each in maps.items()}
            logits, deltas, features, attributes = self._box_head(one, mine)
            decoded = self.network.roi_heads.box_coder.decode(deltas, [mine]).reshape(
                len(mine), len(self.classes) + 1, 4
            )
            regressed = clip_boxes_to_image(decoded, (height, width))
            scale = self._scale(prepared)
            out.append(
                Candidates(
                    boxes=mine / scale,
                    scores=softmax(logits, 1)[:, 1:],
                    regressed=regressed[:, 1:] / scale,
                    features=features,
                    attributes=None if attributes is None else softmax(attributes, 1),
                )
            )
        return out

    def _box_head(self, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Class logits, box deltas, features and attribute logits of each box, always computed on `proposals` rows:
        a row's bits depend on how many there are in a matrix product, not on what the others hold."""
        heads, rows = self.network.roi_heads, self.network.settings.proposals
        parts = []
        for chunk in torch.split(boxes, rows):
            filled = pad(chunk, (0, 0, 0, rows - len(chunk)))
            pooled = heads.box_roi_pool(maps, [filled], None).flatten(1)
            fc6 = relu(heads.box_head.fc6(pooled))
            fc7 = relu(heads.box_head.fc7(fc6))
            logits, deltas = heads.box_predictor(fc7)
            out = [logits, deltas, fc6 if self.spec.layer == "fc6" else fc7]
            if heads.attributes is not None:
                out.append(heads.attributes(fc7))
            parts.append([t[: len(chunk)].float() for t in out])
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return columns[0], columns[1], columns[2], columns[3] if heads.attributes is not None else None


def network(spec: DetectorSpec, classes: int) -> FasterRcnn:
    """An untrained network, its weights drawn from torch's generator."""
    assert isinstance(spec.architecture, PlainCnn)
    return FasterRcnn(spec.architecture, classes, len(spec.attributes))


def detector(spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str) -> PlainDetector:
    """The detector of `spec` with the weights `tensors`."""
    with torch.random.fork_rng(devices=[]):
        whole = network(spec, len(classes))
    whole.load_state_dict(dict(tensors))
    whole.eval()
    for block in [m for m in whole.modules() if isinstance(m, nn.Sequential) and len(m) == 3]:
        if isinstance(block[0], nn.Conv2d) and isinstance(block[1], nn.BatchNorm2d):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    return PlainDetector(spec, classes, whole, device)
