"""Published bottom-up-attention weights, in the layouts in which they circulate, brought into the network's own.

`detectron2`: airsplay/py-bottom-up-attention's `.pkl` and unc-nlp/frcnn-vg-finetuned's `pytorch_model.bin` (read by
transformers, examples/research_projects/lxmert/modeling_frcnn.py). One log odds an anchor, anchors scale by scale,
background last and without a box of its own, box deltas ten and five times as large (BBOX_REG_WEIGHTS 10, 10, 5, 5).
`caffe`: MILVLG/bottom-up-attention.pytorch's `.pth`. Two logits an anchor (all backgrounds, then all objects), anchors
ratio by ratio, background first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vbert.data.weight_files import class_lines, read_weights, some_of
from vbert.errors import UserError
from vbert.regions.architectures import BottomUp
from vbert.regions.backends.bottom_up_network import RATIOS, SCALES, BottomUpNetwork, cell_anchors
from vbert.regions.detector import DetectorCheckpoint, DetectorSpec

Layout = Literal["caffe", "detectron2"]

CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits.weight"

# Our module → theirs.
SHARED = {
    "backbone": "backbone",
    "head.res5": "roi_heads.res5",
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "head.classes": "roi_heads.box_predictor.cls_score",
    "head.boxes": "roi_heads.box_predictor.bbox_pred",
}
ATTRIBUTES: dict[Layout, dict[str, str]] = {
    "detectron2": {
        "head.embedding": "roi_heads.box_predictor.cls_embedding",
        "head.hidden": "roi_heads.box_predictor.fc_attr",
        "head.attributes": "roi_heads.box_predictor.attr_score",
    },
    "caffe": {
        "head.embedding": "roi_heads.box_predictor.cls_embed",
        "head.hidden": "roi_heads.box_predictor.attr_linear1",
        "head.attributes": "roi_heads.box_predictor.attr_linear2",
    },
}
BACKGROUND_FIRST = ("head.classes", "head.embedding", "head.attributes")  # in our layout


def read(spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
    """The tensors and names in `files`: `weights`, and `classes` and `attributes` unless the spec has them.

    Raises UserError for a file that can't be read, and names what is missing, unexpected or of another shape.
    """
    assert isinstance(spec.architecture, BottomUp)
    classes = names(files["classes"]) if "classes" in files else spec.classes
    attributes = names(files["attributes"]) if "attributes" in files else spec.attributes
    if not classes:
        raise UserError(
            f"detector {spec.name}: the weights don't name their classes; give `weights.classes`, a text file"
        )
    with torch.device("meta"):
        wanted = BottomUpNetwork(spec.architecture, len(classes), len(attributes)).state_dict()
    path = files["weights"]
    tensors = _checked(_tensors(path), wanted, f"{path.name}: not the weights of {spec.name}")
    return DetectorCheckpoint(classes, attributes, tensors)


def names(path: Path) -> list[str]:
    """A name a line, in lower case; of synonyms between commas the first."""
    return [line.partition(",")[0].strip().lower() for line in class_lines(path)]


def _tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name, in fp32. Nothing in it is run."""
    return {name: value.float() for name, value in read_weights(path).items()}


def _checked(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The `tensors` under our names and in our layout, exactly those of `wanted`."""
    objectness = tensors.get(OBJECTNESS)
    if objectness is None:
        raise UserError(f"{name}: {OBJECTNESS} is missing, by which its layout is known")
    layout: Layout = "caffe" if len(objectness) == 2 * len(RATIOS) * len(SCALES) else "detectron2"
    theirs = {_their_name(name, layout): name for name in wanted}
    shapes = {name: _their_shape(ours, tuple(wanted[ours].shape), layout) for name, ours in theirs.items()}
    missing = [name for name in theirs if name not in tensors]
    unexpected = [name for name in tensors if name not in theirs and not _known(name)]
    other = [
        f"{name} {tuple(tensors[name].shape)} in place of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    if missing or unexpected or other:
        listed = "; ".join(f"{kind}: {some_of(each)}" for kind, each in faults.items() if each)
        every = "\n".join(f"{kind}: {name}" for kind, each in faults.items() for name in each)
        raise UserError(f"{name}, read as the layout `{layout}`: {listed}", every)
    order = _anchor_order(tensors.get(CELL_ANCHORS), layout, name)
    return {ours: _in_our_layout(ours, tensors[name], layout, order) for name, ours in theirs.items()}


def _known(name: str) -> bool:
    """Whether the tensor is no weight: counts of training batches, the means of the preprocessing, the anchors."""
    return name.endswith(".num_batches_tracked") or name in ("pixel_mean", "pixel_std", CELL_ANCHORS)


def _module(name: str) -> str:
    return next(module for module in (*SHARED, *ATTRIBUTES["caffe"]) if name.startswith(f"{module}."))


def _their_name(name: str, layout: Layout) -> str:
    module = _module(name)
    return (SHARED | ATTRIBUTES[layout])[module] + name.removeprefix(module)


def _their_shape(name: str, shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout == "caffe" and _module(name) == "rpn.objectness":
        return (2 * shape[0], *shape[1:])
    if layout == "caffe" and _module(name) == "head.boxes":
        return (shape[0] + 4, *shape[1:])
    return shape


def _in_our_layout(name: str, tensor: Tensor, layout: Layout, order: Sequence[int]) -> Tensor:
    module = _module(name)
    if module == "rpn.objectness":
        if layout == "caffe":
            background, something = tensor.chunk(2)
            tensor = something - background  # the softmax of two is the sigmoid of their difference
        return tensor[list(order)]
    if module == "rpn.deltas":
        return tensor.view(-1, 4, *tensor.shape[1:])[list(order)].flatten(0, 1)
    if module == "head.boxes":
        if layout == "caffe":
            return tensor[4:].clone()
        scales = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(len(tensor) // 4)
        return tensor / scales.view(-1, *[1] * (tensor.ndim - 1))
    if module in BACKGROUND_FIRST and layout == "detectron2":
        return tensor.roll(1, 0)
    return tensor


def _anchor_order(anchors: Tensor | None, layout: Layout, name: str) -> list[int]:
    """Our anchor → the index of theirs: by the anchors in the file, else as the layout's code generates them."""
    count = len(RATIOS) * len(SCALES)
    if anchors is None:
        by_scale = [scale * len(RATIOS) + ratio for ratio in range(len(RATIOS)) for scale in range(len(SCALES))]
        return by_scale if layout == "detectron2" else list(range(count))
    ours = cell_anchors("detectron2")
    order: list[int] = []
    if anchors.shape == ours.shape:
        apart = (_sides(ours).log()[:, None] - _sides(anchors).clamp(min=1).log()[None]).abs().amax(2)
        order = [int(nearest) for nearest in apart.argmin(1) if apart[:, nearest].min() < 0.2]
    if sorted(order) != list(range(count)):
        raise UserError(f"{name}: its {CELL_ANCHORS} are not the 12 anchors of sides 64 to 512 and ratios 0.5, 1 and 2")
    return order


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]
