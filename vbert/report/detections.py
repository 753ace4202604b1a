"""The detector's held-out images: pictures with detected boxes over true ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vbert.data.images import Images
from vbert.regions.detector import DetectorWeights
from vbert.report.thumbnails import DrawnBox, Thumbnail, ThumbnailAlbum, boxed, named

SHOWN_SCORE = 0.3  # boxes that score less are left out of the pictures, not of the figures
MOST = 12  # boxes of a picture


@dataclass(frozen=True)
class ScoredBox:
    box: DrawnBox
    score: float


@dataclass(frozen=True)
class DetectedImage:
    picture: Thumbnail
    boxes: list[ScoredBox]
    left_out: int  # boxes below the score, or beyond the most
    true: int | None  # boxes of the ground truth


def scenes(detector: DetectorWeights, images: Images | None, album: ThumbnailAlbum, count: int) -> list[DetectedImage]:
    """Up to `count` of the images whose detections the detector's evaluation kept."""
    tones = {name: i for i, name in enumerate(detector.classes())}
    return [_scene(row, images, album, tones) for row in detector.detections()[:count]]


def _scene(
    row: Mapping[str, Any], images: Images | None, album: ThumbnailAlbum, tones: Mapping[str, int]
) -> DetectedImage:
    def boxes(columns: Mapping[str, Any], true: bool) -> list[DrawnBox]:
        names = [named(kind, names) for kind, names in zip(columns["classes"], columns["attributes"], strict=True)]
        return boxed(columns["boxes"], names, [tones.get(kind, 0) for kind in columns["classes"]], true=true)

    order = sorted(range(len(row["scores"])), key=lambda i: -row["scores"][i])
    kept = [i for i in order if row["scores"][i] >= SHOWN_SCORE][:MOST]
    shown = {name: [row[name][i] for i in kept] for name in ("boxes", "classes", "attributes")}
    detected = boxes(shown, False)
    truth = boxes(row["truth"], True) if row.get("truth") else []
    if images is None:
        picture = Thumbnail(row["image_id"], None, row["width"], row["height"], "the detector's images are not given")
    else:
        picture = album.picture(images, row["image_id"])
    return DetectedImage(
        picture.over([*truth, *detected]),
        [ScoredBox(box, row["scores"][i]) for box, i in zip(detected, kept, strict=True)],
        len(order) - len(kept),
        len(truth) if row.get("truth") else None,
    )
