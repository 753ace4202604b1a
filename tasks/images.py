"""Stage `images`: the index of an image collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.images import Images
from vbert.data.names import IMAGE_ENDINGS, count_of, is_image, kinds
from vbert.data.raw import RawFiles
from vbert.data.shares import share_of
from vbert.data.spec import SPLITS, ReaderOptions
from vbert.errors import BuildError, UserError, nearest

if TYPE_CHECKING:
    from vbert.data.boxes import PhotoHeader
    from vbert.data.readers import ImageRow, ReaderNote

ROWS_AT_ONCE = 1000


@stage(
    "images",
    makes=Images,
    version=1,
    cost=Cost(seconds_by=("raws.*.files",), bytes_by=("raws.*.files",)),
)
def images(
    build: Build,
    raws: Mapping[str, RawFiles],
    reader: Plugin,
    limit: int | None = None,
    reading: ReaderOptions | None = None,
) -> Figures:
    """Every image's place, sha256 and size as shown, and the boxes, where there are any.

    `limit`: at most so many images of each split, those whose clusters (else ids) hash lowest; the ids of the others
    are kept apart.
    A file that can't be opened stays in the index with size 0×0: `regions` puts it in quarantine with its reason. Boxes
    are fitted to their photos (see `vbert.data.boxes`). Rows and files left out are counted in the figures and
    described in `notes`.
    """
    from vbert.data import readers
    from vbert.data.boxes import BoxConverter, PhotoHeader
    from vbert.data.images import write_images

    reading = reading or ReaderOptions()
    module = readers.of(reader)
    rows = list(readers.call(module, "images", raws, options=reading.options))
    listed = [_placed(row, raws, reading) for row in rows if not isinstance(row, readers.ReaderNote)]
    notes = [row for row in rows if isinstance(row, readers.ReaderNote)]
    notes += _beside(raws, {row["path"] for row in listed}, getattr(module, "OWN", None))
    if not listed:
        remarks = "".join(f" ({note.sentence})" for note in notes)
        raise BuildError(
            f"images: reader {reader.name!r} finds no image in {', '.join(raws)}{remarks}; are they the right files? "
            f"Images are files that end in {' '.join(IMAGE_ENDINGS)}"
        )
    clusters = {row["image_id"]: row["cluster"] for row in rows if isinstance(row, dict) and "cluster" in row}
    kept = listed if limit is None else _limited(listed, limit, clusters)
    ids = {row["image_id"] for row in kept}
    boxes, fitting, photos = None, None, dict[str, PhotoHeader]()
    if hasattr(module, "boxes"):
        given = readers.call(module, "boxes", raws, options=reading.options)
        all_ids = {row["image_id"] for row in listed}
        fitting = BoxConverter(photos)
        boxes = fitting(box for box in given if box["image_id"] in ids or box["image_id"] not in all_ids)
    left_out = None if limit is None else (row["image_id"] for row in listed if row["image_id"] not in ids)
    figures: Figures = dict(write_images(build.directory, _indexed(build, raws, kept, photos), boxes, left_out))
    sentences = [note.sentence for note in notes]
    if fitting is not None:
        figures |= fitting.figures()
        sentences += fitting.sentences()
    figures |= {note.figure: note.count for note in notes}
    figures |= readers.left_out(notes)
    of = Counter(row["split"] for row in kept)
    figures |= {split: of[split] for split in SPLITS if split in of}
    without = of[None]
    if 0 < without < len(kept):
        figures["no_split"] = without
        sentences.append(f"in no split, so neither trained on nor evaluated: {without:,} of {count_of(kept, 'image')}")
    official = {row.get("split") for row in rows if not isinstance(row, readers.ReaderNote)} - {None}
    if reading.validation is not None and official and reading.validation.of not in official:
        sentences.append(f"validation takes a share of {reading.validation.of!r}, and no image is in that split")
    return figures | ({"notes": sentences} if sentences else {})


def _beside(raws: Mapping[str, RawFiles], listed: set[str], own: tuple[str, ...] | None) -> list[ReaderNote]:
    """Notes on the raw files beside the listed images and the reader's own files, whose endings are `own`."""
    from vbert.data.readers import ReaderNote

    if own is None:  # a format without foreign files
        return []
    unlisted, other = list[str](), list[str]()
    for source, raw in raws.items():
        for name in raw.members():
            if is_image(name):
                unlisted += [name] if f"{source}/{name}" not in listed else []
            elif not name.lower().endswith(own):
                other.append(name)
    notes = []
    if unlisted:
        notes.append(
            ReaderNote("unlisted_images", len(unlisted), f"{count_of(unlisted, 'image file')} that no annotation names")
        )
    if other:
        notes.append(ReaderNote("other_files", len(other), f"{count_of(other, 'file')} of other kinds: {kinds(other)}"))
    return notes


def _placed(row: ImageRow, raws: Mapping[str, RawFiles], reading: ReaderOptions) -> dict[str, Any]:
    """The row with its path as `source/member` and its split."""
    source = row.get("source") or (next(iter(raws)) if len(raws) == 1 else "")
    if source not in raws:
        raise UserError(f"images: {row['image_id']!r} names the source {source!r}; {nearest(source, raws)}")
    split = reading.split(row.get("split"), row.get("cluster", row["image_id"]))
    return {"image_id": row["image_id"], "path": f"{source}/{row['path']}", "split": split}


def _limited(rows: Iterable[dict[str, Any]], limit: int, clusters: Mapping[str, str]) -> list[dict[str, Any]]:
    def order(row: dict[str, Any]) -> tuple[float, str]:
        return share_of(clusters.get(row["image_id"], row["image_id"])), row["image_id"]

    taken: dict[str | None, int] = {}
    kept = []
    for row in sorted(rows, key=order):
        taken[row["split"]] = taken.get(row["split"], 0) + 1
        if taken[row["split"]] <= limit:
            kept.append(row)
    return kept


def _indexed(
    build: Build, raws: Mapping[str, RawFiles], rows: list[dict[str, Any]], photos: dict[str, PhotoHeader]
) -> Iterator[dict[str, Any]]:
    """The rows with sha256, width and height; the photos' headers are added to `photos`.

    Threads: reading, inflating and hashing release the interpreter.
    """
    from concurrent.futures import ThreadPoolExecutor
    from hashlib import sha256

    from vbert.data.boxes import PhotoHeader
    from vbert.data.decode import BadImage, read_header

    def indexed(row: dict[str, Any]) -> dict[str, Any]:
        source, _, member = row["path"].partition("/")
        data = raws[source].read(member)
        try:
            photo = PhotoHeader(*read_header(data))
        except BadImage:
            photo = PhotoHeader(0, 0)
        photos[row["image_id"]] = photo
        return row | {"sha256": sha256(data).hexdigest(), "width": photo.shown[0], "height": photo.shown[1]}

    with ThreadPoolExecutor(max(1, build.machine.loader_workers)) as threads:
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            yield from threads.map(indexed, rows[begin : begin + ROWS_AT_ONCE])
            build.progress(min(begin + ROWS_AT_ONCE, len(rows)), len(rows))
