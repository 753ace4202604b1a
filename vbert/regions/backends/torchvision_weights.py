"""State dicts of torchvision's detectors as files: read without running code and checked against the network, as
weights or as a start of training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from vbert.data.weight_files import class_lines, read_weights, some_of
from vbert.errors import UserError
from vbert.regions.backends.torchvision_fpn import MOBILE, V2, network
from vbert.regions.detector import DetectorCheckpoint

if TYPE_CHECKING:
    from vbert.regions.detector import DetectorSpec

PREDICTOR = "roi_heads.box_predictor."
CLASSIFIER = f"{PREDICTOR}cls_score.weight"
BODY = "backbone.body."
KNOWN = (V2, MOBILE, "fasterrcnn_resnet50_fpn", "resnet50", "mobilenet_v3_large")
LAST = (
    PREDICTOR,
    "roi_heads.attributes.",
    f"{BODY}fc.",
    f"{BODY}classifier.",
)  # not kept from a start

# torchvision's names until 0.13, which its published files still have.
OLD_NAMES = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.[0-9]+)\.(weight|bias)"), r"\1.0.\2"),
)


def read_published(spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
    """The weights in `files["weights"]` by the network's names, float32, and the names of their classes.

    These are those in `files["classes"]` (a text, one a line), else the spec's. Raises UserError for a file that is no
    plain state dict, whose tensors are not the network's, or whose classes nobody names.
    """
    path = files["weights"]
    tensors = state_dict(path)
    if CLASSIFIER not in tensors or tensors[CLASSIFIER].dim() != 2:
        raise UserError(
            f"{path.name}: has no tensor {CLASSIFIER!r}, so it is no torchvision Faster R-CNN; detector {spec.name} "
            f"wants the state dict of a {spec.architecture.kind}"
        )
    count = len(tensors[CLASSIFIER]) - 1
    classes = _classes(spec, files, count, path)
    with torch.random.fork_rng(devices=[]):
        wanted = network(spec, count).state_dict()
    return DetectorCheckpoint(
        classes, spec.attributes, checked(tensors, wanted, f"{path.name} for detector {spec.name}")
    )


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of the file (see `vbert.data.weight_files`), names of old torchvision versions made today's.

    Raises UserError for anything else.
    """
    _check_digest(path)
    return {_today(name): value for name, value in read_weights(path).items()}


def _today(name: str) -> str:
    for old, new in OLD_NAMES:
        if old.fullmatch(name):
            return old.sub(new, name)
    return name


def checked(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`tensors` in the types of `wanted`, whose names and shapes they must have. Raises UserError naming what differs.

    Counters of batches that norms saw (`num_batches_tracked`) may be missing or in excess: no figure depends on them.
    """
    counters = {name for name in (*tensors, *wanted) if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - tensors.keys() - counters)
    unexpected = sorted(tensors.keys() - wanted.keys() - counters)
    shared = [name for name in wanted if name in tensors]
    misshapen = [
        f"{name} {list(tensors[name].shape)} in place of {list(wanted[name].shape)}"
        for name in shared
        if tensors[name].shape != wanted[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults_listed = [f"{len(names)} tensors {fault}: {some_of(names)}" for fault, names in faults.items() if names]
    if faults_listed:
        details = "\n".join(f"{fault}: {name}" for fault, names in faults.items() for name in names)
        raise UserError(
            f"{where}: {'; '.join(faults_listed)}; is it a file of the architecture that the spec names?", details
        )
    return {name: (tensors[name] if name in tensors else wanted[name]).to(wanted[name].dtype) for name in wanted}


def read_start(spec: DetectorSpec, fresh: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors `fresh` of an untrained network, with those of the file `path` in their places.

    The file is a classifier on the same backbone, as torchvision publishes them for ImageNet, or a detector of the same
    kind, of whatever classes; its last layers are left out. Raises UserError for any other.
    """
    tensors = state_dict(path)
    if CLASSIFIER not in tensors:
        tensors = {f"{BODY}{name.removeprefix('features.')}": value for name, value in tensors.items()}
    own = [name for name in fresh if name.startswith(BODY) or CLASSIFIER in tensors]
    own_tensors = {name: fresh[name] for name in own if not name.startswith(LAST)}
    given = {name: value for name, value in tensors.items() if not name.startswith(LAST)}
    return dict(fresh) | checked(given, own_tensors, f"{path.name} to start detector {spec.name} from")


def _check_digest(path: Path) -> None:
    """torchvision's own files bear the first 8 hex digits of their sha256 in their names."""
    known = {weights.url.rpartition("/")[2] for model in KNOWN for weights in get_model_weights(model)}
    name = path.name
    if name in known:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        expected = name.rpartition("-")[2].partition(".")[0]
        if not digest.startswith(expected):
            raise UserError(
                f"{name}: its sha256 begins with {digest[:8]}, not with {expected} as its name says: it is damaged or "
                f"another file; fetch it again, or give your own weights another name"
            )


def _classes(spec: DetectorSpec, files: Mapping[str, Path], count: int, path: Path) -> list[str]:
    if "classes" in files:
        names = [line for line in class_lines(files["classes"]) if line != "__background__"]
        source = f"{files['classes'].name} names"
    elif spec.classes is not None:
        names, source = list(spec.classes), f"detector {spec.name} knows"
    else:
        names, source = [], f"detector {spec.name} knows"
    if len(names) != count:
        raise UserError(
            f"{path.name}: scores {count} classes, but {source} {len(names)}; name them in a detector spec of your "
            f"own, under `classes`, or in a text file, one a line, given there as `weights: {{classes: {{path: …}}}}`"
        )
    return names
