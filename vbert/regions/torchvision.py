"""The torchvision backend: which module builds and runs an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vbert.artifacts.errors import UserError
from vbert.regions import plain_cnn
from vbert.regions.detector import Detector, DetectorSpec, Published

if TYPE_CHECKING:
    from torch import Tensor, nn


def network(spec: DetectorSpec, classes: int) -> nn.Module:
    """See `vbert.regions.detector.Backend`."""
    return plain_cnn.network(spec, classes)


def detector(spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str) -> Detector:
    """See `vbert.regions.detector.Backend`."""
    return plain_cnn.detector(spec, classes, tensors, device)


def published(spec: DetectorSpec, files: Mapping[str, Path]) -> Published:
    """See `vbert.regions.detector.Backend`."""
    raise UserError(f"detector {spec.name}: architecture {spec.architecture.kind} has no published weights: train it")
