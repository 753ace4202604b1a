"""Inspects a set of region features: contract, counts, a few boxes, and those drawn on their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vbert.errors import UserError
from vbert.regions.drawing import check_name, side_by_side, tile
from vbert.regions.interop.feature_sets import FeatureSet, FolderFiles
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from PIL import Image

LISTED = 10  # quarantined or unreadable images that are told


def inspect(source: FeatureSet, images: int, boxes: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Facts as JSON, over every image; `images` samples with `boxes` boxes of each are included."""
    counts: list[int] = []
    have = {"boxes": 0, "sizes": 0, "scores": 0, "classes": 0, "attributes": 0, "distributions": 0}
    norms: list[float] = []
    dims: dict[int, int] = {}
    bad: list[str] = []
    shown = chosen(source.ids, images)
    samples = []
    negative = False
    for done, image_id in enumerate(source.ids):
        progress(done, len(source.ids))
        try:
            regions = source.read(image_id)
        except BadEntry as error:
            bad.append(str(error))
            continue
        n = len(regions.features)
        counts.append(n)
        if n:
            dims[regions.features.shape[1]] = dims.get(regions.features.shape[1], 0) + 1
            values = regions.features.astype(np.float32)
            norms.append(float(np.linalg.norm(values, axis=1).mean()))
            negative = negative or bool(values.min() < 0)
        have["sizes"] += bool(regions.width and regions.height)
        for name in ("boxes", "scores", "classes", "attributes", "distributions"):
            have[name] += getattr(regions, name) is not None
        if image_id in shown:
            samples.append(_sample(image_id, regions, boxes))
    ordered = sorted(counts) or [0]
    return {
        "path": str(source.path),
        "format": source.format,
        "title": source.title,
        "images": len(source.ids),
        "read": len(counts),
        "regions": sum(counts),
        "regions_per_image": [ordered[0], ordered[len(ordered) // 2], ordered[-1]],
        "dims": {str(dim): images for dim, images in sorted(dims.items())},
        "norm": round(float(np.median(norms)), 4) if norms else None,
        "negative": negative,
        "with": have,
        "quarantined": source.quarantined,
        "unreadable": len(bad),
        "first_unreadable": bad[:LISTED],
        "contract": None if source.contract is None else source.contract.model_dump(mode="json"),
        "samples": samples,
    }


def chosen(ids: Sequence[str], count: int) -> list[str]:
    """`count` of the ids, evenly spread."""
    if count >= len(ids):
        return list(ids)
    return [ids[at * len(ids) // count] for at in range(count)]


def _sample(image_id: str, raw: RawRegions, most: int) -> dict[str, Any]:
    regions = [
        {
            "box": None if raw.boxes is None else [round(float(side), 2) for side in raw.boxes[at]],
            "score": None if raw.scores is None else round(float(raw.scores[at]), 4),
            "name": named(raw, at),
        }
        for at in range(min(most, len(raw.features)))
    ]
    return {
        "image_id": image_id,
        "width": raw.width,
        "height": raw.height,
        "regions": len(raw.features),
        "boxes_in": None if raw.boxes is None else raw.unit,
        "first": regions,
    }


def named(regions: RawRegions, at: int) -> str:
    """`red circle`: the attributes of region `at`, then its class; "" where there are no names."""
    words = [*(regions.attributes[at] if regions.attributes is not None else [])]
    words += [regions.classes[at]] if regions.classes is not None else []
    return " ".join(word for word in words if word)


def draw(source: FeatureSet, images: Path, target: Path, count: int, boxes: int) -> list[str]:
    """A picture of `count` images with their first `boxes` boxes, side by side, written to `target`.

    Returns sentences on images that could not be drawn. Raises UserError where none could.
    """
    from vbert.data.decode import BadImage, decode
    from vbert.data.names import is_image
    from vbert.regions.interop.sizes import ImageNames

    check_name(target)
    files = FolderFiles(images)
    names = ImageNames(name for name in files.members() if is_image(name))
    tiles: list[Image.Image] = []
    problems: list[str] = []
    for image_id in source.ids:
        if len(tiles) == count:
            break
        try:
            picture = decode(files.read(names.find(image_id, image_id)))
            tiles.append(_tile(picture, source.read(image_id), image_id, boxes))
        except (BadImage, BadEntry) as error:
            problems.append(str(error) if isinstance(error, BadEntry) else f"{image_id}: {error}")
    if not tiles:
        raise UserError(f"{images}: none of the features' images is there" + (f": {problems[0]}" if problems else ""))
    side_by_side(tiles).save(target)
    return problems


def _tile(picture: Image.Image, regions: RawRegions, image_id: str, most: int) -> Image.Image:
    if regions.boxes is None:
        raise BadEntry(image_id, "no boxes", "the features have no boxes")
    width, height = picture.size
    sides = np.asarray([width, height] * 2, np.float64) if regions.unit == "normalised" else np.ones(4)
    names = [named(regions, at) or str(at + 1) for at in range(len(regions.boxes))][:most]
    return tile(picture, regions.boxes[:most] * sides, names, f"{image_id}  {len(regions.features)} regions")
