"""COCO's JSON (Lin et al. 2014): photos with boxes (`instances_*.json`) and captions (`captions_*.json`).

For COCO itself, and for any data set in its format: `images` (id, file_name, width, height), `annotations` (image_id,
category_id, bbox as x, y, width, height in pixels) and `categories` (id, name). Names say the split, as
`instances_train2017.json` does; else `options: {splits: {train: all.json}}` names each split's file by its ending.

- An image's id is its number in the file ("397133"), by which other data sets name COCO's photos. Where two files count
  alike, `options: {ids: file_name}` takes the file's name without its ending.
- Boxes that stand for crowds (`iscrowd`) are left out: they are no single object. COCO's own evaluation ignores
  detections in them, so an average precision without them is slightly lower. `options: {crowd: keep}` keeps them.
- COCO's boxes, widths and heights are in pixels of the stored file. Where EXIF turns a photo whose stated size is that
  of the stored file, its boxes are turned too. For photos whose sizes can't tell (upside down, square), `options:
  {pixels: stored | shown}` decides. None of the photos of 2017 that were checked has such an orientation.
- Photos of another size than the file states are refused, since they may not be the annotated ones. If they were only
  resized, `options: {scale_boxes: true}` scales their boxes. For the other rules of boxes see `vbert/data/boxes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, get_args

from typing_extensions import TypedDict

from vbert.data.boxes import Corners, Pixels, StatedSize
from vbert.data.names import count_of, ending, plain
from vbert.data.readers import BoxRow, ImageRow, ReaderNote
from vbert.data.readers._photos import PhotoFiles, Place
from vbert.data.readers._rows import check_choice, check_matched, checked, flag, named_by_split
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2
OWN = (".json",)

NAMED = re.compile(r"(?:.*/)?(instances|captions|image_info)_((train|val|test)[^/]*)\.json")


class CocoImage(TypedDict):
    id: int | str
    file_name: str
    width: NotRequired[Any]
    height: NotRequired[Any]


class CocoAnnotation(TypedDict):
    image_id: int | str
    id: NotRequired[int | str | None]
    category_id: NotRequired[int | str | None]
    bbox: NotRequired[Any]
    iscrowd: NotRequired[Any]
    caption: NotRequired[str | None]


class CocoCategory(TypedDict):
    id: int | str
    name: str


class CocoContent(TypedDict, total=False):
    """The fields that are read of a file. Outlines, nine tenths of it, are not needed."""

    images: list[CocoImage] | None
    annotations: list[CocoAnnotation] | None
    categories: list[CocoCategory] | None


@dataclass(frozen=True)
class CocoFile:
    """One annotation file. `kind`: instances, captions or image_info; `folder`: the name of its photos' folder."""

    raw: RawFiles
    name: str
    kind: str
    split: str
    folder: str

    @cached_property
    def content(self) -> CocoContent:
        content: CocoContent = checked(self.raw.read(self.name), CocoContent, self.name)
        return content

    @property
    def images(self) -> list[CocoImage]:
        return self.content.get("images") or []

    @property
    def annotations(self) -> Iterator[tuple[str, CocoAnnotation]]:
        """(place, annotation)"""
        for at, row in enumerate(self.content.get("annotations") or ()):
            yield f"{self.name}: annotations[{at}]", row

    def ids(self, ids: str) -> dict[str, str]:
        """The number of each image in this file → its id in the collection. Numbers as text: "1" means 1."""
        check_choice(ids, ("id", "file_name"), "ids")
        names: dict[str, str] = {}
        for at, row in enumerate(self.images):
            number, name = str(row["id"]), plain(row["file_name"])
            if number in names:
                raise UserError(f"{self.name}: images[{at}]: a second image with the id {row['id']!r:.80}; mend one")
            names[number] = number if ids == "id" else name.removesuffix(ending(name))
        return names

    def classes(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for at, row in enumerate(self.content.get("categories") or ()):
            if names.setdefault(str(row["id"]), row["name"]) != row["name"]:
                raise UserError(f"{self.name}: categories[{at}]: a second category {row['id']!r}; give it another id")
        return names


def images(
    raws: Mapping[str, RawFiles],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
    crowd: str = "skip",
    pixels: Pixels = "stated",
    scale_boxes: bool = False,
) -> Iterator[ImageRow]:
    """Every image that the files name; those without boxes too."""
    photos, seen = PhotoFiles(raws), dict[str, tuple[Place, str]]()
    for file in _listing(raws, splits):
        known = file.ids(ids)
        for at, row in enumerate(file.images):
            where = f"{file.name}: images[{at}]"
            place = source, member = photos.find(row["file_name"], file.folder, where)
            image_id = known[str(row["id"])]
            if image_id not in seen:
                seen[image_id] = place, file.split
                yield {"image_id": image_id, "path": member, "source": source, "split": file.split}
            elif seen[image_id] != (place, file.split):  # otherwise two files of a split list it
                hint = "take `options: {ids: file_name}`" if ids == "id" else "rename one, or name it in one split"
                raise UserError(f"{where}: a second image {image_id!r:.80}; {hint}")


def boxes(
    raws: Mapping[str, RawFiles],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
    crowd: str = "skip",
    pixels: Pixels = "stated",
    scale_boxes: bool = False,
) -> Iterator[BoxRow]:
    """The boxes of every `instances` file."""
    check_choice(crowd, ("skip", "keep"), "crowd")
    check_choice(pixels, get_args(Pixels), "pixels")
    check_choice(scale_boxes, (True, False), "scale_boxes")
    for file in _files(raws, splits):
        if file.kind != "instances":
            continue
        known, classes = file.ids(ids), file.classes()
        stated = {
            str(row["id"]): StatedSize(
                row.get("width"), row.get("height"), f"{file.name}: images[{at}]", pixels, scale_boxes
            )
            for at, row in enumerate(file.images)
        }
        for where, row in file.annotations:
            number, category = str(row["image_id"]), str(row.get("category_id"))
            if number not in known:
                raise UserError(f"{where}: a box belongs to image {row['image_id']!r:.80}, which the file doesn't list")
            if category not in classes:
                raise UserError(
                    f"{where}: a box has category {row.get('category_id')!r:.80}, which the file doesn't list"
                )
            x1, y1, x2, y2 = _corners(row, where)
            box: BoxRow = {
                "image_id": known[number],
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "class": classes[category],
                "attributes": [],
                "where": where,
                "stated": stated[number],
            }
            if crowd == "skip" and flag(row.get("iscrowd"), f"{where}: iscrowd"):
                box["left_out"] = "crowd"
            yield box


def examples(
    raws: Mapping[str, RawFiles],
    image_ids: Collection[str],
    splits: Mapping[str, str] | None = None,
    ids: str = "id",
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One caption an example, by its number; where two files count alike, with the split before it. Empty ones are
    left out and counted."""
    seen: set[str] = set()
    empty: list[str] = []
    for file in _files(raws, splits):
        if file.kind != "captions":
            continue
        known = file.ids(ids)
        for where, row in file.annotations:
            if str(row["image_id"]) not in known:
                raise UserError(f"{where}: a caption of image {row['image_id']!r:.80}, which the file doesn't list")
            caption, number = row.get("caption"), row.get("id")
            if caption is None or number is None:
                raise UserError(f"{where}: {'caption' if caption is None else 'id'}: is missing")
            if not caption.strip():
                empty.append(where)
                continue
            example_id = str(number) if str(number) not in seen else f"{file.split}/{number}"
            seen.add(example_id)
            yield {
                "example_id": example_id,
                "kind": "caption",
                "image_ids": [known[str(row["image_id"])]],
                "split": file.split,
                "text": caption.strip(),
            }
    if empty:
        yield ReaderNote(
            "empty_captions", len(empty), f"{count_of(empty, 'caption')} without text; the first: {empty[0]}", True
        )


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, str] | None) -> list[CocoFile]:
    """The annotation files by split; UserError where there is none."""
    splits = named_by_split(splits)
    files = []
    for raw in raws.values():
        for name in raw.members():
            if splits is None:
                if match := NAMED.fullmatch(name):
                    kind, folder, split = match.groups()
                    files.append(CocoFile(raw, name, kind, split, folder))
                continue
            for split, part in splits.items():
                if f"/{name}".endswith(f"/{part}"):
                    kind = "captions" if part.rpartition("/")[2].startswith("captions") else "instances"
                    files.append(CocoFile(raw, name, kind, split, split))
    if not files:
        wanted = "instances_train….json and the like" if splits is None else ", ".join(splits.values())
        raise UserError(f"reader 'coco': {', '.join(raws)} hold no {wanted}; name them by `options: {{splits: …}}`")
    if splits is not None:
        check_matched(splits, (name for raw in raws.values() for name in raw.members()), ends=True, what="file's name")
    return sorted(files, key=lambda file: (file.split, file.name))


def _listing(raws: Mapping[str, RawFiles], splits: Mapping[str, str] | None) -> list[CocoFile]:
    """The files that list a split's images: those of instances where there are any, else of captions or image_info."""
    order = ("instances", "captions", "image_info")
    files = _files(raws, splits)
    best = {file.folder: len(order) for file in files}
    for file in files:
        best[file.folder] = min(best[file.folder], order.index(file.kind))
    return sorted((file for file in files if order.index(file.kind) == best[file.folder]), key=lambda file: file.name)


def _corners(row: CocoAnnotation, where: str) -> Corners:
    if "bbox" not in row:
        raise UserError(f"{where}: bbox: is missing")
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
        raise UserError(f"{where}: bbox: must be [x, y, width, height] in pixels, not {box!r:.80}")
    try:
        x, y, width, height = map(float, box)
    except OverflowError:  # whole numbers of hundreds of digits
        x = y = width = height = float("inf")
    return x, y, x + width, y + height
