"""Detectors: what one is (spec), what one does (protocol), where its weights lie (artifact), who runs it (backends).

A further backend is one module and one line in BACKENDS; a further architecture of one is a settings class here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

from pydantic import Field, model_validator

from vbert.artifacts.artifact import Artifact
from vbert.artifacts.errors import BuildError, UserError, nearest
from vbert.artifacts.settings import Plugin, Settings, Wiring
from vbert.regions.boxes import BoxRule, Nms
from vbert.regions.contract import Contract, Layer, Preprocessing
from vbert.training.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

SPECS = Path(__file__).resolve().parents[2] / "data_specs" / "detectors"

# name → (module, version); the version is raised by hand when a backend starts to make other features.
BACKENDS = {"torchvision": ("vbert.regions.torchvision", 1)}


class PlainCnn(Settings):
    """A small Faster R-CNN of torchvision's parts over a plain CNN with maps at strides 4 and 8.

    `anchors`: sides in pixels, for the map at stride 4 and that at stride 8. RoIs are pooled from the map at stride 4.
    """

    kind: Literal["plain_cnn"] = "plain_cnn"
    channels: tuple[int, int, int] = (32, 64, 128)  # at strides 2, 4, 8
    depth: tuple[int, int] = (2, 2)  # 3×3 convolutions at strides 4 and 8
    anchors: tuple[tuple[float, ...], tuple[float, ...]] = ((10, 16), (24, 34))
    ratios: tuple[float, ...] = (0.6, 1.0, 1.6)
    pooled: int = Field(5, ge=1)  # RoIAlign output side
    samples: int = Field(1, ge=1)  # and its samples a bin, along each side
    hidden: int = Field(256, ge=1)  # width of fc6 and fc7
    proposals: int = Field(50, ge=1)  # rows of the box head, always
    before_nms: int = Field(200, ge=1)  # anchors a map that go into the RPN's suppression
    rpn_iou: float = Field(0.7, gt=0, le=1)

    @model_validator(mode="after")
    def _alike(self) -> PlainCnn:
        if len(self.anchors[0]) != len(self.anchors[1]):
            raise ValueError("anchors: both maps share one RPN head and need equally many sizes")
        return self


class _Fields(Settings):
    name: str
    architecture: PlainCnn
    layer: Layer
    dim: int = Field(ge=1)
    classes: tuple[str, ...] | None = None  # None: those of the boxes it is trained on, sorted
    attributes: tuple[str, ...] = ()  # known to the attribute head; none: no such head
    features_of: Literal["proposals", "regressed"] = "proposals"
    preprocessing: Preprocessing = Preprocessing()
    nms: Nms = Nms()


class DetectorSpec(_Fields):
    """What a detector is, but for its weights: enters fingerprints."""

    backend: Plugin


class DetectorFile(_Fields):
    """A file of data_specs/detectors: the detector, and what is told about it."""

    backend: Literal["torchvision"]
    title: str
    licence: str
    homepage: str | None = None
    boxes: BoxRule  # the rule where a recipe names none

    def spec(self) -> DetectorSpec:
        fields = {name: getattr(self, name) for name in _Fields.model_fields}
        return DetectorSpec(backend=backend(self.backend), **fields)


def detector_names() -> list[str]:
    return sorted(path.stem for path in SPECS.glob("*.yaml"))


def detector_file(name: str) -> DetectorFile:
    """The spec data_specs/detectors/NAME.yaml. Raises UserError for an unknown name or a faulty file."""
    from vbert.data.yaml import read_yaml

    if name not in detector_names():
        raise UserError(f"no detector {name!r} in data_specs/detectors; {nearest(name, detector_names())}")
    found = read_yaml(SPECS / f"{name}.yaml", DetectorFile)
    if found.name != name:
        raise UserError(f"data_specs/detectors/{name}.yaml: name: {found.name!r} must be the file's, {name!r}")
    return found


class RegionSettings(Settings):
    """`boxes` and `nms` default to the detector's spec; `resolved` fills them in before they are hashed."""

    boxes: BoxRule | None = None
    nms: Nms | None = None
    images_per_shard: int = Field(500, ge=1)
    quarantine: float = Field(0.01, ge=0, le=1, description="share of broken images above which the stage fails")

    def resolved(self, detector: DetectorFile) -> RegionSettings:
        return self.model_copy(update={"boxes": self.boxes or detector.boxes, "nms": self.nms or detector.nms})


class DetectorTraining(Schedule):
    """How a detector is trained on a collection with boxes."""

    data: Annotated[str, Wiring]
    steps: int = Field(900, ge=0)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    attribute_weight: float = Field(0.5, ge=0, description="of the attribute head's loss")
    flip: float = Field(0.5, ge=0, le=1, description="share of images mirrored left to right")


@dataclass(frozen=True)
class Prepared:
    """An image as the detector takes it: `pixels` float32 [3, h, w], made of width × height pixels as shown."""

    pixels: Tensor
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input per pixel of the image, along x and y."""
        return self.pixels.shape[2] / self.width, self.pixels.shape[1] / self.height


@dataclass(frozen=True)
class Candidates:
    """What a detector says of one image's P proposals; boxes x1 y1 x2 y2 in pixels of the image as shown."""

    boxes: Tensor  # [P, 4] float32: the proposals
    scores: Tensor  # [P, C] float32: probabilities of the classes, background left out
    regressed: Tensor  # [P, C, 4] float32: boxes by class
    features: Tensor  # [P, d] float32: of the proposals, at the contract's layer
    attributes: Tensor | None  # [P, A] float32: probabilities


class Detector(Protocol):
    """A detector ready to run. Everything about an image is a function of that image alone."""

    classes: Sequence[str]
    attributes: Sequence[str]

    def prepare(self, image: Image.Image) -> Prepared: ...

    def detect(self, batch: Sequence[Prepared]) -> list[Candidates]:
        """One forward over inputs of equal size."""
        ...

    def describe(self, batch: Sequence[Prepared], boxes: Sequence[Tensor]) -> list[Candidates]:
        """The same of given boxes ([n, 4] float32, pixels as shown, any n) in place of proposals."""
        ...


class Backend(Protocol):
    """What a backend's module offers."""

    def network(self, spec: DetectorSpec, classes: int) -> nn.Module:
        """Untrained, deterministic from torch's generator. In training mode its forward gives losses."""
        ...

    def detector(
        self, spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str
    ) -> Detector: ...


def backend(name: str) -> Plugin:
    """Name and version of a backend, as they enter fingerprints."""
    return Plugin(name=name, version=BACKENDS[name][1])


def load_backend(name: str) -> Backend:
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
        from safetensors.torch import load_file

        spec = self.spec()
        tensors = load_file(self.file("weights.safetensors"))
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
            dtype="float16",
            boxes=settings.boxes,
            nms=settings.nms,
            features_of="given" if given else spec.features_of,
            preprocessing=spec.preprocessing,
        )

    def curves(self) -> list[dict[str, float]]:
        """Figures by training step; empty for weights that came from elsewhere."""
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
