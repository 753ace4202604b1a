"""The detectron2 backend: models that detectron2 builds from its own configurations, and their published weights.

detectron2 is optional and in no registry. Its `model_zoo` module is not used: it needs pkg_resources, which current
setuptools no longer brings; its configurations are read as the files they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vbert.data.weight_files import read_weights, some_of
from vbert.errors import UserError, nearest
from vbert.regions.architectures import DETECTRON2_INSTALL, Detectron2
from vbert.regions.detector import Detector, DetectorCheckpoint, DetectorSpec

HEADS = {"StandardROIHeads": ("fc6", "fc7"), "Res5ROIHeads": ("res5_pool",)}
# Prefixes of tensors in zoo files that a detector of boxes doesn't use.
UNUSED = (
    "pixel_mean",
    "pixel_std",
    "proposal_generator.anchor_generator.",
    "roi_heads.mask_head.",
    "roi_heads.keypoint_head.",
)
CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"


def network(spec: DetectorSpec, classes: int) -> nn.Module:
    """detectron2's own GeneralizedRCNN without masks and keypoints, untrained, drawn from torch's generator.

    Raises UserError where detectron2 is missing or has no such model.
    """
    config = configuration(spec, classes)
    from detectron2.modeling import build_model

    model: nn.Module = build_model(config)
    _check_layer(spec, model)
    return model


def detector(spec: DetectorSpec, classes: Sequence[str], tensors: Mapping[str, Tensor], device: str) -> Detector:
    """See `vbert.regions.detector.Backend`."""
    from vbert.regions.backends.detectron2_detector import Detectron2Detector

    with torch.random.fork_rng(devices=[]):
        model = network(spec, len(classes))
    _compare(f"detector {spec.name}: other weights", tensors, model.state_dict())
    model.load_state_dict(dict(tensors), strict=False)
    return Detectron2Detector(spec, classes, model, device)


def read_published(spec: DetectorSpec, files: Mapping[str, Path]) -> DetectorCheckpoint:
    """A checkpoint of detectron2: a `.pkl` of its model zoo, a `.pth` of its trainer, or its tensors as `.safetensors`.

    Raises UserError naming the tensors that are missing, unexpected or of another shape.
    """
    path = files["weights"]
    tensors = {name: tensor for name, tensor in read_weights(path).items() if _used(name)}
    if CLASSIFIER not in tensors:
        raise UserError(f"{path.name}: has no tensor {CLASSIFIER}, so these are not the weights of a detectron2 R-CNN")
    count = len(tensors[CLASSIFIER]) - 1  # the last one is the background
    if spec.classes is None or len(spec.classes) != count:
        named = "none" if spec.classes is None else len(spec.classes)
        raise UserError(
            f"{path.name}: these weights know {count} classes, the spec {spec.name} names {named}; name them in "
            "`classes` of a spec of your own, in their order"
        )
    with torch.random.fork_rng(devices=[]):
        wanted = network(spec, count).state_dict()
    _compare(f"{path.name}: not the weights of {spec.name}", tensors, wanted)
    return DetectorCheckpoint(spec.classes, (), tensors)


def _used(name: str) -> bool:
    return not name.startswith(UNUSED) and not name.endswith(".num_batches_tracked")


def _compare(name: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    tensors, wanted = ({name: t for name, t in state.items() if _used(name)} for state in (tensors, wanted))
    shapes = {name: (tuple(tensors[name].shape), tuple(wanted[name].shape)) for name in tensors.keys() & wanted.keys()}
    faults = [
        ("missing", sorted(wanted.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - wanted.keys())),
        ("of another shape", [f"{n} {a} for {b}" for n, (a, b) in sorted(shapes.items()) if a != b]),
    ]
    parts = [f"{len(names)} tensors {fault} ({some_of(names)})" for fault, names in faults if names]
    if parts:
        details = [f"{fault}: {name}" for fault, names in faults for name in names]
        raise UserError(
            f"{name}: {'; '.join(parts)}; check `architecture` and `weights` of the spec", "\n".join(details)
        )


def configuration(spec: DetectorSpec, classes: int) -> Any:
    """detectron2's CfgNode of the spec's architecture, for a detector of boxes on the CPU. Raises UserError."""
    try:
        import detectron2
        from detectron2.config import get_cfg
        from yaml import YAMLError  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(
            f"detector {spec.name} needs detectron2, which can't be imported ({error}); "
            f"install it: {DETECTRON2_INSTALL}"
        ) from None
    asked = spec.architecture
    assert isinstance(asked, Detectron2)
    root = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.yaml")]
    if asked.config not in names:
        raise UserError(
            f"detector {spec.name}: detectron2 has no config {asked.config!r}; {nearest(asked.config, names)}"
        )
    config = get_cfg()
    try:
        config.merge_from_file(str(root / asked.config), allow_unsafe=False)
    except YAMLError as error:  # some run code
        raise UserError(f"detector {spec.name}: config {asked.config} is not plain YAML: {error}") from None
    for key, value in asked.changes.items():
        try:
            config.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"detector {spec.name}: changes: {key}: {value!r} is refused by detectron2: {error}"
            ) from None
    config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.MASK_ON", False])
    config.merge_from_list(["MODEL.KEYPOINT_ON", False, "MODEL.ROI_HEADS.NUM_CLASSES", classes])
    _check_parts(spec, config.MODEL)
    return config


def _check_parts(spec: DetectorSpec, model: Any) -> None:
    parts: dict[str, tuple[object, list[object]]] = {
        "META_ARCHITECTURE": (model.META_ARCHITECTURE, ["GeneralizedRCNN"]),
        "PROPOSAL_GENERATOR.NAME": (model.PROPOSAL_GENERATOR.NAME, ["RPN"]),
        "RPN.HEAD_NAME": (model.RPN.HEAD_NAME, ["StandardRPNHead"]),
        "ROI_HEADS.NAME": (model.ROI_HEADS.NAME, list(HEADS)),
        "ROI_BOX_HEAD.POOLER_TYPE": (model.ROI_BOX_HEAD.POOLER_TYPE, ["ROIAlign", "ROIAlignV2"]),
        "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO, [0]),
    }
    for key, (value, known) in parts.items():
        if value not in known:
            kinds = ", ".join(str(one) for one in known)
            raise UserError(
                f"detector {spec.name}: MODEL.{key} is {value!r} in its config; region features need {kinds}"
            )
    layers = HEADS[model.ROI_HEADS.NAME]
    if spec.layer not in layers:
        raise UserError(
            f"detector {spec.name}: layer: {model.ROI_HEADS.NAME} has {' and '.join(layers)}, not {spec.layer}"
        )


def _check_layer(spec: DetectorSpec, model: Any) -> None:
    if spec.layer == "res5_pool":
        dim = model.roi_heads.res5[-1].conv3.out_channels
    else:
        widths = [layer.out_features for layer in model.roi_heads.box_head if isinstance(layer, nn.Linear)]
        if len(widths) != 2:
            raise UserError(f"detector {spec.name}: its box head has {len(widths)} linear layers, not fc6 and fc7")
        dim = widths[0 if spec.layer == "fc6" else 1]
    if dim != spec.dim:
        raise UserError(f"detector {spec.name}: dim: its {spec.layer} gives {dim} numbers a region, not {spec.dim}")
