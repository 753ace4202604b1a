"""The torchvision backend: chooses the module that builds and runs an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vbert.errors import UserError
from vbert.regions.backends import plain_cnn, torchvision_fpn, torchvision_weights
from vbert.regions.detector import Detector, DetectorCheckpoint, DetectorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def _module(spec: DetectorSpec) -> ModuleType:
    return plain_cnn if spec.architecture.kind == "plain_cnn" else torchvision_fpn


def network(spec: DetectorSpec, classes: int) -> nn.Module:
    """See `vbert.regions.detector.Backend`."""
    built: nn.Module = _module(spec).network(spec, classes)
    return built


def detector(spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str) -> Detector:
    """See `vbert.regions.detector.Backend`."""
    ready: Detector = _module(spec).detector(spec, classes, tensors, device)
    return ready


def read_published(spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
    """See `vbert.regions.detector.Backend`. `files`: `weights` and, where the spec doesn't know them, `classes`."""
    if spec.architecture.kind == "plain_cnn":
        raise UserError(
            f"detector {spec.name}: architecture {spec.architecture.kind} has no published weights: train it"
        )
    return torchvision_weights.read_published(spec, files)


def read_start(spec: DetectorSpec, fresh: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """See `vbert.regions.detector.Backend`. `path`: a classifier on the same backbone, or a detector of its kind."""
    if spec.architecture.kind == "plain_cnn":
        raise UserError(
            f"detector {spec.name}: architecture {spec.architecture.kind} starts from nothing; leave it out"
        )
    return torchvision_weights.read_start(spec, fresh, path)
