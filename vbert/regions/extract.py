"""From images to shards. The plan is fixed before work starts, and a shard is a function of its images alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vbert.device import device_name, device_of
from vbert.errors import BuildError, UserError
from vbert.regions.prefetch import prepared_ahead, run_ahead
from vbert.regions.shards import FLOAT16_MAX

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.steps.stage import Job
    from vbert.data.images import BadImage, Images
    from vbert.regions.boxes import Detections
    from vbert.regions.candidates import Candidates
    from vbert.regions.detector import (
        Detector,
        DetectorInput,
        DetectorSpec,
        DetectorWeights,
        ExtractionNumerics,
        RegionSettings,
    )
    from vbert.regions.shards import RegionSample, Shards

AHEAD = 4  # samples made ahead of the writer
TELL_EVERY = 0.2  # seconds between two reports of a unit's progress


class ImageJob(NamedTuple):
    """An image of a unit; `reuse`: (index of the earlier shards that have its regions, its id there)."""

    image_id: str
    path: str
    sha256: str
    width: int
    height: int
    reuse: tuple[int, str] | None = None


@dataclass(frozen=True)
class ShardUnit:
    """The work of one shard."""

    shard: int
    images: Sequence[ImageJob]


def shard_plan(table: pa.Table, images_per_shard: int, earlier: Sequence[Shards] = ()) -> list[tuple[str, ShardUnit]]:
    """Units by key: the images by sorted id, `images_per_shard` at a time."""
    names = ("image_id", "path", "sha256", "width", "height")
    reusable_from = _reusable_regions(table, earlier)
    rows = sorted(
        zip(*(table.column(name).to_pylist() for name in names), reusable_from, strict=True), key=lambda row: row[0]
    )
    starts = range(0, len(rows), images_per_shard)
    units = [tuple(ImageJob(*row) for row in rows[start : start + images_per_shard]) for start in starts]
    return [(f"{i:06d}", ShardUnit(i, images)) for i, images in enumerate(units)]


def _reusable_regions(table: pa.Table, earlier: Sequence[Shards]) -> list[tuple[int, str] | None]:
    """For each image, by sha256: (index of the first earlier shards that have it, its id there), or None."""
    import pyarrow.compute as pc

    sources: list[tuple[int, str] | None] = [None] * table.num_rows
    for which, shards in enumerate(earlier):
        index = shards.table()
        rows = pc.index_in(table.column("sha256"), index.column("image_sha256").combine_chunks()).to_pylist()
        ids = index.column("image_id")
        for at, row in enumerate(rows):
            if row is not None and sources[at] is None:
                sources[at] = (which, ids[row].as_py())
    return sources


def reusable(
    earlier: Iterable[Artifact], detector: DetectorWeights, settings: RegionSettings, numerics: ExtractionNumerics
) -> list[Shards]:
    """The earlier shards whose regions this detector and these settings would make again bit for bit.

    Same contract, same numerics, same processor family and libraries; `extract_shard` looks at the device.
    """
    from vbert.artifacts.store.manifest import environment, numerics_class
    from vbert.regions.shards import Shards

    matching_shards = []
    contract, here = detector.contract(settings), numerics_class(environment())[:2]
    for artifact in earlier:
        if not isinstance(artifact, Shards) or artifact.step is None:
            continue
        given = artifact.step.arguments
        alike = given["numerics"] == numerics and given["settings"].batch == settings.batch
        if alike and numerics_class(artifact.manifest.environment)[:2] == here and artifact.contract() == contract:
            matching_shards.append(artifact)
    return matching_shards


@dataclass
class Extraction:
    """Makes the samples of shards: one process's detector with the settings of extraction."""

    images: Images | None  # None: the caller prepares the inputs
    detector: Detector
    spec: DetectorSpec
    settings: RegionSettings
    numerics: ExtractionNumerics
    device: str
    earlier: Sequence[Shards] = ()
    reused: int = 0

    @cached_property
    def given(self) -> Mapping[str, NDArray[np.float32]] | None:
        """The boxes of the images' own table, under the rule `given`; None under others."""
        if self.settings.boxes is None or self.settings.boxes.rule != "given":
            return None
        if self.images is None:
            raise UserError("regions.boxes.rule is `given`, but there is no table of boxes; give another rule")
        return _given(self.images)

    def prepare(self, wanted: ImageJob) -> RegionSample | DetectorInput | BadImage:
        """The image's regions from earlier shards, else the detector's input."""
        from vbert.data.decode import BadImage

        if (sample := self._earlier_sample(wanted)) is not None:
            return sample
        assert self.images is not None
        try:
            prepared = self.detector.prepare(self.images.open(wanted.image_id))
        except BadImage as bad:
            return bad
        return prepared if self.device == "cpu" else replace(prepared, pixels=prepared.pixels.pin_memory())

    def _earlier_sample(self, wanted: ImageJob) -> RegionSample | None:
        """The sample of an earlier extraction on the same device (and with the same given boxes); None without one."""
        import numpy as np

        from vbert.regions.shards import RegionSample

        if wanted.reuse is None:
            return None
        which, image_id = wanted.reuse
        if self.earlier[which].figures.get("device") != device_name(self.device):
            return None
        regions = self.earlier[which].read(image_id)
        if self.given is not None and not np.array_equal(
            regions.boxes if regions.boxes is not None else (), self._given_boxes(wanted.image_id)
        ):
            return None
        return RegionSample(
            image_id=wanted.image_id,
            image_sha256=wanted.sha256,
            width=regions.width,
            height=regions.height,
            features=regions.features,
            boxes=regions.boxes,
            scores=regions.scores,
            classes=regions.classes,
            attributes=regions.attributes,
        )

    def _given_boxes(self, image_id: str) -> NDArray[np.float32]:
        import numpy as np

        assert self.given is not None
        return self.given.get(image_id, np.zeros((0, 4), np.float32))

    def batches(self, wanted: Sequence[ImageJob]) -> list[Sequence[ImageJob]]:
        """The batches for the backbone: up to `settings.batch` images of one padded size; single images at 1.

        A function of the plan, not of the images that are left to do.
        """
        if self.settings.batch == 1:
            return [[one] for one in wanted]
        groups: dict[tuple[int, int], list[ImageJob]] = {}
        for one in wanted:
            broken = one.width == 0 or one.height == 0
            groups.setdefault((0, 0) if broken else self.detector.grid(one.width, one.height), []).append(one)
        size = self.settings.batch
        return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]

    def made(
        self, wanted: Sequence[ImageJob], threads: int
    ) -> Generator[tuple[str, RegionSample | BadImage], None, None]:
        """(image_id, sample or its fault), batch by batch; `threads` prepare images ahead."""
        import torch

        batches = self.batches(wanted)
        depth = 2 * self.settings.batch + threads
        ready = prepared_ahead(self.prepare, (one for batch in batches for one in batch), threads, depth)
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.numerics.precision)
        with torch.autocast(self.device, low, enabled=low is not None):
            for batch in batches:
                yield from self._batch([(one, next(ready)) for one in batch])

    def _batch(
        self, batch: Sequence[tuple[ImageJob, RegionSample | DetectorInput | BadImage]]
    ) -> Iterator[tuple[str, RegionSample | BadImage]]:
        from vbert.regions.detector import DetectorInput
        from vbert.regions.shards import RegionSample

        self.reused += sum(isinstance(prepared, RegionSample) for _, prepared in batch)
        new = [(one, prepared) for one, prepared in batch if isinstance(prepared, DetectorInput)]
        yield from ((one.image_id, prepared) for one, prepared in batch if not isinstance(prepared, DetectorInput))
        if new:
            samples = self.samples([one for one, _ in new], [prepared for _, prepared in new])
            yield from zip((one.image_id for one, _ in new), samples, strict=True)

    def samples(self, batch: Sequence[ImageJob], inputs: Sequence[DetectorInput]) -> list[RegionSample | BadImage]:
        import torch

        from vbert.regions.boxes import select

        if self.settings.boxes is None or self.settings.nms is None:
            raise BuildError("regions: box rule and nms must be resolved against the detector's spec first")
        feature_maps = self.detector.backbone(inputs, self.settings.batch)
        if self.given is None:
            candidates = self.detector.detect(feature_maps)
        else:
            boxes = [torch.from_numpy(self._given_boxes(one.image_id)) for one in batch]
            candidates = self.detector.roi_features(feature_maps, boxes)
        kept = [select(each, self.settings.boxes, self.settings.nms) for each in candidates]
        features = [each.features[one.proposals] for each, one in zip(candidates, kept, strict=True)]
        if self.given is None and self.spec.features_of == "regressed":
            features = [each.features for each in self.detector.roi_features(feature_maps, [one.boxes for one in kept])]
        return [self._sample(*each) for each in zip(batch, inputs, candidates, kept, features, strict=True)]

    def _sample(
        self, wanted: ImageJob, prepared: DetectorInput, candidates: Candidates, kept: Detections, features: Tensor
    ) -> RegionSample | BadImage:
        from vbert.data.decode import BadImage
        from vbert.regions.shards import RegionSample

        if not bool((features.abs() <= FLOAT16_MAX).all()):
            return BadImage("not finite", f"a feature is beyond what float16 holds ({FLOAT16_MAX:g})")
        attributes: list[list[str]] = [[] for _ in kept.scores]
        if candidates.attributes is not None:
            best = candidates.attributes[kept.proposals].argmax(1).tolist()
            attributes = [[self.detector.attributes[i]] for i in best]
        return RegionSample(
            image_id=wanted.image_id,
            image_sha256=wanted.sha256,
            width=prepared.width,
            height=prepared.height,
            features=features.half().cpu().numpy(),
            boxes=kept.boxes.float().cpu().numpy(),
            scores=[round(score, 6) for score in kept.scores.tolist()],
            classes=[self.detector.classes[i] for i in kept.classes.tolist()],
            attributes=attributes,
        )


