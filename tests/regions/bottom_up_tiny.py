"""A small bottom-up-attention detector with random weights, and the same network computed plainly and slowly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, linear, max_pool2d, relu
from torchvision.ops import roi_pool

from vbert.artifacts.steps.settings import Plugin
from vbert.regions.architectures import BottomUp
from vbert.regions.backends.bottom_up import network
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import DetectorSpec

CLASSES = ("yolk", "goal", "bathroom", "macaroni", "umpire")
ATTRIBUTES = ("floppy", "up", "red")
CAFFE = Preprocessing(
    resize="opencv",
    short_side=96,
    long_side=160,
    colours="BGR",
    scale=1.0,
    mean=(102.9801, 115.9465, 122.7717),
    std=(1.0, 1.0, 1.0),
)
SMALL = BottomUp(
    kind="bottom_up_c4",
    blocks=(1, 2, 2, 2),
    width=2,
    rpn_channels=8,
    pooled=4,
    proposals=24,
    before_nms=90,
    rows=8,
)


def small_spec(**changes: object) -> DetectorSpec:
    spec = DetectorSpec(
        name="small",
        backend=Plugin(name="bottom_up", version=1),
        architecture=SMALL,
        layer="res5_pool",
        dim=64,
        attributes=ATTRIBUTES,
        preprocessing=CAFFE,
    )
    return spec.model_copy(update=changes)


def random_weights(spec: DetectorSpec, seed: int = 0) -> dict[str, Tensor]:
    """Such that nothing is near 0 or 1: normalisations that are not the identity, scores that differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network(spec, len(CLASSES)).state_dict().items()}

    def one(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("running_var") or name.endswith("norm.weight"):
            return 0.5 + torch.rand(shape, generator=generator)
        drawn = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            drawn *= (1.5 / shape[1:].numel()) ** 0.5
        factors = {"backbone.stem.conv1.weight": 0.02, "rpn.deltas": 0.3, "head.boxes": 0.05, "head.classes": 0.5}
        return drawn * next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)

    return {name: one(name, shape) for name, shape in shapes.items()}


def _conv(x: Tensor, w: Mapping[str, Tensor], name: str, stride: int = 1, pad: int = 0, dilation: int = 1) -> Tensor:
    x = conv2d(x, w[f"{name}.weight"], None, stride, pad, dilation)
    norm = (w[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return batch_norm(x, *norm, eps=1e-5)


def _stage(x: Tensor, w: Mapping[str, Tensor], name: str, blocks: int, stride: int, dilation: int = 1) -> Tensor:
    for i in range(blocks):
        at, step = f"{name}.{i}", stride if i == 0 else 1
        y = relu(_conv(x, w, f"{at}.conv1", step))
        y = relu(_conv(y, w, f"{at}.conv2", 1, dilation, dilation))
        y = _conv(y, w, f"{at}.conv3")
        x = relu(y + (_conv(x, w, f"{at}.shortcut", step) if i == 0 else x))
    return x


def plain_maps(pixels: Tensor, w: Mapping[str, Tensor], settings: BottomUp) -> Tensor:
    """[3, h, w] to [1, C, h', w']."""
    x = relu(_conv(pixels[None], w, "backbone.stem.conv1", 2, 3))
    x = max_pool2d(x, 3, 2, ceil_mode=True)
    for i, stride in ((2, 1), (3, 2), (4, 2)):
        x = _stage(x, w, f"backbone.res{i}", settings.blocks[i - 2], stride)
    return x


def caffe_anchors() -> np.ndarray:
    """Of the first cell, as the numbers that lib/rpn/generate_anchors.py computes for scales 4, 8, 16 and 32."""
    return np.float32(
        [
            [-38, -16, 53, 31],
            [-84, -40, 99, 55],
            [-176, -88, 191, 103],
            [-360, -184, 375, 199],
            [-24, -24, 39, 39],
            [-56, -56, 71, 71],
            [-120, -120, 135, 135],
            [-248, -248, 263, 263],
            [-14, -36, 29, 51],
            [-36, -80, 51, 95],
            [-80, -168, 95, 183],
            [-168, -344, 183, 359],
        ]
    )


def plain_overlap(a: np.ndarray, b: np.ndarray) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    sizes = sum((x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b))
    return float(wide * high / (sizes - wide * high))


def regress(box: np.ndarray, delta: np.ndarray, width: float, height: float) -> np.ndarray:
    """lib/fast_rcnn/bbox_transform.py for one box, in whole pixels, clipped to the image."""
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    x, y = box[0] + 0.5 * w + delta[0] * w, box[1] + 0.5 * h + delta[1] * h
    w, h = w * np.exp(delta[2]), h * np.exp(delta[3])
    corners = np.array([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h])
    return np.clip(corners, 0, [width - 1, height - 1, width - 1, height - 1])


def plain_proposals(maps: Tensor, w: Mapping[str, Tensor], size: tuple[int, int], scale: float, s: BottomUp) -> Tensor:
    """lib/rpn/proposal_layer.py, one anchor after another. size: (height, width) of the input."""
    hidden = relu(conv2d(maps, w["rpn.conv.weight"], w["rpn.conv.bias"], padding=1))
    odds = conv2d(hidden, w["rpn.objectness.weight"], w["rpn.objectness.bias"])[0].numpy()
    deltas = conv2d(hidden, w["rpn.deltas.weight"], w["rpn.deltas.bias"])[0].double().numpy()
    found = []
    for row in range(maps.shape[2]):
        for column in range(maps.shape[3]):
            for a, anchor in enumerate(caffe_anchors()):
                at = anchor + 16.0 * np.array([column, row, column, row])
                box = regress(at, deltas[4 * a : 4 * a + 4, row, column], size[1], size[0])
                if min(box[2] - box[0], box[3] - box[1]) + 1 >= 16 * scale:
                    found.append((-odds[a, row, column], len(found), box))
    kept: list[np.ndarray] = []
    for _, _, box in sorted(found, key=lambda f: f[:2])[: s.before_nms]:
        if all(plain_overlap(box, other) <= s.rpn_iou for other in kept):
            kept.append(box)
    return torch.tensor(np.array(kept[: s.proposals]), dtype=torch.float32)


def plain_head(maps: Tensor, boxes: Tensor, w: Mapping[str, Tensor], s: BottomUp) -> tuple[Tensor, ...]:
    """Of boxes in pixels of the input: features, class probabilities (background first), deltas, attributes'."""
    pooled = roi_pool(maps, [boxes], s.pooled, 1 / 16)
    features = _stage(pooled, w, "head.res5", s.blocks[3], 1, dilation=2).flatten(2).mean(2)
    logits = linear(features, w["head.classes.weight"], w["head.classes.bias"])
    deltas = linear(features, w["head.boxes.weight"], w["head.boxes.bias"])
    words = torch.stack([w["head.embedding.weight"][int(row.argmax())] for row in logits])
    hidden = relu(linear(torch.cat([features, words], 1), w["head.hidden.weight"], w["head.hidden.bias"]))
    attributes = linear(hidden, w["head.attributes.weight"], w["head.attributes.bias"])
    return features, logits.softmax(1), deltas, attributes.softmax(1)
