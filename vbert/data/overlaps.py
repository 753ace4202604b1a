"""Overlaps: photos that a model is trained on and evaluated on, bit by bit the same, whatever they are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vbert.artifacts.steps.artifact import Artifact
from vbert.data.examples import Examples
from vbert.data.images import Images

NAMED = 3  # photos of an overlap that are named


@dataclass(frozen=True)
class PhotosOfSplits:
    """The photos of a data set, in the splits of its examples; without examples, in their own."""

    images: Images
    examples: Examples | None = None

    def digests(self, *splits: str) -> dict[str, dict[str, str]]:
        """split → sha256 of each photo in it → its id."""
        table = self.images.table().select(["image_id", "sha256", "split"]).to_pydict()
        sha256 = dict(zip(table["image_id"], table["sha256"], strict=True))
        found: dict[str, dict[str, str]] = {split: {} for split in splits}
        if self.examples is None:
            rows = zip(([image_id] for image_id in table["image_id"]), table["split"], strict=True)
        else:
            texts = self.examples.table().select(["image_ids", "split"]).to_pydict()
            rows = zip(texts["image_ids"], texts["split"], strict=True)
        for image_ids, split in rows:
            if split in found:
                for image_id in image_ids:
                    found[split].setdefault(sha256[image_id], image_id)
        return found


@dataclass(frozen=True)
class Overlap:
    """`count` photos of `evaluated`'s split are in the training split of `trained`; `photos` names some, as the
    evaluated set calls them."""

    trained: str
    evaluated: str
    split: str
    count: int
    photos: Sequence[str]

    def __str__(self) -> str:
        photos = "1 photo" if self.count == 1 else f"{self.count:,} photos"
        more = " …" if self.count > len(self.photos) else ""
        return (
            f"{photos} of {self.evaluated}'s {self.split}, trained on in {self.trained}: {', '.join(self.photos)}{more}"
        )


class Overlaps(Artifact):
    """`overlaps.json`: which photos of evaluation splits were trained on; each has a known reason.

    >>> vbert.run("demo").artifact("overlaps", vbert.Overlaps).found()
    []
    """

    def found(self) -> list[Overlap]:
        """Those between each training set and each evaluation split."""
        return [Overlap(**row) for row in json.loads(self.file("overlaps.json").read_text("utf-8"))]


def overlaps_of(
    trained: Mapping[str, PhotosOfSplits], evaluated: Mapping[str, PhotosOfSplits]
) -> tuple[list[Overlap], int, int]:
    """Every overlap, and the numbers of photos that are trained on and evaluated on."""
    seen = {name: part.digests("train")["train"] for name, part in trained.items()}
    found, evaluated_on = [], set[str]()
    for name, part in evaluated.items():
        for split, photos in part.digests("val", "test").items():
            evaluated_on |= photos.keys()
            for source, known in seen.items():
                if both := sorted(photos[sha256] for sha256 in photos.keys() & known.keys()):
                    found.append(Overlap(source, name, split, len(both), both[:NAMED]))
    return found, len({sha256 for photos in seen.values() for sha256 in photos}), len(evaluated_on)


def write_overlaps(directory: Path, found: Sequence[Overlap]) -> None:
    (directory / "overlaps.json").write_text(json.dumps([asdict(one) for one in found], ensure_ascii=False), "utf-8")
