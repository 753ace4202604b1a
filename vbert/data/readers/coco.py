"""COCO's JSON (Lin et al. 2014): photos with boxes (`instances_*.json`) and captions (`captions_*.json`).

For COCO itself, and for any data set in its format: `images` (id, file_name, width, height), `annotations` (image_id,
category_id, bbox as x, y, width, height in pixels) and `categories` (id, name). Names say the split, as
`instances_train2017.json` does; else `options: {splits: {train: all.json}}` names each split's file by its ending.

- An image's id is its number in the file ("397133"), by which other data sets name COCO's photos. Where two files count
  alike, `options: {ids: file_name}` takes the file's name without its ending.
- Boxes that stand for crowds (`iscrowd`) are skipped: they are no single object. COCO's own evaluation ignores
  detections in them, so an average precision without them is slightly lower. `options: {crowd: keep}` keeps them.
- COCO's boxes count in the pixels of the stored file, as its width and height do. A photo whose EXIF turns it, and
  whose stated size is the stored one's, has its boxes turned with it: `options: {pixels: stored | shown}` says so for
  all where sizes can't tell (upside down, square). None of the photos of 2017 that were looked at has such a mark.
- Boxes are cut at the image's border; what is then empty is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from vbert.artifacts.errors import UserError
from vbert.data.readers import BoxRow, ImageRow
from vbert.data.readers._photos import Photos, Pixels, chosen

if TYPE_CHECKING:
    from vbert.data.raw import Raw

VERSION = 1

NAMED = re.compile(r"(?:.*/)?(instances|captions|image_info)_((train|val|test)[^/]*)\.json")


@dataclass(frozen=True)
class File:
    """One annotation file. `kind`: instances, captions or image_info; `folder`: what its photos' folder is called."""

    raw: Raw
    name: str
    kind: str
    split: str
    folder: str

    @cached_property
    def content(self) -> dict[str, Any]:
        try:
            found = json.loads(self.raw.read(self.name), object_hook=_without_outlines)
        except ValueError as error:
            raise UserError(f"{self.name}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.name}: must be an object with `images` and `annotations`")
        return found

    def rows(self, part: str, *fields: str) -> Iterator[dict[str, Any]]:
        """The objects under `part`, each with the fields named. Raises UserError as `file: part[i]: field`."""
        for at, row in enumerate(self.content.get(part, ())):
            for field in fields:
                if not isinstance(row, dict) or field not in row:
                    raise UserError(f"{self.name}: {part}[{at}]: {field}: is missing")
            yield row

    def ids(self, ids: str) -> dict[Any, str]:
        """The number of each image in this file → its id in the collection."""
        chosen(ids, ("id", "file_name"), "ids")
        return {
            row["id"]: str(row["id"]) if ids == "id" else str(row["file_name"]).rpartition(".")[0]
            for row in self.rows("images", "id", "file_name")
        }


def _without_outlines(row: dict[str, Any]) -> dict[str, Any]:
    """Outlines are nine tenths of the file, and nothing here needs them."""
    row.pop("segmentation", None)
    return row


def images(
    raws: Mapping[str, Raw],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
    crowd: str = "skip",
    pixels: Pixels = "stated",
) -> Iterator[ImageRow]:
    """Every image that the files name; those without boxes too."""
    photos, seen = Photos(raws), set()
    for file in _one_a_split(raws, splits):
        known = file.ids(ids)
        for row in file.rows("images"):
            source, member = photos.find(str(row["file_name"]), file.folder, file.name)
            image_id = known[row["id"]]
            if image_id in seen:
                raise UserError(f"{file.name}: a second image {image_id!r}; take `options: {{ids: file_name}}`")
            seen.add(image_id)
            yield {"image_id": image_id, "path": member, "source": source, "split": file.split}


