"""detectron2 itself, run as its users run it, on the weights that the backend is given."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vbert.regions.architectures import DETECTRON2_INSTALL
from vbert.regions.backends import detectron2 as backend
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import DetectorSpec, detector_file

COCO = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco"
NEEDED = [
    pytest.mark.detectron2,
    pytest.mark.skipif(find_spec("detectron2") is None, reason=f"detectron2 is not installed: {DETECTRON2_INSTALL}"),
]
PHOTOS = pytest.mark.skipif(not COCO.is_dir(), reason=f"no photos: {COCO} is absent")

# R50-FPN with a quarter of its width, for what need not be large.
NARROW: dict[str, Any] = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
}
# C4 likewise, with ResNet-50 and few proposals.
NARROW_C4: dict[str, Any] = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 150,
}


def spec_of(name: str, short_side: int, changes: dict[str, Any] | None = None, **fields: Any) -> DetectorSpec:
    """A shipped spec, for images of another size and with changes of its configuration."""
    spec = detector_file(name).spec()
    size = {"short_side": short_side, "long_side": short_side * 5 // 3}
    changed = {"preprocessing": spec.preprocessing.model_copy(update=size)}
    changed["architecture"] = spec.architecture.model_copy(update={"changes": changes or {}})
    return spec.model_copy(update=changed | fields)


def narrow(short_side: int = 160, **fields: Any) -> DetectorSpec:
    return spec_of("detectron2_faster_rcnn_R_50_FPN_3x", short_side, NARROW, dim=128, **fields)


def narrow_c4(short_side: int = 160, **fields: Any) -> DetectorSpec:
    return spec_of("detectron2_faster_rcnn_R_101_C4_3x", short_side, NARROW_C4, dim=512, **fields)


def drawn(spec: DetectorSpec, classifier: float = 1.0) -> Any:
    """detectron2's model in evaluation mode, all of it drawn at random; its batch norms too, but so that numbers stay
    in bounds. `classifier` scales the class logits, without which no box of an untrained model scores enough."""
    assert spec.classes is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = backend.network(spec, len(spec.classes)).eval()
        for name, held in model.named_buffers():
            if name.endswith("norm.running_var"):
                held.uniform_(0.5, 2)
            elif name.endswith(("norm.running_mean", "norm.bias")):
                held.normal_(0, 0.1)
            elif name.endswith("norm.weight"):
                held.uniform_(*((0.1, 0.4) if "conv3" in name else (0.8, 1.2)))
    model.roi_heads.box_predictor.cls_score.weight.data *= classifier
    return model


def photos(count: int) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((COCO / "val2017").glob("*.jpg"))[:count]]


def raw(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """A prepared input as detectron2's model takes it: before mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (rule.mean, rule.std))
    return (pixels * std + mean).round()


def read(path: Path, spec: DetectorSpec) -> dict[str, Any]:
    """As detectron2's DefaultPredictor makes an input of a file, by its own reading and resizing."""
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import ResizeShortestEdge

    image = read_image(str(path), format="BGR")
    rule = spec.preprocessing
    resized = ResizeShortestEdge([rule.short_side] * 2, rule.long_side).get_transform(image).apply_image(image)
    whole = torch.as_tensor(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
    return {"image": whole, "height": image.shape[0], "width": image.shape[1]}


@torch.inference_mode()
def features_at(model: Any, spec: DetectorSpec, image: Tensor, boxes: Tensor) -> Tensor:
    """Features [n, d] of boxes [n, 4] in pixels of the input [3, h, w]."""
    from detectron2.structures import Boxes

    maps = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    return box_features(model, spec, maps, [Boxes(boxes)])


def box_features(model: Any, spec: DetectorSpec, maps: dict[str, Tensor], boxes: list[Any]) -> Tensor:
    heads = model.roi_heads
    used = [maps[name] for name in heads.in_features]
    if spec.layer == "res5_pool":
        pooled: Tensor = heads._shared_roi_transform(used, boxes).mean(dim=[2, 3])
        return pooled
    rows: Tensor = heads.box_pooler(used, boxes)
    for layer in list(heads.box_head)[: 3 if spec.layer == "fc6" else None]:
        rows = layer(rows)
    return rows


@torch.inference_mode()
def extracted(model: Any, spec: DetectorSpec, one: dict[str, Any]) -> tuple[Any, Tensor]:
    """detectron2's detections of an input, in pixels of the image, and their features [n, d]: the box head's rows that
    its inference names."""
    images = model.preprocess_image([one])
    maps = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, maps)
    features = box_features(model, spec, maps, [proposals[0].proposal_boxes])
    found, kept = model.roi_heads.box_predictor.inference(model.roi_heads.box_predictor(features), proposals)
    (done,) = model._postprocess(found, [one], images.image_sizes)
    return done["instances"], features[kept[0]]
