"""torchvision's own detectors with weights that are drawn at random and made lively, and real photos: for the tests of
the torchvision backend."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import to_tensor

from vbert.data.decode import decode
from vbert.regions.detector import Detector, DetectorSpec, detector_file, load_backend

KINDS = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn")
REAL = Path(__file__).parents[3] / "shared" / "data" / "coco"
needs_photos = pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/data/coco) are not here")
CLASSES = tuple(f"thing {i}" for i in range(6))


def photos(count: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted((REAL / "val2017").iterdir())[:count]]


def spec_of(kind: str, short_side: int = 160, long_side: int = 256, **architecture: Any) -> DetectorSpec:
    """The shipped spec at a small size, with few proposals and classes."""
    spec = detector_file(f"torchvision_{kind}").spec()
    few = {"proposals": 100, "before_nms": 200, "rows": 30} | architecture
    sizes = {"short_side": short_side, "long_side": long_side}
    return spec.model_copy(
        update={
            "classes": CLASSES,
            "architecture": spec.architecture.model_copy(update=few),
            "preprocessing": spec.preprocessing.model_copy(update=sizes),
        }
    )


@cache
def drawn(kind: str) -> dict[str, Tensor]:
    """A state dict of torchvision's: its norms' statistics are those of real activations, and its outputs are spread as
    a trained network's are: objectness, class scores and moved boxes differ from place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_model(kind, weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        corners = torch.rand(3, 40, 2, 2).sort(2).values.flatten(2) * 160
        heads, mean, std = model.roi_heads, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        with torch.no_grad():
            batch, _ = GeneralizedRCNNTransform(160, 256, mean, std)([pixels(data) for data in photos(3)])
            maps = model.train().backbone(batch.tensors)
            described = heads.box_head(heads.box_roi_pool(maps, list(corners), batch.image_sizes))
            logits, moves = model.rpn.head(list(maps.values()))
            scores, deltas = heads.box_predictor(described)
        spread = {
            "rpn.head.cls_logits": (2.0, torch.cat([each.flatten() for each in logits])),
            "rpn.head.bbox_pred": (0.04, torch.cat([each.flatten() for each in moves])),
            "roi_heads.box_predictor.cls_score": (1.0, scores),
            "roi_heads.box_predictor.bbox_pred": (0.2, deltas),
        }
    tensors = model.state_dict()
    for name, (wanted, found) in spread.items():
        tensors[f"{name}.weight"] *= wanted / found.std(0).mean() if found.dim() > 1 else wanted / found.std()
    return tensors


def stock(spec: DetectorSpec, **settings: Any) -> nn.Module:
    """torchvision's own model in evaluation mode, as its own factory makes it."""
    rule, ours = spec.preprocessing, spec.architecture
    sizes = {"min_size": rule.short_side, "max_size": rule.long_side}
    few = {"rpn_pre_nms_top_n_test": ours.before_nms, "rpn_post_nms_top_n_test": ours.proposals}
    model = get_model(
        ours.kind, weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **sizes, **few, **settings
    )
    model.load_state_dict(drawn(ours.kind))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = ours.epsilon  # as torchvision does where it loads its weights
    return model.eval()


def ours(spec: DetectorSpec) -> Detector:
    return load_backend("torchvision").detector(spec, CLASSES, tensors_of(spec), "cpu")


def tensors_of(spec: DetectorSpec) -> dict[str, Tensor]:
    """What is drawn, by the names of our network."""
    return {k: v for k, v in drawn(spec.architecture.kind).items() if not k.endswith("num_batches_tracked")}


def pixels(data: bytes) -> Tensor:
    """What torchvision's model is given."""
    return to_tensor(decode(data))


def image(data: bytes) -> Image.Image:
    return decode(data)
