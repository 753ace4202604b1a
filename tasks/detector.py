"""Stage `detector`: a detector trained on a collection with boxes."""

from __future__ import annotations

from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Build, Cost, Figures, Job, stage
from vbert.data.images import Images
from vbert.regions.detector import DetectorSpec, DetectorTraining, DetectorWeights, PretrainedDetector


@stage(
    "detector",
    makes=DetectorWeights,
    version=3,
    retries=1,
    cost=Cost(seconds_by=("training.steps", "training.batch_size")),
)
def detector(
    build: Build,
    images: Images,
    spec: DetectorSpec | PretrainedDetector,
    training: DetectorTraining,
    numerics: Numerics,
    seed: int,
) -> Figures:
    """Train `spec` on the training split of `images`, evaluate it on test, or on val where test has no boxes."""
    return build.process(_train, images, spec, training, numerics, seed, processes=numerics.processes)


def _train(
    job: Job,
    images: Images,
    spec: DetectorSpec | PretrainedDetector,
    training: DetectorTraining,
    numerics: Numerics,
    seed: int,
) -> Figures:
    from vbert.regions.training import train_detector

    return train_detector(job, images, spec, training, numerics, seed)
