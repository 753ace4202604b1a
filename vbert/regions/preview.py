"""Previews: a detector's regions of a few image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vbert.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vbert.regions.detector import DetectorWeights, RegionSettings
    from vbert.regions.shards import RegionSample


def regions_of(
    weights: DetectorWeights, files: Sequence[Path], settings: RegionSettings, device: str
) -> Iterator[tuple[Path, Image.Image, RegionSample]]:
    """(file, image as shown, its regions), file by file. Raises UserError for one that can't be read or decoded."""
    from vbert.data.decode import BadImage, decode
    from vbert.regions.detector import ExtractionNumerics
    from vbert.regions.extract import Extraction, ImageJob

    extraction = Extraction(None, weights.load(device), weights.spec(), settings, ExtractionNumerics(), device)
    for file in files:
        try:
            picture = decode(file.read_bytes())
        except OSError as error:
            raise UserError(f"{file}: can't be read: {error.strerror}") from None
        except BadImage as bad:
            raise UserError(f"{file}: {bad}") from None
        wanted = ImageJob(file.name, str(file), "", *picture.size)
        (sample,) = extraction.samples([wanted], [extraction.detector.prepare(picture)])
        if isinstance(sample, BadImage):
            raise UserError(f"{file}: {sample}")
        yield file, picture, sample


def draw_regions(
    weights: DetectorWeights, files: Sequence[Path], settings: RegionSettings, device: str, target: Path, most: int
) -> list[RegionSample]:
    """Draw the `most` best regions of each file, with scores, classes and attributes, into one picture `target`."""
    from vbert.regions.drawing import check_name, side_by_side, tile

    check_name(target)
    tiles, samples = [], []
    for file, picture, sample in regions_of(weights, files, settings, device):
        named = zip(sample.attributes, sample.classes, sample.scores, strict=True)
        names = [f"{' '.join([*attributes, kind])} {score:.2f}" for attributes, kind, score in named]
        assert sample.boxes is not None
        caption = f"{file.name}  {len(names)} regions"
        side = 480 if len(files) > 1 else max(480, *picture.size)
        tiles.append(tile(picture, sample.boxes[:most], names[:most], caption, side))
        samples.append(sample)
    side_by_side(tiles).save(target)
    return samples
