"""From a foreign file to shards. Like an extraction: the plan is fixed before work starts, a shard is a function of its
images alone, and an entry that can't be used goes to the quarantine with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vbert.artifacts.steps.settings import Acceptance, Plugin, Settings, Since
from vbert.errors import UserError
from vbert.regions import interop
from vbert.regions.boxes import BoxRule, NmsRule
from vbert.regions.contract import Contract, Layer, Preprocessing
from vbert.regions.interop import Dtype, Place
from vbert.regions.interop.boxes_in import BoxesIn, in_pixels, refuse_other_corners
from vbert.regions.interop.raw_regions import BadEntry, RawRegions, out_of_proportion
from vbert.regions.shards import FLOAT16_MAX

if TYPE_CHECKING:
    from vbert.artifacts.steps.stage import Job
    from vbert.data.raw import RawFiles
    from vbert.regions.interop.sizes import ImageSizes
    from vbert.regions.shards import RegionSample

UNKNOWN = "unknown"  # the name of an unstated detector


class Provenance(Settings):
    """The importer's statement of how the features were made; None for fields not stated."""

    detector: str
    backend: Plugin | None = None
    weights: str | None = None
    layer: Layer | None = None
    dim: int | None = None
    boxes: BoxRule | None = None
    nms: NmsRule | None = None
    features_of: Literal["proposals", "regressed", "given"] | None = None
    preprocessing: Preprocessing | None = None

    @classmethod
    def of(cls, detector: str, layer: Layer | None = None, weights: str | None = None) -> Provenance:
        """The provenance by a spec in data_specs/detectors, or of an `unknown` detector. Raises UserError for another
        `layer`."""
        from vbert.regions.detector import detector_file

        if detector == UNKNOWN:
            return cls(detector=UNKNOWN, layer=layer, weights=weights)
        file = detector_file(detector)
        spec = file.spec()
        if layer not in (None, spec.layer):
            raise UserError(f"--layer {layer}: the detector {detector!r} makes features of {spec.layer}; leave it out")
        return cls(
            detector=file.name,
            backend=spec.backend,
            weights=weights,
            layer=spec.layer,
            dim=spec.dim,
            boxes=file.boxes,
            nms=spec.nms,
            features_of=spec.features_of,
            preprocessing=spec.preprocessing,
        )

    def contract(self, dim: int, boxes: bool) -> Contract:
        fields = {name: getattr(self, name) for name in Provenance.model_fields}
        coordinates = "xyxy pixels of the image as shown" if boxes else "none"
        return Contract.model_validate({**fields, "dim": dim, "coordinates": coordinates})


class ImportSettings(Settings):
    """`ids`: a regular expression whose first group, found in a file's name of an image, is the image's id here.
    `id_form`: the id made of it, which stands for `{}`."""

    statement: Provenance
    boxes_in: BoxesIn | None = Field(None, description="None: what the format says")
    dtype: Annotated[Dtype | None, Since(None)] = Field(None, description="of features whose type the file doesn't say")
    ids: str | None = None
    id_form: Annotated[str | None, Since(None)] = Field(None, pattern=r"^[^{}]*\{\}[^{}]*$")
    cap: int | None = Field(None, ge=1, description="at most so many regions an image, the most confident ones")
    classes: tuple[str, ...] | None = Field(None, description="names of the classes that the file numbers")
    attributes: tuple[str, ...] | None = None
    images_per_shard: int = Field(500, ge=1)
    quarantine: Annotated[float, Acceptance(0.01)] = Field(0.01, ge=0, le=1, description="share that may be unusable")


@dataclass(frozen=True)
class ExpectedFeatures:
    """Requirements on all images: features of `dim` numbers, and boxes or none."""

    dim: int
    boxes: bool


@dataclass(frozen=True)
class ImportUnit:
    """The work of one shard: its images with the (key, place) of each entry that is theirs; one, as a rule."""

    shard: int
    entries: Sequence[tuple[str, Sequence[tuple[str, Place]]]]
    expected: ExpectedFeatures


@dataclass(frozen=True)
class ImportPlan:
    units: Sequence[tuple[str, ImportUnit]]
    expected: ExpectedFeatures


def paths(files: Mapping[str, RawFiles]) -> dict[str, Path]:
    return {role: raw.local() for role, raw in files.items()}


def import_plan(
    files: Mapping[str, RawFiles], format: Plugin, settings: ImportSettings, sizes: RawFiles | None
) -> ImportPlan:
    """Images by sorted id, `images_per_shard` at a time. Raises UserError for settings with which no image can be
    imported."""
    module = _module(format)
    local = paths(files)
    entries: dict[str, list[tuple[str, Place]]] = {}
    for key, place in module.index(local):
        entries.setdefault(image_id_of(key, settings.ids, settings.id_form), []).append((key, place))
    if not entries:
        raise UserError(f"{local['features']}: there are no images in it")
    rows = [(image_id, entries[image_id]) for image_id in sorted(entries)]
    expected = _expected(local, module, rows, settings, sizes)
    starts = range(0, len(rows), settings.images_per_shard)
    units = [
        (f"{shard:06d}", ImportUnit(shard, rows[start : start + settings.images_per_shard], expected))
        for shard, start in enumerate(starts)
    ]
    return ImportPlan(units, expected)


