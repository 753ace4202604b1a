"""The bottom-up-attention network: ResNet C4, proposals, res5 as RoI head, classes, boxes and attributes.

Written after the published definition (peteanderson80/bottom-up-attention 514e561,
models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt and lib/rpn/).
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d, nms, roi_pool

from vbert.errors import UserError
from vbert.regions.architectures import BottomUp

STRIDE = 16
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALES = (4, 8, 16, 32)  # anchor sides, in strides
SMALLEST = 16  # pixels of the image, in the geometry `caffe`
LARGEST_GROWTH = math.log(1000 / 16)  # of a side by one regression, as a logarithm (detectron2, MILVLG)


class NormedConv(nn.Conv2d):
    """A convolution without bias and its frozen normalisation, until `fold` makes one of the two."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, dilation: int = 1, pad: int = 0) -> None:
        super().__init__(inputs, outputs, side, stride, pad, dilation, bias=False)
        self.norm: nn.Module = FrozenBatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(super().forward(x))
        return y

    def fold(self) -> None:
        """Puts the normalisation into the weights: y = γ (Wx − μ) / √(σ² + ε) + β is a convolution with a bias."""
        norm = self.norm
        assert isinstance(norm, FrozenBatchNorm2d)
        self.weight, self.bias = fuse_conv_bn_weights(
            self.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut; Caffe's: the stride is in the first 1×1."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = NormedConv(inputs, middle, 1, stride)
        self.conv2 = NormedConv(middle, middle, 3, dilation=dilation, pad=dilation)
        self.conv3 = NormedConv(middle, outputs, 1)
        self.shortcut = NormedConv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(relu(self.conv2(relu(self.conv1(x)))))
        return relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _stage(blocks: int, inputs: int, middle: int, stride: int, dilation: int = 1) -> nn.Sequential:
    first = Bottleneck(inputs, middle, 4 * middle, stride, dilation)
    return nn.Sequential(
        first, *(Bottleneck(4 * middle, middle, 4 * middle, dilation=dilation) for _ in range(blocks - 1))
    )


class Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, width, 7, stride=2, pad=3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.conv1(x))
        if min(x.shape[2:]) < 2:  # of images a pixel or two wide; zeros change no maximum here
            x = pad(x, (0, max(0, 2 - x.shape[3]), 0, max(0, 2 - x.shape[2])))
        return max_pool2d(x, 3, stride=2, ceil_mode=True)  # Caffe's: no padding, sizes rounded up


class Backbone(nn.Module):
    """[B, 3, H, W] to maps [B, 16·width, ⌈H/16⌉ or so, …]."""

    def __init__(self, settings: BottomUp) -> None:
        super().__init__()
        width, (two, three, four, _) = settings.width, settings.blocks
        self.stem = Stem(width)
        self.res2 = _stage(two, width, width, stride=1)
        self.res3 = _stage(three, 4 * width, 2 * width, stride=2)
        self.res4 = _stage(four, 8 * width, 4 * width, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.res4(self.res3(self.res2(self.stem(pixels))))
        return maps


def cell_anchors(geometry: str) -> Tensor:
    """The 12 anchors [12, 4] of the first cell, ratio by ratio.

    `caffe`: lib/rpn/generate_anchors.py: sides rounded to pixels at the stride's size, then scaled, around the middle
    of pixels 0 to 15. `detectron2`: exact sides around 0.
    """
    boxes = []
    for ratio in RATIOS:
        wide = math.sqrt(STRIDE**2 / ratio)
        high = wide * ratio
        if geometry == "caffe":
            wide = round(wide)
            high = round(wide * ratio)
        for scale in SCALES:
            w, h = wide * scale, high * scale
            if geometry == "caffe":
                middle, across, down = (STRIDE - 1) / 2, (w - 1) / 2, (h - 1) / 2
            else:
                middle, across, down = 0.0, w / 2, h / 2
            boxes.append([middle - across, middle - down, middle + across, middle + down])
    return torch.tensor(boxes)


def apply_deltas(boxes: Tensor, deltas: Tensor, more: float) -> Tensor:
    """Boxes [n, 4] moved by deltas [n, ..., 4] of (x, y, log width, log height): R-CNN's regression. `more`: 1 where a
    box from pixel 3 to pixel 5 is 3 wide."""
    x1, y1, x2, y2 = (t.view(-1, *[1] * (deltas.ndim - 2)) for t in boxes.unbind(1))
    wide, high = x2 - x1 + more, y2 - y1 + more
    dx, dy, dw, dh = deltas.unbind(-1)
    x, y = x1 + wide / 2 + dx * wide, y1 + high / 2 + dy * high
    half_w = wide * dw.clamp(max=LARGEST_GROWTH).exp() / 2
    half_h = high * dh.clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)


def clipped(boxes: Tensor, width: float, height: float, more: float) -> Tensor:
    """Boxes [..., 4] within the image: up to W and H, or W − 1 and H − 1 (`more` = 1)."""
    ends = boxes.new_tensor([width - more, height - more, width - more, height - more])
    return torch.minimum(boxes.clamp(min=0), ends)


