"""Stage `images`: the index of an image collection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vbert.artifacts.build import Build
from vbert.artifacts.errors import BuildError, UserError, nearest
from vbert.artifacts.settings import Plugin
from vbert.artifacts.stage import Figures, stage
from vbert.data.images import Images
from vbert.data.raw import Raw
from vbert.data.spec import Reading, share_of

if TYPE_CHECKING:
    from vbert.data.readers import ImageRow

ROWS_AT_ONCE = 1000


@stage("images", makes=Images, version=1)
def images(
    build: Build, raws: Mapping[str, Raw], reader: Plugin, limit: int | None = None, reading: Reading | None = None
) -> Figures:
    """Every image's place, sha256 and size as shown, and the boxes, where there are any.

    `limit`: at most so many images of each split, those whose ids hash lowest; the ids of the others are kept apart.
    A file that can't be opened stays in the index with size 0×0: `regions` sets it aside with its reason.
    """
    from vbert.data import readers
    from vbert.data.images import write_images

    reading = reading or Reading()
    module = readers.of(reader)
    listed = [_placed(row, raws, reading) for row in readers.call(module, "images", raws, options=reading.options)]
    if not listed:
        raise BuildError(
            f"images: reader {reader.name!r} finds no image in {', '.join(raws)}; are they the right files?"
        )
    kept = listed if limit is None else _limited(listed, limit)
    ids = {row["image_id"] for row in kept}
    boxes = None
    if hasattr(module, "boxes"):
        found = readers.call(module, "boxes", raws, options=reading.options)
        all_ids = {row["image_id"] for row in listed}
        boxes = (box for box in found if box["image_id"] in ids or box["image_id"] not in all_ids)
    left_out = None if limit is None else (row["image_id"] for row in listed if row["image_id"] not in ids)
    return dict(write_images(build.directory, _indexed(build, raws, kept), boxes, left_out))


def _placed(row: ImageRow, raws: Mapping[str, Raw], reading: Reading) -> dict[str, Any]:
    """The row with its path as `source/member` and its split."""
    source = row.get("source") or (next(iter(raws)) if len(raws) == 1 else "")
    if source not in raws:
        raise UserError(f"images: {row['image_id']!r} names the source {source!r}; {nearest(source, raws)}")
    split = reading.split(row.get("split"), row["image_id"])
    return {"image_id": row["image_id"], "path": f"{source}/{row['path']}", "split": split}


def _limited(rows: Iterable[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    taken: dict[str | None, int] = {}
    kept = []
    for row in sorted(rows, key=lambda row: (share_of(row["image_id"]), row["image_id"])):
        taken[row["split"]] = taken.get(row["split"], 0) + 1
        if taken[row["split"]] <= limit:
            kept.append(row)
    return kept


def _indexed(build: Build, raws: Mapping[str, Raw], rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with sha256, width and height. Threads: reading, inflating and hashing release the interpreter."""
    from concurrent.futures import ThreadPoolExecutor
    from hashlib import sha256

    from vbert.data.decode import BadImage, size

    def indexed(row: dict[str, Any]) -> dict[str, Any]:
        source, _, member = row["path"].partition("/")
        data = raws[source].read(member)
        try:
            width, height = size(data)
        except BadImage:
            width, height = 0, 0
        return row | {"sha256": sha256(data).hexdigest(), "width": width, "height": height}

    with ThreadPoolExecutor(max(1, build.machine.loader_workers)) as threads:
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            yield from threads.map(indexed, rows[begin : begin + ROWS_AT_ONCE])
            build.progress(min(begin + ROWS_AT_ONCE, len(rows)), len(rows))
