"""A detectron2 R-CNN at work: detectron2's numbers, at less cost.

Convolutions absorb their frozen batch norms and run channels-last; under autocast a bf16 copy of the heavy layers runs,
while what gives scores and coordinates stays in fp32; only the RPN's best anchors are decoded; RoIAlign is
`vbert.regions.roi_align` on a CPU; the box head always sees the same number of rows, because a row's bits depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import clip_boxes_to_image, nms

from vbert.regions.detector import Candidates, DetectorSpec, Prepared, Seen
from vbert.regions.pixels import padded_size, prepare, stacked, target_size
from vbert.regions.roi_align import roi_align

ROWS_ON_CPU, ROWS_ON_GPU = 100, 250  # of the box head at once, always
POOLED = 64 * 2**20  # bytes pooled at once, unless ROWS need more


class Detectron2Detector:
    """See `vbert.regions.detector.Detector`. `model`: a GeneralizedRCNN, which is changed."""

    def __init__(self, spec: DetectorSpec, classes: Sequence[str], model: Any, device: str) -> None:
        self.spec, self.device, self.kind = spec, device, torch.device(device).type
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
        self.rows = ROWS_ON_CPU if self.kind == "cpu" else ROWS_ON_GPU
        self.anchors: dict[tuple[tuple[int, ...], ...], list[Tensor]] = {}  # of the last maps' sizes

    def prepare(self, image: Image.Image) -> Prepared:
        return prepare(image, self.spec.preprocessing)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return padded_size(*target_size(width, height, self.spec.preprocessing), self._divisor)

    @property
    def _divisor(self) -> int:
        return max(1, int(self.model.backbone.size_divisibility))

    @torch.inference_mode()
    def look(self, batch: Sequence[Prepared], slots: int = 1) -> Seen:
        dtype, heavy = self._heavy()
        with torch.autocast(self.kind, enabled=False):
            pixels = stacked(batch, slots, self._divisor, self.device)
            return Seen(batch, heavy["backbone"](pixels.to(dtype)))

    @torch.inference_mode()
    def detect(self, seen: Seen) -> list[Candidates]:
        with torch.autocast(self.kind, enabled=False):
            proposals = self._proposals(seen)
            return [self._candidates(seen, i, boxes) for i, boxes in enumerate(proposals)]

    @torch.inference_mode()
    def describe(self, seen: Seen, boxes: Sequence[Tensor]) -> list[Candidates]:
        inputs = [b.to(self.device) * self._scale(p) for b, p in zip(boxes, seen.inputs, strict=True)]
        with torch.autocast(self.kind, enabled=False):
            return [self._candidates(seen, i, mine) for i, mine in enumerate(inputs)]

    def _heavy(self, like: Tensor | None = None) -> tuple[torch.dtype, nn.ModuleDict]:
        """The layers that cost time, in the precision that autocast asks for, or in that of `like`."""
        if like is not None:
            return like.dtype, self.heavy[like.dtype]
        autocast = torch.is_autocast_enabled(self.kind)
        dtype = torch.get_autocast_dtype(self.kind) if autocast else torch.float32
        if dtype not in self.heavy:
            self.heavy[dtype] = deepcopy(self.heavy[torch.float32]).to(dtype)
        return dtype, self.heavy[dtype]

    def _scale(self, prepared: Prepared) -> Tensor:
        return torch.tensor(prepared.scale * 2, device=self.device)

    def _proposals(self, seen: Seen) -> list[Tensor]:
        """Boxes [n, 4] of each image in pixels of the input, best first; the whole image where there are none."""
        rpn = self.model.proposal_generator
        maps = [seen.maps[name] for name in rpn.in_features]
        _, heavy = self._heavy(like=maps[0])
        hidden = [heavy["rpn"](one).float() for one in maps]
        logits = [rpn.rpn_head.objectness_logits(one) for one in hidden]
        deltas = [rpn.rpn_head.anchor_deltas(one) for one in hidden]
        anchors = self._anchors(maps)
        return [
            self._proposed(seen.inputs[i], [one[i] for one in logits], [one[i] for one in deltas], anchors)
            for i in range(len(seen.inputs))
        ]

    def _proposed(
        self, prepared: Prepared, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor]
    ) -> Tensor:
        """One image's, of logits [A, h, w] and deltas [A · 4, h, w] of each map. Anchors run by row, column, shape."""
        rpn = self.model.proposal_generator
        height, width = prepared.pixels.shape[1:]
        boxes, scores, levels = [], [], []
        for level, mine in enumerate(anchors):
            score = logits[level].permute(1, 2, 0).reshape(-1)
            at = best(score, rpn.pre_nms_topk[False])
            moves = deltas[level].permute(1, 2, 0).reshape(-1, 4)[at]
            boxes.append(rpn.box2box_transform.apply_deltas(moves, mine[at]))
            scores.append(score[at])
            levels.append(torch.full_like(at, level))
        decoded, best_scores = torch.cat(boxes), torch.cat(scores)
        found: Tensor = clip_boxes_to_image(decoded, (height, width))
        alive = decoded.isfinite().all(1) & ((found[:, 2:] - found[:, :2]) > rpn.min_box_size).all(1)
        kept = suppressed(found[alive], best_scores[alive], torch.cat(levels)[alive], rpn.nms_thresh)
        kept = kept[: rpn.post_nms_topk[False]]
        return found[alive][kept] if len(kept) else found.new_tensor([[0.0, 0.0, width, height]])

    def _anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sizes = tuple(tuple(one.shape[2:]) for one in maps)
        if sizes not in self.anchors:
            found = self.model.proposal_generator.anchor_generator(maps)
            self.anchors = {sizes: [boxes.tensor for boxes in found]}
        return self.anchors[sizes]

    def _candidates(self, seen: Seen, i: int, boxes: Tensor) -> Candidates:
        """What the box head says of `boxes` [n, 4], in pixels of the input, of image i."""
        predictor = self.model.roi_heads.box_predictor
        prepared = seen.inputs[i]
        features, logits, deltas = (torch.cat(part) for part in zip(*self._box_head(seen, i, boxes), strict=True))
        height, width = prepared.pixels.shape[1:]
        scale = self._scale(prepared)
        scores = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1)
        regressed = predictor.box2box_transform.apply_deltas(deltas, boxes).unflatten(1, (-1, 4))
        return Candidates(
            boxes=boxes / scale,
            scores=scores[:, :-1],
            regressed=clip_boxes_to_image(regressed, (height, width)).expand(-1, len(self.classes), 4) / scale,
            features=features,
            attributes=None,
        )

    def _box_head(self, seen: Seen, i: int, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, class logits and deltas of `boxes`, some rows at a time."""
        heads = self.model.roi_heads
        maps = [seen.maps[name] for name in heads.in_features]
        _, heavy = self._heavy(like=maps[0])
        last = [one[i].permute(1, 2, 0).float().contiguous() for one in maps]
        a_box = self.pooler.output_size[0] ** 2 * last[0].shape[2] * 4
        together = max(1, POOLED // a_box // self.rows) * self.rows
        for some in torch.split(boxes, together):
            for rows in torch.split(self._pooled(last, some), self.rows):
                filled = pad(rows, (0, 0, 0, 0, 0, 0, 0, self.rows - len(rows))).to(maps[0].dtype)
                features, top = self._layers(heavy["head"], filled)
                predicted = features, heads.box_predictor.cls_score(top), heads.box_predictor.bbox_pred(top)
                yield tuple(one[: len(rows)] for one in predicted)  # type: ignore[misc]

    def _pooled(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """[n, side, side, C] of the maps [H, W, C] of one image."""
        from detectron2.modeling.poolers import assign_boxes_to_levels
        from detectron2.structures import Boxes

        pooler = self.pooler
        if self.kind != "cpu":
            pooled: Tensor = pooler([one.permute(2, 0, 1)[None] for one in maps], [Boxes(boxes)])
            return pooled.permute(0, 2, 3, 1)
        levels = torch.zeros(len(boxes), dtype=torch.int64)
        if len(maps) > 1:
            sizes = pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
            levels = assign_boxes_to_levels([Boxes(boxes)], *sizes)
        scales = [one.spatial_scale for one in pooler.level_poolers]
        return roi_align(maps, scales, boxes, levels, pooler.output_size[0], pooler.level_poolers[0].aligned)

    def _layers(self, head: Any, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The features and what the predictors read, of pooled [n, side, side, C]; both float32 [n, d]."""
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


def best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` best scores [n], best first, equal ones by index; torch's `topk` promises no order."""
    among = torch.arange(len(scores), device=scores.device)
    if count < len(scores):
        among = (scores >= scores.topk(count).values[-1]).nonzero()[:, 0]
    return among[scores[among].sort(descending=True, stable=True).indices][:count]


def suppressed(boxes: Tensor, scores: Tensor, levels: Tensor, iou: float) -> Tensor:
    """Indices of the boxes that greedy suppression on each level leaves, best first, equal ones by index.

    Not torchvision's `batched_nms`, which for few boxes shifts them by level, and so rounds their coordinates.
    """
    kept = [levels[:0]]
    for level in range(int(levels.max()) + 1 if len(levels) else 0):
        mine = (levels == level).nonzero()[:, 0]
        kept.append(mine[nms(boxes[mine], scores[mine], iou)])
    found = torch.cat(kept).sort().values
    return found[scores[found].sort(descending=True, stable=True).indices]


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
