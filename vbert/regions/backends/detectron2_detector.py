"""A detectron2 R-CNN at work: detectron2's numbers, at less cost.

Convolutions absorb their frozen batch norms and run channels-last; under autocast a bf16 copy of the heavy layers runs,
while layers of scores and coordinates stay in fp32; only the best anchors are decoded; on a CPU RoIAlign is that
of `roi_align.py`; the box head always sees the same number of rows, because a row's bits depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vbert.regions.backends.box_head import candidates, padded_rows
from vbert.regions.backends.proposals import ProposalRule, proposals
from vbert.regions.backends.roi_align import roi_align
from vbert.regions.candidates import Candidates
from vbert.regions.detector import DetectorInput, DetectorSpec, FeatureMaps
from vbert.regions.pixels import padded_size, prepare, scales_of, stacked, target_size

# Rows of the box head at once, always: on a GPU all proposals of an image, but for the convolutions of res5.
ROWS_ON_CPU, ROWS_ON_GPU, ROWS_OF_RES5_ON_GPU = 100, 1000, 250
POOLED_ON_CPU, POOLED_ON_GPU = 64 * 2**20, 2**30  # bytes pooled at once, unless ROWS or an image need more


class Detectron2Detector:
    """See `vbert.regions.detector.Detector`. `model`: a GeneralizedRCNN, which is changed."""

    def __init__(self, spec: DetectorSpec, classes: Sequence[str], model: Any, device: str) -> None:
        self.spec, self.device, self.kind = spec, device, torch.device(device).type
        self.together = self.kind != "cpu"  # boxes of several images are pooled at once
        self.classes: Sequence[str] = classes
        self.attributes: Sequence[str] = ()
        fold(model.eval())
        self.model: Any = model.to(device).to(memory_format=torch.channels_last)
        heads = self.model.roi_heads
        self.res5 = spec.layer == "res5_pool"
        self.pooler = heads.pooler if self.res5 else heads.box_pooler
        head = heads.res5 if self.res5 else heads.box_head
        if isinstance(head[0], nn.Flatten):
            _order_channels_last(head[1], self.pooler.output_size[0])
        rpn = self.model.proposal_generator
        heavy = {"backbone": self.model.backbone, "rpn": rpn.rpn_head.conv, "head": head}
        self.heavy = {torch.float32: nn.ModuleDict(heavy)}
        self.rows = ROWS_ON_CPU if self.kind == "cpu" else ROWS_OF_RES5_ON_GPU if self.res5 else ROWS_ON_GPU
        self.anchors: dict[tuple[tuple[int, ...], ...], list[Tensor]] = {}  # of the last maps' sizes

    def prepare(self, image: Image.Image) -> DetectorInput:
        return prepare(image, self.spec.preprocessing)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return padded_size(*target_size(width, height, self.spec.preprocessing), self._divisor)

    @property
    def _divisor(self) -> int:
        return max(1, int(self.model.backbone.size_divisibility))

    @torch.inference_mode()
    def backbone(self, batch: Sequence[DetectorInput], slots: int = 1) -> FeatureMaps:
        dtype, heavy = self._heavy()
        with torch.autocast(self.kind, enabled=False):
            pixels = stacked(batch, slots, self._divisor, self.device)
            return FeatureMaps(batch, heavy["backbone"](pixels.to(dtype)))

    @torch.inference_mode()
    def detect(self, feature_maps: FeatureMaps) -> list[Candidates]:
        with torch.autocast(self.kind, enabled=False):
            return self._candidates(feature_maps, self._proposals(feature_maps))

    @torch.inference_mode()
    def roi_features(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Candidates]:
        scales = scales_of(feature_maps.inputs, self.device)
        inputs = [b.to(self.device) * scale for b, scale in zip(boxes, scales, strict=True)]
        with torch.autocast(self.kind, enabled=False):
            return self._candidates(feature_maps, inputs)

    def _heavy(self, like: Tensor | None = None) -> tuple[torch.dtype, nn.ModuleDict]:
        """The layers that cost time, in the precision that autocast asks for, or in that of `like`."""
        if like is not None:
            return like.dtype, self.heavy[like.dtype]
        autocast = torch.is_autocast_enabled(self.kind)
        dtype = torch.get_autocast_dtype(self.kind) if autocast else torch.float32
        if dtype not in self.heavy:
            self.heavy[dtype] = deepcopy(self.heavy[torch.float32]).to(dtype)
        return dtype, self.heavy[dtype]

    def _proposals(self, feature_maps: FeatureMaps) -> list[Tensor]:
        """Boxes [n, 4] of each image in pixels of the input, best first; the whole image where there are none."""
        rpn = self.model.proposal_generator
        maps = [feature_maps.maps[name] for name in rpn.in_features]
        _, heavy = self._heavy(like=maps[0])
        hidden = [heavy["rpn"](one).float() for one in maps]
        logits = [rpn.rpn_head.objectness_logits(one) for one in hidden]
        deltas = [rpn.rpn_head.anchor_deltas(one) for one in hidden]
        sizes = [(p.pixels.shape[1], p.pixels.shape[2]) for p in feature_maps.inputs]
        choice = ProposalRule(
            rpn.box2box_transform.apply_deltas,
            lambda scores: scores,
            lambda decoded, boxes, _: (
                decoded.isfinite().all(-1) & (boxes[..., 2:] - boxes[..., :2] > rpn.min_box_size).all(-1)
            ),
            rpn.pre_nms_topk[False],
            rpn.post_nms_topk[False],
            rpn.nms_thresh,
        )
        return proposals(logits, deltas, self._anchors(maps), sizes, choice)

    def _anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sizes = tuple(tuple(one.shape[2:]) for one in maps)
        if sizes not in self.anchors:
            anchors = self.model.proposal_generator.anchor_generator(maps)
            self.anchors = {sizes: [boxes.tensor for boxes in anchors]}
        return self.anchors[sizes]

    def _candidates(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Candidates]:
        """The box head's output for each image's `boxes` [n, 4], in pixels of the input."""
        predictor = self.model.roi_heads.box_predictor
        features, logits, deltas = (torch.cat(part) for part in zip(*self._box_head(feature_maps, boxes), strict=True))
        scores = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1)
        regressed = predictor.box2box_transform.apply_deltas(deltas, torch.cat(list(boxes))).unflatten(1, (-1, 4))
        return candidates(feature_maps.inputs, boxes, scores[:, :-1], regressed, features)

    def _box_head(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, class logits and deltas of all images' boxes, some rows at a time."""
        heads = self.model.roi_heads
        maps = [feature_maps.maps[name] for name in heads.in_features]
        _, heavy = self._heavy(like=maps[0])
        for pooled in self._pooled(maps, boxes):
            for rows in torch.split(pooled, self.rows):
                full = padded_rows(rows, self.rows).to(maps[0].dtype)
                features, top = self._layers(heavy["head"], full)
                predicted = features, heads.box_predictor.cls_score(top), heads.box_predictor.bbox_pred(top)
                yield tuple(one[: len(rows)] for one in predicted)  # type: ignore[misc]

    def _pooled(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Iterator[Tensor]:
        """[n, side, side, C] of boxes in their order, never those of two images in one tensor."""
        a_box = self.pooler.output_size[0] ** 2 * maps[0].shape[1] * 4
        if self.together:
            from detectron2.structures import Boxes

            some = max(1, POOLED_ON_GPU // (a_box * max(1, *map(len, boxes))))
            for at in range(0, len(boxes), some):
                few = boxes[at : at + some]
                used = [one[at : at + len(few)].float().contiguous() for one in maps]
                pooled: Tensor = self.pooler(used, [Boxes(one) for one in few])
                yield from torch.split(pooled.permute(0, 2, 3, 1), [len(one) for one in few])
            return
        from detectron2.modeling.poolers import assign_boxes_to_levels
        from detectron2.structures import Boxes

        pooler = self.pooler
        scales = [one.spatial_scale for one in pooler.level_poolers]
        side, aligned = pooler.output_size[0], pooler.level_poolers[0].aligned
        together = max(1, POOLED_ON_CPU // a_box // self.rows) * self.rows
        for i, mine in enumerate(boxes):
            last = [one[i].permute(1, 2, 0).float().contiguous() for one in maps]
            for part in torch.split(mine, together):
                levels = torch.zeros(len(part), dtype=torch.int64)
                if len(maps) > 1:
                    sizes = pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
                    levels = assign_boxes_to_levels([Boxes(part)], *sizes)
                yield roi_align(last, scales, part, levels, side, aligned)

    def _layers(self, head: Any, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(features, input of the predictors) of pooled [n, side, side, C]; both float32 [n, d]."""
        if self.res5:
            features = head(pooled.permute(0, 3, 1, 2)).float().mean((2, 3))
            return features, features
        rows = pooled.flatten(1) if isinstance(head[0], nn.Flatten) else pooled.permute(0, 3, 1, 2)
        activated = []
        for layer in head:
            rows = layer(rows)
            if isinstance(layer, nn.ReLU):
                activated.append(rows.float())
        return activated[0 if self.spec.layer == "fc6" else -1], activated[-1]


def fold(model: Any) -> None:
    """Put each convolution's batch norm, as it is in evaluation, into its weights."""
    for layer in model.modules():
        norm = getattr(layer, "norm", None)
        if isinstance(layer, nn.Conv2d) and norm is not None and hasattr(norm, "running_var"):
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            setattr(layer, "norm", None)  # noqa: B010 (detectron2's own attribute)


def _order_channels_last(linear: nn.Linear, side: int) -> None:
    """Have a linear layer over [C, side, side] read [side, side, C]."""
    weight = linear.weight.detach()
    linear.weight = nn.Parameter(weight.view(len(weight), -1, side * side).transpose(1, 2).reshape(len(weight), -1))
