"""Stage `weights`: a detector's published weights, or your own, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping

from vbert.artifacts.build import Build, Job
from vbert.artifacts.stage import Figures, stage
from vbert.data.raw import Raw
from vbert.regions.detector import DetectorSpec, DetectorWeights


@stage("weights", makes=DetectorWeights, version=1, through=False)
def weights(build: Build, files: Mapping[str, Raw], spec: DetectorSpec) -> Figures:
    """`files`: the sources of the spec's `weights`, one file each."""
    return build.process(make_weights, files, spec)


def make_weights(job: Job, files: Mapping[str, Raw], spec: DetectorSpec) -> Figures:
    """Brings the files to scratch, has the backend read them, and writes a `DetectorWeights`."""
    from vbert.data.raw import copy_only
    from vbert.regions.detector import load_backend, write_weights

    wanted = f"the weights of {spec.name}"
    paths = {key: copy_only(raw, job.scratch / key, wanted) for key, raw in files.items()}
    try:
        found = load_backend(spec.backend.name).published(spec, paths)
    finally:
        for path in paths.values():
            path.unlink()
    named = spec.model_copy(update={"attributes": tuple(found.attributes)})
    write_weights(job.directory, named, found.classes, found.tensors)
    return {
        "tensors": len(found.tensors),
        "parameters": sum(tensor.numel() for tensor in found.tensors.values()),
        "classes": len(found.classes),
        "attributes": len(found.attributes),
    }
