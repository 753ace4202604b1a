"""Architectures of detectors, as plain data: a spec is read without torch. A further one is a class and its place in
`Architecture`; its `backend` runs it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from vbert.artifacts.steps.settings import Settings, Since


class PlainCnn(Settings):
    """A small Faster R-CNN of torchvision's parts over a plain CNN with maps at strides 4 and 8.

    `anchors`: sides in pixels, for the map at stride 4 and that at stride 8. RoIs are pooled from the map at stride 4.
    """

    backend: ClassVar[str] = "torchvision"
    kind: Literal["plain_cnn"] = Field("plain_cnn", description="the network by name")
    channels: tuple[int, int, int] = Field((32, 64, 128), description="of the maps at strides 2, 4 and 8")
    depth: tuple[int, int] = Field(
        (2, 2), description="3×3 convolutions: at stride 4 after the one that halves, at stride 8 with it"
    )
    anchors: tuple[tuple[float, ...], tuple[float, ...]] = Field(
        ((10, 16), (24, 34)), description="sides of anchors in pixels: of the map at stride 4, of that at stride 8"
    )
    ratios: tuple[float, ...] = Field((0.6, 1.0, 1.6), description="height / width of anchors, on both maps")
    pooled: int = Field(5, ge=1, description="side of RoIAlign's output")
    samples: int = Field(1, ge=1, description="RoIAlign's samples a bin, along each side")
    hidden: int = Field(256, ge=1, description="width of fc6 and fc7")
    proposals: int = Field(
        50,
        ge=1,
        description="left by the RPN's suppression; the box head always runs on so many rows, the last ones empty",
    )
    before_nms: int = Field(200, ge=1, description="anchors a map that go into the RPN's suppression")
    rpn_iou: float = Field(0.7, gt=0, le=1, description="overlap above which the weaker proposal goes")

    @model_validator(mode="after")
    def _alike(self) -> PlainCnn:
        if len(self.anchors[0]) != len(self.anchors[1]):
            raise ValueError("anchors: both maps share one RPN head and need equally many sizes")
        return self


class TorchvisionFasterRcnn(Settings):
    """A Faster R-CNN of `torchvision.models.detection`, in its layout of weights.

    `norm` and `trained` matter to training alone: `frozen` keeps the norms' statistics as they are loaded, `batch`
    learns them; `trained` counts the backbone's stages that learn, from its last one. From scratch: batch, and all.
    """

    backend: ClassVar[str] = "torchvision"
    kind: Literal["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"] = Field(
        description="the network by name"
    )
    norm: Literal["frozen", "batch"] = Field("frozen", description="backbone's norms: statistics as loaded, or learnt")
    epsilon: float = Field(
        1e-5,
        ge=0,
        description="added to variances in the norms; torchvision sets 0 for its COCO weights of resnet50_fpn",
    )
    trained: int = Field(
        3, ge=0, le=6, description="stages of the backbone that learn, from its last: of 5, MobileNet's 6"
    )
    before_nms: int = Field(
        1000, ge=1, description="anchors a map that go into the RPN's suppression; twice as many in training"
    )
    proposals: int = Field(1000, ge=1, description="left by that suppression at most; twice as many in training")
    rpn_iou: float = Field(0.7, gt=0, le=1, description="overlap above which the weaker proposal goes")
    rpn_score: float = Field(0.0, ge=0, le=1, description="an anchor whose objectness is below is no proposal")
    rows: int = Field(250, ge=1, description="of the box head at once, always: a row's bits depend on their number")
    taught: Annotated[int, Since(512)] = Field(512, ge=1, description="boxes an image that the box head learns from")


DETECTRON2_INSTALL = (
    "python -m pip install setuptools && "
    "python -m pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)


class Detectron2(Settings):
    """A model that detectron2 builds from one of its own configurations."""

    backend: ClassVar[str] = "detectron2"
    kind: Literal["detectron2"] = Field(description="the network by name")
    config: str = Field(description="one of detectron2's, a path below detectron2/model_zoo/configs")
    changes: dict[str, JsonValue] = Field({}, description="what differs from it, by dotted key: MODEL.RPN.NMS_THRESH")


class BottomUp(Settings):
    """The bottom-up-attention detector: a Caffe ResNet-101 C4 with 1,600 classes and 400 attributes (Anderson et al.
    2018, models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt), in PyTorch alone.

    `geometry`: how boxes are measured. `caffe`: anchors and widths in whole pixels (x2 − x1 + 1), boxes end at W − 1,
    proposals are at least 16 pixels of the image large. `detectron2`: py-bottom-up-attention's anchors, which lie half
    a stride further up and left, widths x2 − x1, boxes end at W.
    """

    backend: ClassVar[str] = "bottom_up"
    kind: Literal["bottom_up_c4"] = Field(description="the network by name")
    blocks: tuple[int, int, int, int] = Field((3, 4, 23, 3), description="residual blocks of res2 to res5")
    width: int = Field(64, ge=1, description="channels of the stem; features are 32 times as wide")
    rpn_channels: int = Field(512, ge=1, description="channels of the RPN's convolution")
    pooled: int = Field(14, ge=1, description="side of RoI pooling's output")
    geometry: Literal["caffe", "detectron2"] = Field(
        "caffe", description="how boxes are measured: in whole pixels, or not"
    )
    proposals: int = Field(300, ge=1, description="left by the RPN's suppression at most")
    before_nms: int = Field(6000, ge=1, description="proposals that go into the RPN's suppression")
    rpn_iou: float = Field(0.7, gt=0, le=1, description="overlap above which the weaker proposal goes")
    rows: int = Field(60, ge=1, description="RoIs that go through the box head at once, always so many")


class NotRunnable(Settings):
    """A model that vbert can't run. Its features can be imported; its spec describes how they were made."""

    backend: ClassVar[str] = "elsewhere"
    kind: Literal["elsewhere"] = Field(description="the network by name")
    model: str = Field(description="in the words of its own project")


Architecture = Annotated[
    PlainCnn | TorchvisionFasterRcnn | Detectron2 | BottomUp | NotRunnable, Field(discriminator="kind")
]
