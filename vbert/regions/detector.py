"""Detectors: the spec (`DetectorSpec`), the protocol (`Detector`), the artifact (`DetectorWeights`), and the backends.

A further backend is one module in `backends/` and one line in BACKENDS; a further architecture is a class in
`architectures.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, cast

from pydantic import Field, model_validator

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Acceptance, Plugin, Removed, Settings, Since, Wiring
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.data.spec_folder import DATA_SPECS, SpecFolder
from vbert.errors import BuildError, UserError
from vbert.regions.architectures import Architecture
from vbert.regions.boxes import BoxRule, Nms, NmsRule
from vbert.regions.candidates import Candidates
from vbert.regions.contract import Contract, Layer, Preprocessing
from vbert.training.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

DETECTORS = SpecFolder(DATA_SPECS / "detectors", "detector")

# name → (module, version); the version is raised by hand when a backend starts to make other features.
BACKENDS = {
    "torchvision": ("vbert.regions.backends.torchvision", 2),
    "detectron2": ("vbert.regions.backends.detectron2", 1),
    "bottom_up": ("vbert.regions.backends.bottom_up", 1),
    "elsewhere": ("", 1),  # runs nothing: it names the maker of imported features
}
TRAINED_HERE = ("torchvision",)  # the backends whose networks can be trained


class _Fields(Settings):
    name: str = Field(description="what it is called")
    architecture: Architecture = Field(description="the network")
    layer: Layer = Field(description="whose output the features are")
    dim: int = Field(ge=1, description="numbers of a feature")
    classes: tuple[str, ...] | None = Field(
        None, description="None: those of the boxes it is trained on, sorted, or of its weights"
    )
    attributes: tuple[str, ...] = Field((), description="known to the attribute head; none: no such head")
    features_of: Literal["proposals", "regressed"] = Field(
        "proposals", description="pooled at proposals, or at the boxes regressed from them"
    )
    preprocessing: Preprocessing = Preprocessing()
    nms: NmsRule = Field(Nms(), description="how overlapping boxes are suppressed")


class DetectorSpec(_Fields):
    """A detector without its weights: enters fingerprints."""

    backend: Plugin = Field(description="who runs it")


class DetectorFile(_Fields):
    """A file of data_specs/detectors: the detector's spec and facts about it.

    `weights`: the published ones, a source a file; the backend defines the keys. `start`: weights that its training
    starts from. `import_only`: why its features can be imported but not made from images.
    """

    backend: Literal["torchvision", "detectron2", "bottom_up", "elsewhere"] = Field(description="who runs it")
    title: str = Field(description="for people")
    licence: str = Field(description="of the weights")
    homepage: str | None = Field(None, description="for people")
    weights: dict[str, Source] = Field({})
    start: Source | None = Field(None, description="a classifier or another detector that training starts from")
    trained_on: tuple[str, ...] = Field(
        (), description="data sets whose training photos the published weights have seen, by the names of their specs"
    )
    import_only: str | None = Field(None, description="why it can be named for imported features but not run")
    boxes: BoxRule = Field(description="which boxes are kept")  # the rule where a recipe names none

    @model_validator(mode="after")
    def _runs_it(self) -> DetectorFile:
        if self.backend != self.architecture.backend:
            raise ValueError(f"architecture {self.architecture.kind} belongs to backend {self.architecture.backend!r}")
        if self.backend == "elsewhere" and not self.import_only:
            raise ValueError("import_only: say why this detector can't be run from images")
        if self.start is not None and self.backend not in TRAINED_HERE:
            raise ValueError(f"start: backend {self.backend!r} trains no detector")
        return self

    def spec(self) -> DetectorSpec:
        fields = {name: getattr(self, name) for name in _Fields.model_fields}
        return DetectorSpec(backend=backend(self.backend), **fields)


def detector_names() -> list[str]:
    return DETECTORS.names()


def detector_file(name: str) -> DetectorFile:
    """The spec data_specs/detectors/NAME.yaml, or that in the file `name` if it ends in `.yaml`; paths in it absolute.

    Raises UserError for an unknown name or a faulty file.
    """
    return DETECTORS.read(name, DetectorFile)


class RegionSettings(Settings):
    """`boxes` and `nms` default to the detector's spec; `resolved` fills them in before they are hashed."""

    boxes: BoxRule | None = Field(None, description="which boxes are kept; none: the detector's own rule")
    nms: NmsRule | None = Field(None, description="how overlapping boxes are suppressed; none: the detector's own")
    images_per_shard: int = Field(500, ge=1, description="images in a shard")
    batch: Annotated[int, Since(1)] = Field(1, ge=1, description="images of one padded size that go through together")
    quarantine: Annotated[float, Acceptance(0.01)] = Field(
        0.01, ge=0, le=1, description="share of images that may be unusable; nothing is extracted again for another one"
    )

    def resolved(self, detector: DetectorFile) -> RegionSettings:
        return self.model_copy(update={"boxes": self.boxes or detector.boxes, "nms": self.nms or detector.nms})


class ExtractionNumerics(Settings):
    """Settings that change the bits of features. `fp16` is for GPUs without bf16."""

    threads: int = Field(1, ge=1, description="operator threads a process")
    processes: ClassVar[Removed] = Removed(
        1, "no feature hung on it; leave it out (machine.units_at_once says how many extract)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the detector: bf16 is faster on a GPU, with other bits"
    )