def extract_shard(
    images: Images,
    detector: DetectorWeights,
    settings: RegionSettings,
    numerics: ExtractionNumerics,
    earlier: Sequence[Shards],
    job: Job,
    unit: ShardUnit,
) -> dict[str, Any]:
    """Write the unit's shard. Returns counts, and its rows of offsets and quarantine by column.

    Decoding, inference and writing overlap. An unusable image goes to the quarantine with its reason and stops
    nothing else.
    """
    import torch

    from vbert.data.decode import BadImage
    from vbert.regions.shards import QUARANTINE, write_shard

    torch.set_num_threads(numerics.threads)
    device = device_of(job.machine.device)
    extraction = Extraction(images, _loaded(detector, device), detector.spec(), settings, numerics, device, earlier)
    quarantine: dict[str, list[str]] = {name: [] for name in QUARANTINE}
    rate = UnitProgress(len(unit.images), job.progress)

    def samples() -> Iterator[RegionSample]:
        """The samples in the unit's order, whatever the order of the batches."""
        made: dict[str, RegionSample | BadImage] = {}
        waiting = iter(unit.images)
        wanted = next(waiting, None)
        with closing(run_ahead(extraction.made(unit.images, max(1, job.machine.loader_workers)), AHEAD)) as coming:
            for image_id, one in coming:
                made[image_id] = one
                rate.done(isinstance(one, BadImage))
                while wanted is not None and wanted.image_id in made:
                    sample = made.pop(wanted.image_id)
                    if isinstance(sample, BadImage):
                        row = (wanted.image_id, wanted.path, sample.reason, sample.detail)
                        for name, value in zip(QUARANTINE, row, strict=True):
                            quarantine[name].append(value)
                    else:
                        yield sample
                    wanted = next(waiting, None)

    offsets = write_shard(job.directory, unit.shard, samples())
    return {
        "images": len(offsets["n"]),
        "regions": sum(offsets["n"]),
        "quarantined": len(quarantine["reason"]),
        "reused": extraction.reused,
        "device": device_name(device),
        "offsets": offsets,
        "quarantine": quarantine,
    }