class ProposalNetwork(nn.Module):
    def __init__(self, settings: BottomUp) -> None:
        super().__init__()
        self.settings = settings
        anchors = len(RATIOS) * len(SCALES)
        self.conv = nn.Conv2d(16 * settings.width, settings.rpn_channels, 3, padding=1)
        self.objectness = nn.Conv2d(settings.rpn_channels, anchors, 1)  # log odds: object against background
        self.deltas = nn.Conv2d(settings.rpn_channels, 4 * anchors, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] to fp32 log odds [B, h·w·12] and deltas [B, h·w·12, 4], by row, column, anchor."""
        hidden = relu(self.conv(maps))
        odds = self.objectness(hidden).float().permute(0, 2, 3, 1).flatten(1)
        deltas = self.deltas(hidden).float().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        return odds, deltas

    def propose(
        self, odds: Tensor, deltas: Tensor, grid: tuple[int, int], size: tuple[int, int], scale: float
    ) -> Tensor:
        """The proposals [n, 4] of one image, best first, in pixels of the input: of size (h, w), `scale` of its pixels
        a pixel of the image; odds [h·w·12] and deltas [h·w·12, 4] of its map of size `grid`."""
        settings = self.settings
        more = 1.0 if settings.geometry == "caffe" else 0.0
        order = odds.sort(descending=True, stable=True).indices
        if settings.geometry == "detectron2":
            order = order[: settings.before_nms]
        boxes = clipped(apply_deltas(self._anchors(grid)[order], deltas[order], more), size[1], size[0], more)
        sides = boxes[:, 2:] - boxes[:, :2] + more
        large = (sides >= SMALLEST * scale).all(1) if settings.geometry == "caffe" else (sides > 0).all(1)
        boxes, odds = boxes[large][: settings.before_nms], odds[order[large]][: settings.before_nms]
        # A pixel more to the right and below makes of torchvision's overlap that of boxes measured in whole pixels.
        kept = nms(boxes + boxes.new_tensor([0, 0, more, more]), odds, settings.rpn_iou)
        return boxes[kept[: settings.proposals]]

    def _anchors(self, grid: tuple[int, int]) -> Tensor:
        """[h·w·12, 4], by row, column, anchor."""
        device = self.objectness.weight.device
        y, x = torch.meshgrid(*(torch.arange(n, device=device) * float(STRIDE) for n in grid), indexing="ij")
        corners = torch.stack([x, y, x, y], 2).view(-1, 1, 4)
        return (corners + cell_anchors(self.settings.geometry).to(device)).view(-1, 4)


class RoiHead(nn.Module):
    """res5 on pooled regions, its mean, and linear layers on it. Background and "no attribute" come first."""

    def __init__(self, settings: BottomUp, classes: int, attributes: int) -> None:
        super().__init__()
        self.side = settings.pooled
        self.dim = 32 * settings.width
        self.res5 = _stage(settings.blocks[3], 16 * settings.width, 8 * settings.width, stride=1, dilation=2)
        self.classes = nn.Linear(self.dim, 1 + classes)
        self.boxes = nn.Linear(self.dim, 4 * classes)
        self.embedding = nn.Embedding(1 + classes, self.dim // 8) if attributes else None
        self.hidden = nn.Linear(self.dim + self.dim // 8, self.dim // 4) if attributes else None
        self.attributes = nn.Linear(self.dim // 4, 1 + attributes) if attributes else None

    def forward(self, maps: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """Of boxes [n, 4], in pixels of the input, on maps [1, C, h, w]: features [n, d], class logits [n, 1 + K],
        deltas [n, K, 4] and, where there is such a head, attribute logits [n, 1 + A], all fp32."""
        pooled = roi_pool(maps.float(), [boxes], self.side, 1 / STRIDE)
        features = self.res5(pooled.contiguous(memory_format=torch.channels_last)).mean((2, 3), dtype=torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.classes(features)
            out = [features, logits, self.boxes(features).unflatten(1, (-1, 4))]
            if self.embedding is not None and self.hidden is not None and self.attributes is not None:
                # The embedding is that of the best class, the background among them.
                joined = torch.cat([features, self.embedding(logits.argmax(1))], 1)
                out.append(self.attributes(relu(self.hidden(joined))))
        return tuple(out)


class BottomUpNetwork(nn.Module):
    def __init__(self, settings: BottomUp, classes: int, attributes: int) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = Backbone(settings)
        self.rpn = ProposalNetwork(settings)
        self.head = RoiHead(settings, classes, attributes)

    def forward(self, *_: object) -> NoReturn:
        """Raises UserError."""
        raise UserError("the bottom-up-attention detector is not trained here: use its published weights, or your own")

    def fold(self) -> None:
        """Makes one of each convolution and its normalisation; the names of the weights change."""
        for module in self.modules():
            if isinstance(module, NormedConv):
                module.fold()