class DetectorTraining(Schedule):
    """How a detector is trained on a collection with boxes.

    Losses are those of the whole batch. Batch norms that learn, however, take their statistics of the images computed
    at once (batch_size / processes / accumulate), padded to the largest of them.
    """

    data: Annotated[str, Wiring] = Field(description="a name under `data`, with boxes")
    steps: int = Field(900, ge=0, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="images an optimiser step")
    learning_rate: float = Field(2e-3, gt=0, description="the highest")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    attribute_weight: float = Field(0.5, ge=0, description="of the attribute head's loss")
    flip: float = Field(0.5, ge=0, le=1, description="share of images mirrored left to right")
    short_sides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Since(())] = Field(
        (), description="pixels: one of them, drawn for each image and epoch, in place of the spec's short_side"
    )


@dataclass(frozen=True)
class PretrainedDetector:
    """A detector whose training starts from downloaded weights, one file."""

    spec: DetectorSpec
    weights: RawFiles


@dataclass(frozen=True)
class DetectorInput:
    """An image as the detector takes it: `pixels` float32 [3, h, w], made of width × height pixels as shown."""

    pixels: Tensor
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input per pixel of the image, along x and y."""
        return self.pixels.shape[2] / self.width, self.pixels.shape[1] / self.height


@dataclass(frozen=True)
class FeatureMaps:
    """The feature maps of a batch: the detector's inputs, and `maps`, which only the detector reads."""

    inputs: Sequence[DetectorInput]
    maps: Any


class Detector(Protocol):
    """A detector ready to run. Everything about an image is a function of that image alone."""

    classes: Sequence[str]
    attributes: Sequence[str]

    def prepare(self, image: Image.Image) -> DetectorInput: ...

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the padded input that an image of width × height becomes."""
        ...

    def backbone(self, batch: Sequence[DetectorInput], slots: int = 1) -> FeatureMaps:
        """The backbone's maps of at most `slots` inputs of one padded size.

        Always computed on `slots` inputs, padded with zeros: the bits depend on their number.
        """
        ...

    def detect(self, feature_maps: FeatureMaps) -> list[Candidates]:
        """The candidates of each image: its proposals with the box head's output."""
        ...

    def roi_features(self, feature_maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Candidates]:
        """The same for given boxes ([n, 4] float32, pixels as shown, any n an image) in place of proposals."""
        ...


@dataclass(frozen=True)
class DetectorCheckpoint:
    """A detector's downloaded weights: the tensors that `Backend.detector` takes, and the names of classes and
    attributes."""

    classes: Sequence[str]
    attributes: Sequence[str]
    tensors: Mapping[str, Tensor]


class Backend(Protocol):
    """The interface of a backend's module."""

    def network(self, spec: DetectorSpec, classes: int) -> nn.Module:
        """Untrained, deterministic from torch's generator. In training mode its forward gives losses."""
        ...

    def detector(
        self, spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str
    ) -> Detector: ...

    def read_published(self, spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
        """A published checkpoint, converted to the network's own names. `files`: those of the spec's `weights`.

        Raises UserError naming what is missing, unexpected or of another shape.
        """
        ...

    def read_start(self, spec: DetectorSpec, fresh: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The tensors `fresh` of an untrained network, replaced by those of the file `path` that fit.

        Raises UserError as `read_published` does.
        """
        ...


def backend(name: str) -> Plugin:
    """Name and version of a backend, as they enter fingerprints."""
    return Plugin(name=name, version=BACKENDS[name][1])


def load_backend(name: str) -> Backend:
    """The module of a backend. Raises UserError for `elsewhere`, which has none."""
    if name == "elsewhere":
        raise UserError("this detector is run elsewhere: its features can be imported, but not made from images")
    return cast(Backend, import_module(BACKENDS[name][0]))


class DetectorWeights(Artifact):
    """`weights.safetensors` and `detector.json` (spec, classes); of a trained one also curves.jsonl and evaluation."""

    def about(self) -> dict[str, Any]:
        return json.loads(self.file("detector.json").read_bytes())  # type: ignore[no-any-return]

    def spec(self) -> DetectorSpec:
        return DetectorSpec.model_validate(self.about()["spec"])

    def classes(self) -> list[str]:
        return list(self.about()["classes"])

    def digest(self) -> str:
        """sha256 of the weights."""
        import hashlib

        with open(self.file("weights.safetensors"), "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    def load(self, device: str = "cpu") -> Detector:
        """The detector on `device`, in evaluation mode."""
        from vbert.data.weight_files import read_safetensors

        spec = self.spec()
        tensors = read_safetensors(self.file("weights.safetensors"))
        return load_backend(spec.backend.name).detector(spec, self.classes(), tensors, device)

    def contract(self, settings: RegionSettings) -> Contract:
        """The contract of features extracted with resolved `settings`."""
        spec = self.spec()
        if settings.boxes is None or settings.nms is None:
            raise BuildError("regions: box rule and nms must be resolved against the detector's spec first")
        given = settings.boxes.rule == "given"
        return Contract(
            detector=spec.name,
            backend=backend(spec.backend.name),
            weights=self.digest(),
            layer=spec.layer,
            dim=spec.dim,
            boxes=settings.boxes,
            nms=settings.nms,
            features_of="given" if given else spec.features_of,
            preprocessing=spec.preprocessing,
        )

    def curves(self) -> list[dict[str, float]]:
        """Figures by training step; empty for downloaded weights."""
        return self._lines("curves.jsonl")

    def detections(self) -> list[dict[str, Any]]:
        """Detections on some held-out images: image_id, width, height, boxes, classes, scores, attributes, truth."""
        return self._lines("detections.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        if name not in self.names():
            return []
        return [json.loads(line) for line in self.file(name).read_text(encoding="utf-8").splitlines()]


def write_weights(
    directory: Path, spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write the files of DetectorWeights into `directory`; equal tensors are equal bytes."""
    from safetensors.torch import save_file

    save_file(
        {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, directory / "weights.safetensors"
    )
    about = {"spec": spec.model_dump(mode="json"), "classes": list(classes)}
    (directory / "detector.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