def image_id_of(key: str, ids: str | None, form: str | None = None) -> str:
    """The id of the image that a file calls `key`; see `ImportSettings`. Raises UserError where the expression finds
    nothing in it."""
    if any("\ud800" <= character <= "\udfff" for character in key):
        raise UserError(f"{key!r:.80} is no text (half of a surrogate pair), so no image's name")
    found = _found(key, ids)
    return found if form is None else form.replace("{}", found)


def _found(key: str, ids: str | None) -> str:
    if ids is None:
        return key.removesuffix(".npz")
    try:
        match = re.search(ids, key)
    except re.error as error:
        raise UserError(f"--ids {ids!r}: no regular expression ({error})") from None
    if match is None:
        raise UserError(f"--ids {ids!r}: finds nothing in {key!r}")
    return str(match[1] if match.re.groups else match[0])


def _module(format: Plugin) -> interop.FeatureFormat:
    module = interop.load(format.name)
    if format.version != module.VERSION:
        raise UserError(
            f"format {format.name!r}: the step wants version {format.version}, this checkout has {module.VERSION}; "
            "check out the commit it was made with"
        )
    return module


def _expected(
    files: Mapping[str, Path],
    module: interop.FeatureFormat,
    rows: Sequence[tuple[str, Sequence[tuple[str, Place]]]],
    settings: ImportSettings,
    sizes: RawFiles | None,
) -> ExpectedFeatures:
    """The requirements taken from the first image with regions. Raises UserError where it can't be imported."""
    stated = settings.statement
    bad: BadEntry | None = None
    with interop.reading(module, files, settings.dtype) as read:
        for key, place in (entry for _, copies in rows[:100] for entry in copies):
            try:
                regions = read(key, place)
                _refuse_other_numbers(regions, settings, f"{files['features'].name}: {key}")
            except BadEntry as error:
                bad = bad or error
                continue
            if not len(regions.features):
                continue
            dim = regions.features.shape[1]
            if stated.dim not in (None, dim):
                raise UserError(
                    f"{files['features']}: features of {dim} numbers; the detector {stated.detector!r} makes "
                    f"{stated.dim}: give another --detector, or --detector {UNKNOWN}"
                )
            boxes = regions.boxes is not None and (settings.boxes_in is None or settings.boxes_in.kind != "none")
            if regions.boxes is None and settings.boxes_in is not None and settings.boxes_in.kind != "none":
                raise UserError(f"{files['features']}: the format has no boxes; leave out --boxes-in")
            if settings.cap is not None and regions.scores is None:
                raise UserError(
                    f"{files['features']}: --cap {settings.cap}: the format has no confidences by which to choose"
                )
            if sizes is None:
                _refuse_without_size(regions, settings)
            return ExpectedFeatures(dim, boxes)
    raise UserError(f"{files['features']}: no image with regions can be read" + (f": {bad}" if bad else ""))


def _refuse_other_numbers(regions: RawRegions, settings: ImportSettings, where: str) -> None:
    if settings.dtype is None and (problem := out_of_proportion(regions.features)) is not None:
        raise BadEntry(where, "numbers", f"these are no features of a network: {problem}")


def _refuse_without_size(regions: RawRegions, settings: ImportSettings) -> None:
    try:
        in_pixels(regions, settings.boxes_in, None, "boxes")
    except BadEntry as error:
        if error.reason in ("no size", "units"):
            raise UserError(f"{error.where}: {error.detail}") from None


def import_shard(
    files: Mapping[str, RawFiles],
    format: Plugin,
    settings: ImportSettings,
    sizes: RawFiles | None,
    job: Job,
    chunk: ImportUnit,
) -> dict[str, Any]:
    """Write the chunk's shard. Returns counts, and its rows of offsets and quarantine by column."""
    from vbert.regions.interop.sizes import sizes_of
    from vbert.regions.shards import QUARANTINE, write_shard

    quarantine: dict[str, list[str]] = {name: [] for name in QUARANTINE}
    known = None if sizes is None else sizes_of(sizes)
    local = paths(files)
    name, here = local["features"].name, f"{local['features'].parent}/"

    def set_aside(image_id: str, path: str, reason: str, detail: str) -> None:
        row = {"image_id": image_id, "path": path, "reason": reason, "detail": detail}
        for column, value in row.items():
            quarantine[column].append(value.replace(here, ""))  # the location of the files is no part of the artifact

    def samples(read: interop.Read) -> Iterator[RegionSample]:
        for image_id, copies in chunk.entries:
            broken: list[BadEntry] = []
            for at, (key, place) in enumerate(copies):
                try:
                    made = _sample(image_id, key, read(key, place), settings, known, chunk.expected, f"{name}: {key}")
                except BadEntry as bad:
                    broken.append(bad)
                    continue
                for one in broken:
                    set_aside(image_id, one.where, "broken copy", f"{one.reason}: {one.detail}; one after it counts")
                for other, _ in copies[at + 1 :]:
                    set_aside(image_id, other, "twice", f"{other!r} has the id {image_id!r}, as has {key!r} before it")
                yield made
                break
            else:
                for one in broken:
                    set_aside(image_id, one.where, one.reason, one.detail)

    with interop.reading(_module(format), local, settings.dtype) as read:
        offsets = write_shard(job.directory, chunk.shard, samples(read))
    return {"images": len(offsets["n"]), "regions": sum(offsets["n"]), "offsets": offsets, "quarantine": quarantine}


