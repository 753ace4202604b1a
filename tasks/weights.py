"""Stage `weights`: a detector's published weights, or your own, checked and brought into one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from shutil import copyfileobj, rmtree
from typing import TYPE_CHECKING

from vbert.artifacts.steps.stage import Build, Figures, Job, stage
from vbert.data.raw import RawFiles
from vbert.errors import UserError
from vbert.regions.detector import DetectorSpec, DetectorWeights

if TYPE_CHECKING:
    from vbert.regions.detector import DetectorCheckpoint


@stage("weights", makes=DetectorWeights, version=1, through=False, early=True)
def weights(build: Build, files: Mapping[str, RawFiles], spec: DetectorSpec) -> Figures:
    """`files`: the sources of the spec's `weights`, one file each; or under `weights` the folder of another one."""
    return build.process(make_weights, files, spec)


def make_weights(job: Job, files: Mapping[str, RawFiles], spec: DetectorSpec) -> Figures:
    """Brings the files to scratch, has the backend read them, and writes a `DetectorWeights`."""
    from vbert.regions.detector import write_weights

    if "weights" not in files:
        raise UserError(f"detector {spec.name}: no source `weights`, there are {', '.join(files)}")
    checkpoint = own_form(job, files["weights"], spec) or read_published(job, files, spec)
    named = spec.model_copy(update={"attributes": tuple(checkpoint.attributes)})
    write_weights(job.directory, named, checkpoint.classes, checkpoint.tensors)
    return {
        "tensors": len(checkpoint.tensors),
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "classes": len(checkpoint.classes),
        "attributes": len(checkpoint.attributes),
    }


def own_form(job: Job, raw: RawFiles, spec: DetectorSpec) -> DetectorCheckpoint | None:
    """The checkpoint in the files of a `DetectorWeights` of a training; None where `raw` holds something else."""
    from vbert.data.weight_files import read_weights
    from vbert.regions.detector import DetectorCheckpoint, load_backend

    names = {name.rpartition("/")[2]: name for name in raw.members()}
    if not {"detector.json", "weights.safetensors"} <= names.keys():
        return None
    try:
        about = json.loads(raw.read(names["detector.json"]))
        theirs, classes = DetectorSpec.model_validate(about["spec"]), [str(name) for name in about["classes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{raw.title}: detector.json is not one that a training here wrote ({reason:.200})") from None
    if theirs.architecture != spec.architecture:
        raise UserError(f"{raw.title}: weights of {theirs.name}, whose architecture is not that of {spec.name}")
    path = job.scratch / "own" / "weights.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with raw.open(names["weights.safetensors"]) as source, path.open("wb") as copy:
        copyfileobj(source, copy, 1 << 20)
    try:
        checkpoint = DetectorCheckpoint(classes, theirs.attributes, read_weights(path))
    finally:
        rmtree(path.parent)
    named = spec.model_copy(update={"attributes": theirs.attributes})
    try:
        load_backend(spec.backend.name).detector(named, checkpoint.classes, checkpoint.tensors, "cpu")
    except RuntimeError as error:  # torch's error for tensors that are missing or of another shape
        raise UserError(f"{raw.title}: not the weights of {spec.name}: {' '.join(str(error).split())}") from None
    return checkpoint


def read_published(job: Job, files: Mapping[str, RawFiles], spec: DetectorSpec) -> DetectorCheckpoint:
    """The published weights, read by the backend."""
    from vbert.data.raw import copy_only
    from vbert.regions.detector import load_backend

    wanted = f"the weights of {spec.name}"
    paths = {key: copy_only(raw, job.scratch / key, wanted) for key, raw in files.items()}
    try:
        return load_backend(spec.backend.name).read_published(spec, paths)
    finally:
        for path in paths.values():
            rmtree(path.parent)
