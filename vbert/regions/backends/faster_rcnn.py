"""Shared by the Faster R-CNNs of torchvision's parts: an RPN with ordered ties, an attribute head, and inference.

torchvision's own batched inference makes an image's features depend on its neighbours (padding) and on the first image
a process saw (`MultiScaleRoIAlign` keeps the scales of its first input); here they are functions of the image alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    pad,
    relu,
    smooth_l1_loss,
    softmax,
)
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FrozenBatchNorm2d

from vbert.regions.backends.box_head import candidates, padded_rows
from vbert.regions.backends.proposals import ProposalRule, proposals
from vbert.regions.candidates import Candidates
from vbert.regions.detector import DetectorInput, DetectorSpec, FeatureMaps
from vbert.regions.pixels import padded_size, prepare, scales_of, stacked, target_size
from vbert.regions.suppression import best

SMOOTH = 1 / 9  # beta of the box losses, torchvision's


def shares(taken: Sequence[Tensor]) -> Tensor:
    """bool [n] (taken) of each image → float [N] over all images: 1 / number taken in its image where taken, else 0.

    A loss weighted by it is the sum over images of each image's mean. torchvision's is a mean over all samples of a
    batch, whose number is known only after all parts of the batch; where every image has the full number of samples,
    as is usual, both are equal.
    """
    return torch.cat([each / each.sum().clamp(min=1) for each in taken])


class FloatRpnHead(RPNHead):  # type: ignore[misc]
    """Gives fp32 outputs under autocast: box coordinates in bf16 would be off by half a pixel."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class StableRpn(RegionProposalNetwork):  # type: ignore[misc]
    """Orders equal scores by their anchors; torch's `topk` promises no order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.anchors: dict[tuple[int, int], tuple[Tensor, ...]] = {}  # of the last input size, by map

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        kept, offset = [], 0
        for scores in torch.split(objectness, num_anchors_per_level, 1):
            kept.append(best(scores, self.pre_nms_top_n()) + offset)
            offset += scores.shape[1]
        return torch.cat(kept, dim=1)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(objectness, boxes) as torchvision's, each the sum over images of the mean over an image's samples."""
        positive, negative = self.fg_bg_sampler(labels)
        share = shares([(one | other).bool() for one, other in zip(positive, negative, strict=True)])
        inside, taken = torch.cat(positive).nonzero()[:, 0], share.nonzero()[:, 0]
        moves = smooth_l1_loss(
            pred_bbox_deltas[inside], torch.cat(regression_targets)[inside], beta=SMOOTH, reduction="none"
        )
        objectness_loss = binary_cross_entropy_with_logits(
            objectness.flatten()[taken], torch.cat(labels)[taken].to(objectness.dtype), share[taken], reduction="sum"
        )
        return objectness_loss, (moves.sum(1) * share[inside]).sum()

    def propose(self, pixels: Tensor, maps: dict[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The proposals of `forward` in evaluation (of equal scores the first); the whole image where there are none.

        pixels [B, 3, H, W] are padded, sizes are the (h, w) that the first of them were padded from.
        """
        logits, deltas = self.head(list(maps.values()))
        grid = (pixels.shape[2], pixels.shape[3])
        if grid not in self.anchors:
            whole = self.anchor_generator(ImageList(pixels[:1], [grid]), list(maps.values()))[0]
            self.anchors = {grid: torch.split(whole, [each[0].numel() for each in logits])}
        choice = ProposalRule(
            self.box_coder.decode_single,
            torch.sigmoid,
            lambda _, boxes, scores: (
                (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1) & (scores >= self.score_thresh)
            ),
            self.pre_nms_top_n(),
            self.post_nms_top_n(),
            self.nms_thresh,
        )
        return proposals(logits, deltas, self.anchors[grid], sizes, choice)


class AttributeRoiHeads(RoIHeads):  # type: ignore[misc]
    """RoI heads whose training also teaches `attributes`, a linear layer on fc7, on the boxes sampled as objects.

    Targets are distributions over the attributes (a box with two gives each one half); a box without any teaches none.
    `fill`: pads the box head's rows with zeros to a constant number; not for a head whose norms learn from its rows.
    """

    def __init__(self, *args: Any, attributes: nn.Linear | None, fill: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attributes, self.fill = attributes, fill

    def losses(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Each the sum over images of the mean over an image's samples."""
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(maps, proposals, shapes)
        # A constant number of rows: oneDNN compiles and keeps a kernel for each size of a matrix product.
        rows, count = len(pooled), len(targets) * self.fg_bg_sampler.batch_size_per_image
        features = self.box_head(padded_rows(pooled, count) if self.fill else pooled)
        logits, deltas = (each[:rows].float() for each in self.box_predictor(features))
        share, wanted = shares([torch.ones_like(each, dtype=torch.bool) for each in labels]), torch.cat(labels)
        inside = wanted.nonzero()[:, 0]
        moves = deltas.view(rows, -1, 4)[inside, wanted[inside]]
        moved = smooth_l1_loss(moves, torch.cat(list(regression))[inside], beta=SMOOTH, reduction="none")
        losses = {
            "classes": (cross_entropy(logits, wanted, reduction="none") * share).sum(),
            "boxes": (moved.sum(1) * share[inside]).sum(),
        }
        if self.attributes is not None:
            none = features.new_zeros(1, self.attributes.out_features, dtype=torch.float32)
            known = [t["attributes"] if len(t["boxes"]) else none for t in targets]
            named = [each[m] for each, m in zip(known, matched, strict=True)]
            share = shares([(one > 0) & (each.sum(1) > 0) for one, each in zip(labels, named, strict=True)])
            taught = share.nonzero()[:, 0]
            scores = self.attributes(features)[:rows].float()
            each_one = cross_entropy(scores[taught], torch.cat(named)[taught], reduction="none")
            losses["attributes"] = (each_one * share[taught]).sum()
        return losses


class FasterRcnn(nn.Module):
    """Backbone, RPN and RoI heads by torchvision's names; in training mode its forward gives losses.

    Inputs are padded to multiples of `stride`; the box head works on `rows` boxes at once, always.
    """

    backbone: nn.Module
    rpn: StableRpn
    roi_heads: AttributeRoiHeads

    def __init__(self, stride: int, rows: int) -> None:
        super().__init__()
        self.stride, self.rows = stride, rows

    def forward(
        self, pixels: Tensor, shapes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses, summed over the images. pixels [B, 3, H, W], padded below and to the right; shapes: each image's
        (h, w); targets: boxes float32 [n, 4], labels int64 [n] from 1, attributes float32 [n, A]."""
        pixels = self.padded(pixels)
        maps = self.backbone(pixels)
        proposals, rpn = self.rpn(ImageList(pixels, shapes), maps, targets)
        roi = self.roi_heads.losses(maps, proposals, shapes, targets)
        return {"objectness": rpn["loss_objectness"], "rpn_boxes": rpn["loss_rpn_box_reg"], **roi}

    def padded(self, pixels: Tensor) -> Tensor:
        """Zeros below and to the right, up to multiples of the coarsest stride."""
        height, width = pixels.shape[-2:]
        return pad(pixels, (0, -width % self.stride, 0, -height % self.stride))

    def pooled_from(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps that boxes are pooled from in evaluation."""
        return maps

    def layers(self, pooled: Tensor) -> dict[str, Tensor]:
        """The box head's layers by name, for pooled boxes [n, C, side, side]; the last feeds `predict`."""
        head = self.roi_heads.box_head
        fc6 = relu(head.fc6(pooled.flatten(1)))
        return {"fc6": fc6, "fc7": relu(head.fc7(fc6))}

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [n, 1 + C] and box deltas [n, (1 + C) · 4] of the box head's last layer."""
        logits, deltas = self.roi_heads.box_predictor(features)
        return logits, deltas


class FasterRcnnDetector:
    """See `vbert.regions.detector.Detector`."""

    smallest = 0.0  # side in pixels of the input below which a detection's score is 0

    def __init__(self, spec: DetectorSpec, classes: Sequence[str], network: FasterRcnn, device: str) -> None:
        self.spec, self.device = spec, device
        self.together = device != "cpu"  # boxes of all images are pooled at once
        self.classes: Sequence[str] = classes
        self.attributes: Sequence[str] = spec.attributes
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)

    def prepare(self, image: Image.Image) -> DetectorInput:
        return prepare(image, self.spec.preprocessing)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return padded_size(*target_size(width, height, self.spec.preprocessing), self.network.stride)

    @torch.inference_mode()
    def backbone(self, batch: Sequence[DetectorInput], slots: int = 1) -> FeatureMaps:
        pixels = stacked(batch, slots, self.network.stride, self.device)
        return FeatureMaps(batch, (pixels, self.network.backbone(pixels)))

    @torch.inference_mode()
    def detect(self, feature_maps: FeatureMaps) -> list[Candidates]:
        pixels, maps = feature_maps.maps
        sizes = [(p.pixels.shape[1], p.pixels.shape[2]) for p in feature_maps.inputs]
        return self._candidates(maps, feature_maps.inputs, self.network.rpn.propose(pixels, maps, sizes), self.smallest)

    @torch.inference_mode()
    def roi_features(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Candidates]:
        scales = scales_of(feature_maps.inputs, self.device)
        inputs = [b.to(self.device) * scale for b, scale in zip(boxes, scales, strict=True)]
        return self._candidates(feature_maps.maps[1], feature_maps.inputs, inputs)

    def _candidates(
        self, maps: dict[str, Tensor], batch: Sequence[DetectorInput], boxes: Sequence[Tensor], smallest: float = 0.0
    ) -> list[Candidates]:
        logits, deltas, features, attributes = self._box_head(maps, boxes)
        regressed = self.network.roi_heads.box_coder.decode(deltas, [torch.cat(list(boxes))])
        regressed = regressed.view(-1, len(self.classes) + 1, 4)[:, 1:]
        probabilities = None if attributes is None else softmax(attributes, 1)
        return candidates(batch, boxes, softmax(logits, 1)[:, 1:], regressed, features, probabilities, smallest)

    def _box_head(
        self, maps: dict[str, Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Class logits, box deltas, features and attribute logits of all images' boxes, always computed on `rows`
        rows."""
        heads, rows = self.network.roi_heads, self.network.rows
        maps = self.network.pooled_from({name: each[: len(boxes)] for name, each in maps.items()})
        parts = []
        for pooled in self._pooled(maps, boxes):
            for chunk in torch.split(pooled, rows):
                layers = self.network.layers(padded_rows(chunk, rows))
                last = list(layers.values())[-1]
                out = [*self.network.predict(last), layers[self.spec.layer]]
                if heads.attributes is not None:
                    out.append(heads.attributes(last))
                parts.append([t[: len(chunk)].float() for t in out])
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return columns[0], columns[1], columns[2], columns[3] if heads.attributes is not None else None

    def _pooled(self, maps: dict[str, Tensor], boxes: Sequence[Tensor]) -> Iterator[Tensor]:
        """[n, C, side, side] of boxes in their order, never those of two images in one tensor."""
        pool, rows = self.network.roi_heads.box_roi_pool, self.network.rows
        if self.together:
            yield from torch.split(pool(maps, list(boxes), None), [len(mine) for mine in boxes])
            return
        for i, mine in enumerate(boxes):
            one = {name: each[i : i + 1] for name, each in maps.items()}
            yield from (pool(one, [chunk], None) for chunk in torch.split(mine, rows))


def folded(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, every norm folded into the convolution before it: exact but for rounding.

    A norm's convolution is its sibling registered just before it, as in all of torchvision's blocks. Raises TypeError
    for a norm with none.
    """
    network.eval()
    for block in list(network.modules()):
        before: nn.Module | None = None
        for name, child in block.named_children():
            if isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d):
                if not isinstance(before, nn.Conv2d):
                    raise TypeError(f"norm {name!r} of a {type(block).__name__} follows no convolution")
                moments: Any = (child.running_mean, child.running_var, child.eps, child.weight, child.bias)
                before.weight, before.bias = fuse_conv_bn_weights(before.weight, before.bias, *moments)
                setattr(block, name, nn.Identity())
            before = child
    return network
