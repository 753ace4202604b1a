"""The picture sheet of a search: one page of the images found, with the regions that mattered drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vbert.objectives.retrieval_search import FoundImage, ImageSearch, Mattered, TextQuery
from vbert.regions.interop.folder_images import FolderImages
from vbert.report.render import policy, style, templates
from vbert.report.thumbnails import COLOURS, DrawnBox, Thumbnail, ThumbnailAlbum, boxed, named

SIDE = 420  # longer side of a picture in pixels, at most
BYTES = 40_000_000  # of all pictures of a sheet, at most


@dataclass(frozen=True)
class DrawnRegion:
    box: DrawnBox
    drop: float


@dataclass(frozen=True)
class SheetImage:
    found: FoundImage
    picture: Thumbnail
    regions: Sequence[DrawnRegion]


@dataclass(frozen=True)
class Sheet:
    """query: the text, or None; like: the image whose likes were sought, with its picture."""

    query: str | None
    like: Thumbnail | None
    notes: Sequence[str]
    images: Sequence[SheetImage]
    searched: int  # images
    rerank: int
    pictured: bool  # whether a folder of images was given


def search_sheet(
    search: ImageSearch, query: TextQuery | str, found: Sequence[FoundImage], images: Path | None, rerank: int
) -> str:
    """The sheet as HTML. query: the text, or the id of the image that those found are like. images: their folder."""
    folder = None if images is None else FolderImages(images)
    album = ThumbnailAlbum(SIDE, BYTES)

    def picture(image_id: str) -> Thumbnail:
        if folder is None:
            return Thumbnail(image_id, None, 4, 3, "give their folder with --images")
        return album.picture(folder, image_id)

    shown = []
    for one in found:
        thumbnail = picture(one.image_id)
        drawn = _drawn(search, one, thumbnail, search.mattered(one, query))
        boxes = [each.box for each in drawn if each.box.width > 0]
        shown.append(SheetImage(one, thumbnail.over(boxes), drawn))
    text = query if isinstance(query, TextQuery) else None
    sheet = Sheet(
        query=None if text is None else text.text,
        like=None if isinstance(query, TextQuery) else picture(query),
        notes=[] if text is None else text.notes,
        images=shown,
        searched=len(search.index.image_ids),
        rerank=min(rerank, len(search.index.image_ids)) if text else 0,
        pictured=folder is not None,
    )
    page = templates().get_template("search.html.j2")
    return page.render(sheet=sheet, style=style(), policy=policy([]))


def _drawn(
    search: ImageSearch, found: FoundImage, picture: Thumbnail, mattered: Sequence[Mattered]
) -> list[DrawnRegion]:
    """The regions that mattered as boxes of the picture, numbered from the one with the largest drop; of width 0 where
    the features have no boxes."""
    regions = search.regions(found.image_id)
    corners = np.zeros((len(regions.features), 4)) if regions.boxes is None else regions.boxes.astype(np.float64)
    if picture.uri and regions.details["width"] and regions.details["height"]:  # a folder may hold smaller copies
        corners = corners * np.array([picture.width / regions.width, picture.height / regions.height] * 2)
    names = [
        named(regions.classes[one.region], regions.attributes[one.region]) or f"region {one.region + 1}"
        if one.region < min(len(regions.classes), len(regions.attributes))
        else f"region {one.region + 1}"
        for one in mattered
    ]
    boxes = boxed([corners[one.region].tolist() for one in mattered], names, range(len(mattered)))
    return [
        DrawnRegion(replace(box, tone=k % COLOURS), one.drop)
        for k, (box, one) in enumerate(zip(boxes, mattered, strict=True))
    ]
