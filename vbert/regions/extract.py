"""From images to shards. The plan is fixed before work starts, and a shard is a function of its images alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.errors import BuildError, UserError
from vbert.artifacts.settings import Numerics

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from vbert.data.images import Images
    from vbert.regions.detector import Candidates, Detector, DetectorSpec, DetectorWeights, RegionSettings
    from vbert.regions.shards import Sample

# The most that float16 holds; a feature above it would become infinite.
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Unit:
    """The work of one shard: (image_id, path, sha256) of its images."""

    shard: int
    images: Sequence[tuple[str, str, str]]


def shard_plan(table: pa.Table, images_per_shard: int) -> list[tuple[str, Unit]]:
    """Units by key: the images by sorted id, `images_per_shard` at a time."""
    columns = [table.column(name).to_pylist() for name in ("image_id", "path", "sha256")]
    rows = sorted(zip(*columns, strict=True))
    starts = range(0, len(rows), images_per_shard)
    return [(f"{i:06d}", Unit(i, tuple(rows[start : start + images_per_shard]))) for i, start in enumerate(starts)]


def extract_shard(
    images: Images,
    detector: DetectorWeights,
    settings: RegionSettings,
    numerics: Numerics,
    device: str,
    directory: Path,
    unit: Unit,
) -> dict[str, Any]:
    """Write the unit's shard into `directory`. Returns counts, and its rows of offsets and quarantine by column.

    One image a forward. An image that can't be used goes to the quarantine with its reason; nothing else stops for it.
    """
    import torch

    from vbert.regions.shards import QUARANTINE, write_shard

    torch.set_num_threads(numerics.threads)
    ready = _loaded(detector, _device(device))
    spec = detector.spec()
    quarantine: dict[str, list[str]] = {name: [] for name in QUARANTINE}
    given = _given(images) if settings.boxes is not None and settings.boxes.rule == "given" else None
    with torch.autocast(_device(device), torch.bfloat16, enabled=numerics.precision == "bf16"):
        samples = _samples(images, ready, spec, settings, given, unit, quarantine)
        offsets = write_shard(directory, unit.shard, samples)
    return {
        "images": len(offsets["n"]),
        "regions": sum(offsets["n"]),
        "quarantined": len(quarantine["reason"]),
        "offsets": offsets,
        "quarantine": quarantine,
    }


def _samples(
    images: Images,
    detector: Detector,
    spec: DetectorSpec,
    settings: RegionSettings,
    given: Mapping[str, NDArray[np.float32]] | None,
    unit: Unit,
    quarantine: dict[str, list[str]],
) -> Iterator[Sample]:
    from vbert.data.decode import BadImage

    for image_id, path, sha256 in unit.images:
        try:
            yield _sample(images, detector, spec, settings, given, image_id, sha256)
        except BadImage as bad:
            row = {"image_id": image_id, "path": path, "reason": bad.reason, "detail": bad.detail}
            for name, value in row.items():
                quarantine[name].append(value)


def _sample(
    images: Images,
    detector: Detector,
    spec: DetectorSpec,
    settings: RegionSettings,
    given: Mapping[str, NDArray[np.float32]] | None,
    image_id: str,
    sha256: str,
) -> Sample:
    """The regions of one image. Raises BadImage."""
    import numpy as np
    import torch

    from vbert.data.decode import BadImage
    from vbert.regions.boxes import select
    from vbert.regions.shards import Sample

    if settings.boxes is None or settings.nms is None:
        raise BuildError("regions: box rule and nms must be resolved against the detector's spec first")
    prepared = detector.prepare(images.open(image_id))
    seen = detector.look([prepared])
    found: Candidates
    if given is None:
        (found,) = detector.detect(seen)
    else:
        boxes = given.get(image_id, np.zeros((0, 4), np.float32))
        (found,) = detector.describe(seen, [torch.from_numpy(boxes)])
    kept = select(found, settings.boxes, settings.nms)
    features = found.features[kept.proposals]
    if given is None and spec.features_of == "regressed":
        features = detector.describe(seen, [kept.boxes])[0].features
    if not bool((features.abs() <= FLOAT16_MAX).all()):
        raise BadImage("not finite", f"a feature is beyond what float16 holds ({FLOAT16_MAX:g})")
    attributes: list[list[str]] = [[] for _ in kept.scores]
    if found.attributes is not None:
        attributes = [[detector.attributes[i]] for i in found.attributes[kept.proposals].argmax(1).tolist()]
    return Sample(
        image_id=image_id,
        image_sha256=sha256,
        width=prepared.width,
        height=prepared.height,
        features=features.half().cpu().numpy(),
        boxes=kept.boxes.float().cpu().numpy(),
        scores=[round(score, 6) for score in kept.scores.tolist()],
        classes=[detector.classes[i] for i in kept.classes.tolist()],
        attributes=attributes,
    )


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    directory: Path,
    scratch: Path,
    units: Iterable[Mapping[str, Any]],
    detector: DetectorWeights,
    settings: RegionSettings,
    title: str,
) -> dict[str, int]:
    """Write the tables and the contract beside the shards; `units` are what `extract_shard` returned.

    Raises BuildError above the allowed share of quarantined images, leaving their table in `scratch`.
    """
    from vbert.regions.shards import write_contents

    rows = list(units)
    parts = [row["offsets"] for row in rows], [row["quarantine"] for row in rows]
    figures = write_contents(directory, *parts, detector.contract(settings))
    total = figures["images"] + figures["quarantined"]
    if figures["quarantined"] > settings.quarantine * total:
        table = scratch / "quarantine.parquet"
        table.write_bytes((directory / table.name).read_bytes())
        raise BuildError(
            f"{title}: {figures['quarantined']} of {total} images can't be used, more than the allowed "
            f"{settings.quarantine:.1%}: see {table} for each one's reason; mend them or raise regions.quarantine"
        )
    return figures
