"""The bottom-up-attention backend: the detector whose region features LXMERT, UNITER and BAN were trained on.

Features are those of the proposals, also for the boxes that are regressed from them (as in the source); features of
given boxes are those of the given boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vbert.errors import UserError
from vbert.regions.architectures import BottomUp
from vbert.regions.backends.bottom_up_network import BottomUpNetwork, apply_deltas, clipped
from vbert.regions.backends.box_head import padded_rows
from vbert.regions.candidates import Candidates
from vbert.regions.detector import DetectorCheckpoint, DetectorInput, DetectorSpec, FeatureMaps
from vbert.regions.pixels import prepare, resize_factor, stacked, target_size


class BottomUpDetector:
    """See `vbert.regions.detector.Detector`."""

    def __init__(self, spec: DetectorSpec, classes: Sequence[str], network: BottomUpNetwork, device: str) -> None:
        self.spec, self.device = spec, device
        self.classes: Sequence[str] = classes
        self.attributes: Sequence[str] = spec.attributes
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)
        self.settings = network.settings
        self.more = 1.0 if self.settings.geometry == "caffe" else 0.0

    def prepare(self, image: Image.Image) -> DetectorInput:
        return prepare(image, self.spec.preprocessing)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return target_size(width, height, self.spec.preprocessing)

    @torch.inference_mode()
    def backbone(self, batch: Sequence[DetectorInput], slots: int = 1) -> FeatureMaps:
        return FeatureMaps(batch, self.network.backbone(stacked(batch, slots, 1, self.device)))

    @torch.inference_mode()
    def detect(self, feature_maps: FeatureMaps) -> list[Candidates]:
        odds, deltas = self.network.rpn(feature_maps.maps)
        candidates = []
        for i, prepared in enumerate(feature_maps.inputs):
            height, width = prepared.pixels.shape[1:]
            scale = min(self._scale(prepared))
            proposals = self.network.rpn.propose(
                odds[i], deltas[i], feature_maps.maps.shape[2:], (height, width), scale
            )
            if not len(proposals):
                proposals = torch.tensor([[0.0, 0.0, width - self.more, height - self.more]], device=self.device)
            candidates.append(self._candidates(feature_maps.maps[i : i + 1], prepared, proposals))
        return candidates

    @torch.inference_mode()
    def roi_features(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Candidates]:
        return [
            self._candidates(feature_maps.maps[i : i + 1], p, mine.to(self.device) * self._scales(p))
            for i, (p, mine) in enumerate(zip(feature_maps.inputs, boxes, strict=True))
        ]

    def _scale(self, prepared: DetectorInput) -> tuple[float, float]:
        """Pixels of the input per pixel of the image. Caffe's code has one factor for both, and rounds no size."""
        if self.spec.preprocessing.resize != "opencv":
            return prepared.scale
        factor = resize_factor(prepared.width, prepared.height, self.spec.preprocessing)
        return factor, factor

    def _scales(self, prepared: DetectorInput) -> Tensor:
        return torch.tensor(self._scale(prepared) * 2, device=self.device)

    def _candidates(self, maps: Tensor, prepared: DetectorInput, boxes: Tensor) -> Candidates:
        """The candidates for boxes [n, 4] in pixels of the input. Boxes are regressed in pixels of the image, as in
        Caffe's code."""
        features, logits, deltas, *attributes = self._head(maps, boxes)
        mine = boxes / self._scales(prepared)
        regressed = clipped(apply_deltas(mine, deltas, self.more), prepared.width, prepared.height, self.more)
        return Candidates(
            boxes=mine,
            scores=logits.softmax(1)[:, 1:],
            regressed=regressed,
            features=features,
            attributes=attributes[0].softmax(1)[:, 1:] if attributes else None,
        )

    def _head(self, maps: Tensor, boxes: Tensor) -> list[Tensor]:
        rows = self.settings.rows
        parts = []
        for chunk in torch.split(boxes, rows):
            out = self.network.head(maps, padded_rows(chunk, rows))
            parts.append([t[: len(chunk)] for t in out])
        return [torch.cat(column) for column in zip(*parts, strict=True)]


def network(spec: DetectorSpec, classes: int) -> BottomUpNetwork:
    """An untrained network. Raises UserError for a spec whose `dim` or `layer` isn't its."""
    assert isinstance(spec.architecture, BottomUp)
    if spec.layer != "res5_pool" or spec.dim != 32 * spec.architecture.width:
        raise UserError(
            f"detector {spec.name}: layer {spec.layer}, dim {spec.dim}: this architecture's features are res5_pool, of "
            f"{32 * spec.architecture.width} numbers"
        )
    return BottomUpNetwork(spec.architecture, classes, len(spec.attributes))


def detector(
    spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str
) -> BottomUpDetector:
    """The detector of `spec` with the weights `tensors`."""
    with torch.device("meta"):
        whole = network(spec, len(classes))
    whole.load_state_dict(dict(tensors), assign=True)
    with torch.no_grad():
        whole.fold()
    return BottomUpDetector(spec, classes, whole, device)


def read_published(spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
    """See `vbert.regions.detector.Backend`. `files`: weights, and optionally classes and attributes (a name a line)."""
    from vbert.regions.backends.bottom_up_weights import read

    return read(spec, files)