def _sample(
    image_id: str,
    key: str,
    regions: RawRegions,
    settings: ImportSettings,
    sizes: ImageSizes | None,
    expected: ExpectedFeatures,
    where: str,
) -> RegionSample:
    """The sample of one image. Raises BadEntry."""
    import numpy as np

    from vbert.regions.shards import RegionSample

    size, sha256 = (None, None) if sizes is None else sizes.find(key.removesuffix(".npz"), where)
    refuse_other_corners(regions, settings.boxes_in, where)
    regions = capped(in_pixels(regions, settings.boxes_in, size, where), settings.cap, where)
    _refuse_other_numbers(regions, settings, where)
    n = len(regions.features)
    features = np.zeros((0, expected.dim), np.float16) if not n else regions.features
    if features.shape[1] != expected.dim:
        raise BadEntry(where, "length", f"features of {features.shape[1]} numbers, the others have {expected.dim}")
    if n and (regions.boxes is not None) != expected.boxes:
        raise BadEntry(where, "boxes", "it has boxes, unlike the others" if regions.boxes is not None else "no boxes")
    if not bool((np.abs(features) <= FLOAT16_MAX).all()):
        raise BadEntry(where, "not finite", f"a feature is beyond what float16 holds ({FLOAT16_MAX:g})")
    boxes = np.zeros((0, 4), np.float32) if expected.boxes and not n else regions.boxes
    return RegionSample(
        image_id=image_id,
        image_sha256=sha256,
        width=regions.width,
        height=regions.height,
        features=features.astype(np.float16),
        boxes=None if boxes is None else boxes.astype(np.float32),
        scores=[] if regions.scores is None else [round(float(score), 6) for score in regions.scores],
        classes=[""] * n if regions.classes is None else named(regions.classes, settings.classes, "--classes", where),
        attributes=[[]] * n
        if regions.attributes is None
        else [named(names, settings.attributes, "--attributes", where) for names in regions.attributes],
        attribute_scores=None
        if regions.attribute_scores is None
        else [[round(float(score), 6) for score in scores] for scores in regions.attribute_scores],
        distributions=None if regions.distributions is None else regions.distributions.astype(np.float16),
    )


def named(numbers: Sequence[str], words: Sequence[str] | None, option: str, where: str) -> list[str]:
    """The names of numbered classes. Raises BadEntry for a number beyond the vocabulary."""
    if words is None:
        return list(numbers)
    for number in numbers:
        if number.isdecimal() and int(number) >= len(words):
            raise BadEntry(where, "vocabulary", f"there is a number {number}, {option} has {len(words)} lines")
    return [words[int(number)] if number.isdecimal() else number for number in numbers]


def capped(regions: RawRegions, cap: int | None, where: str) -> RawRegions:
    """The `cap` most confident regions, best first; equal ones in their order. Raises BadEntry without confidences."""
    import numpy as np

    if cap is None:
        return regions
    if regions.scores is None:
        raise BadEntry(where, "no scores", "no confidences by which to choose regions; leave out --cap")
    kept = np.argsort(-np.asarray(regions.scores, np.float64), kind="stable")[:cap]

    def of(values: Any) -> Any:
        return None if values is None else [values[i] for i in kept]

    return replace(
        regions,
        features=regions.features[kept],
        boxes=None if regions.boxes is None else regions.boxes[kept],
        scores=regions.scores[kept],
        classes=of(regions.classes),
        attributes=of(regions.attributes),
        attribute_scores=of(regions.attribute_scores),
        distributions=None if regions.distributions is None else regions.distributions[kept],
    )


def gather(
    directory: Path, units: Iterable[Mapping[str, Any]], plan: ImportPlan, settings: ImportSettings
) -> dict[str, int]:
    """Write the tables and the contract beside the shards; `units` are what `import_shard` returned. Returns counts."""
    from vbert.regions.shards import write_contents

    rows = list(units)
    bad = [row["quarantine"] for row in rows]
    contract = settings.statement.contract(plan.expected.dim, plan.expected.boxes)
    return write_contents(directory, [row["offsets"] for row in rows], bad, contract)