def boxes(
    raws: Mapping[str, Raw],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
    crowd: str = "skip",
    pixels: Pixels = "stated",
) -> Iterator[BoxRow]:
    """The boxes of every `instances` file."""
    chosen(crowd, ("skip", "keep"), "crowd")
    chosen(pixels, get_args(Pixels), "pixels")
    photos = Photos(raws)
    for file in _one_a_split(raws, splits):
        if file.kind != "instances":
            continue
        known = file.ids(ids)
        classes = {row["id"]: str(row["name"]) for row in file.rows("categories", "id", "name")}
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for row in file.rows("annotations", "image_id", "category_id", "bbox"):
            if row["image_id"] not in known:
                raise UserError(f"{file.name}: a box belongs to image {row['image_id']!r}, which it doesn't list")
            if row["category_id"] not in classes:
                raise UserError(f"{file.name}: a box has category {row['category_id']!r}, which it doesn't list")
            if crowd == "keep" or not row.get("iscrowd"):
                by_image.setdefault(row["image_id"], []).append(row)
        for image in file.rows("images"):
            mine = by_image.get(image["id"], ())
            if not mine:
                continue
            width, height = image.get("width"), image.get("height")
            size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
            turn = photos.turn(photos.find(str(image["file_name"]), file.folder, file.name), size, pixels)
            for row in mine:
                x1, y1, x2, y2 = _corners(row["bbox"], size, file.name)
                if x1 < x2 and y1 < y2:
                    x1, y1, x2, y2 = turn((x1, y1, x2, y2))
                    yield {
                        "image_id": known[image["id"]],
                        "x1": x1,
                        "y1": y1,
                        "x2": x2,
                        "y2": y2,
                        "class": classes[row["category_id"]],
                        "attributes": [],
                    }


def examples(
    raws: Mapping[str, Raw],
    image_ids: Collection[str],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
) -> Iterator[dict[str, Any]]:
    """One caption an example, by its number; where two files count alike, with the split before it."""
    seen: set[str] = set()
    for file in _files(raws, splits):
        if file.kind != "captions":
            continue
        known = file.ids(ids)
        for row in file.rows("annotations", "id", "image_id", "caption"):
            if row["image_id"] not in known:
                raise UserError(f"{file.name}: a caption of image {row['image_id']!r}, which it doesn't list")
            example_id = str(row["id"]) if str(row["id"]) not in seen else f"{file.split}/{row['id']}"
            seen.add(example_id)
            yield {
                "example_id": example_id,
                "kind": "caption",
                "image_ids": [known[row["image_id"]]],
                "split": file.split,
                "text": str(row["caption"]).strip(),
            }


def _files(raws: Mapping[str, Raw], splits: Mapping[str, str] | None) -> list[File]:
    """The annotation files by split; UserError where there is none."""
    found = []
    for raw in raws.values():
        for name in raw.members():
            if splits is None:
                if match := NAMED.fullmatch(name):
                    kind, folder, split = match.groups()
                    found.append(File(raw, name, kind, split, folder))
                continue
            for split, ending in splits.items():
                if f"/{name}".endswith(f"/{ending}"):
                    kind = "captions" if ending.rpartition("/")[2].startswith("captions") else "instances"
                    found.append(File(raw, name, kind, split, split))
    if not found:
        wanted = "instances_train….json and the like" if splits is None else ", ".join(splits.values())
        raise UserError(f"reader 'coco': {', '.join(raws)} hold no {wanted}; name them by `options: {{splits: …}}`")
    return sorted(found, key=lambda file: (file.split, file.name))


def _one_a_split(raws: Mapping[str, Raw], splits: Mapping[str, str] | None) -> list[File]:
    """The file that lists a split's images: instances where there are any, else captions or image_info."""
    order = ("image_info", "captions", "instances")
    ranked = sorted(_files(raws, splits), key=lambda file: order.index(file.kind))
    return sorted({file.folder: file for file in ranked}.values(), key=lambda file: file.name)


def _corners(box: Any, size: tuple[int, int] | None, where: str) -> tuple[float, float, float, float]:
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)):
        raise UserError(f"{where}: bbox: must be [x, y, width, height] in pixels, not {box!r:.80}")
    x, y, width, height = map(float, box)
    if size is None:
        return max(x, 0.0), max(y, 0.0), x + width, y + height
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[0])), min(y + height, float(size[1]))