class UnitProgress:
    """Reports a unit's progress to the parent, a few times a second."""

    def __init__(self, total: int, progress: Callable[..., None]) -> None:
        self.total, self.count, self.bad, self._told, self._progress = total, 0, 0, 0.0, progress

    def done(self, bad: bool) -> None:
        self.count, self.bad = self.count + 1, self.bad + bad
        if time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self._progress(self.count, self.total, quarantined=self.bad)


@lru_cache(maxsize=1)
def _loaded(detector: DetectorWeights, device: str) -> Detector:
    """The detector, loaded once a process."""
    return detector.load(device)


@lru_cache(maxsize=1)
def _given(images: Images) -> dict[str, NDArray[np.float32]]:
    """image_id → boxes [n, 4] of the images' own table, in its order."""
    import numpy as np

    table = images.boxes()
    if table is None:
        raise UserError(f"{images.title}: regions.boxes.rule is `given`, but the collection has no boxes")
    corners = np.stack([table.column(name).to_numpy() for name in ("x1", "y1", "x2", "y2")], 1)
    ids = np.asarray(table.column("image_id").to_pylist(), dtype=object)
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, int)
    return {str(ids[start]): corners[start:end] for start, end in zip(starts, np.r_[starts[1:], len(ids)], strict=True)}


def gather(
    directory: Path, units: Iterable[Mapping[str, Any]], detector: DetectorWeights, settings: RegionSettings
) -> dict[str, Any]:
    """Write the tables and the contract beside the shards; `units` are what `extract_shard` returned. Returns counts,
    and the devices."""
    from vbert.regions.shards import write_contents

    rows = list(units)
    parts = [row["offsets"] for row in rows], [row["quarantine"] for row in rows]
    figures: dict[str, Any] = write_contents(directory, *parts, detector.contract(settings))
    figures["reused"] = sum(row["reused"] for row in rows)
    figures["device"] = " and ".join(sorted({row["device"] for row in rows})) or "cpu"
    return figures
