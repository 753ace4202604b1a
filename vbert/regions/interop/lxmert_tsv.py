"""LXMERT's TSV: one image a line, ten columns, no header.

img_id · img_h · img_w · objects_id · objects_conf · attrs_id · attrs_conf · num_boxes · boxes · features
(height before width), the arrays in base64: ids int64 [n], confidences float32 [n], boxes float32 [n, 4] x1 y1 x2 y2 in
pixels of the original image, features float32 [n, d]. Ids count from 0 without the background: line numbers of the
vocabularies that come with the detector (`objects_vocab.txt`, `attributes_vocab.txt`).
Source: `load_obj_tsv` and the extraction scripts of github.com/airsplay/lxmert.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from vbert.errors import UserError
from vbert.regions.interop import Dtype, Place, Read, tsv
from vbert.regions.interop.raw_regions import RawRegions, numbered

VERSION = 2
TITLE = "LXMERT TSV (10 columns)"
BY_LENGTH = True
COLUMNS = 10
VOCABULARIES = ("objects_vocab.txt", "attributes_vocab.txt")


def holds(path: Path) -> bool:
    return tsv.columns(path) == COLUMNS


def files(path: Path) -> dict[str, Path]:
    return tsv.table_files(path)


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return tsv.lines(files)


def opened(files: Mapping[str, Path], dtype: Dtype | None = None) -> AbstractContextManager[Read]:
    return tsv.opened_table(files, _parse, dtype)


def _parse(row: Sequence[bytes], where: str, dtype: Dtype | None) -> RawRegions:
    _, height, width, *_ = tsv.checked_columns(row, COLUMNS, where)
    n = tsv.whole(row[7], "num_boxes", where)
    read = partial(tsv.numbers, where=where)
    attributes = read(row[5], "i", (n,), "attrs_id")
    attribute_scores = read(row[6], "f", (n,), "attrs_conf")
    return RawRegions(
        features=tsv.features(row[9], n, dtype, where),
        boxes=tsv.boxes(row[8], n, where),
        width=tsv.whole(width, "img_w", where),
        height=tsv.whole(height, "img_h", where),
        scores=read(row[4], "f", (n,), "objects_conf"),
        classes=numbered(read(row[3], "i", (n,), "objects_id")),
        attributes=[[name] for name in numbered(attributes)],
        attribute_scores=[[float(score)] for score in attribute_scores],
    )


def write(target: Path, entries: Iterable[tuple[str, RawRegions]]) -> dict[str, Any]:
    """Write the entries into the file `target`, in their order; beside it the vocabularies, where classes have names.

    Missing fields (confidences, attributes) are written as 0, because LXMERT's loader requires them.
    Raises UserError for an image without boxes or size. Returns counts and `zeros`, the columns that hold no knowledge.
    """
    vocabularies: tuple[dict[str, int], dict[str, int]] = ({}, {})
    images, regions, zeros = 0, 0, set[str]()
    with target.open("wb") as out:
        for image_id, entry in entries:
            out.write(_line(image_id, entry, vocabularies, zeros))
            images, regions = images + 1, regions + len(entry.features)
    for name, words in zip(VOCABULARIES, vocabularies, strict=True):
        if words and list(words) != [str(number) for number in words.values()]:
            beside = target.with_name(f"{target.stem}_{name}")
            beside.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return {"images": images, "regions": regions, "zeros": sorted(zeros)}


def _line(
    image_id: str, regions: RawRegions, vocabularies: tuple[dict[str, int], dict[str, int]], zeros: set[str]
) -> bytes:
    import numpy as np

    n = len(regions.features)
    if regions.boxes is None or regions.unit != "pixels" or regions.width is None or regions.height is None:
        raise UserError(
            f"image {image_id!r} has no boxes in pixels or no size, which LXMERT's TSV must have; export as npy, or "
            "import the features again with `--images` or `--sizes`"
        )
    if any(character in image_id for character in "\t\r\n"):
        raise UserError(f"image id {image_id!r} holds a tab or line break and can't stand in a TSV")
    if regions.scores is None and n:
        zeros.add("objects_conf")
    classes = None if regions.classes is None else [[name] for name in regions.classes]
    objects, _ = _ids(classes, None, n, vocabularies[0], "objects_id", zeros)
    attributes, attributes_conf = _ids(
        regions.attributes, regions.attribute_scores, n, vocabularies[1], "attrs_id, attrs_conf", zeros
    )
    scores = np.zeros(n) if regions.scores is None else regions.scores
    arrays = [
        (objects, "<i8"), (scores, "<f4"), (attributes, "<i8"), (attributes_conf, "<f4"), (n, ""),
        (regions.boxes, "<f4"), (regions.features, "<f4"),
    ]  # fmt: skip
    cells = [
        str(value).encode() if not kind else base64.b64encode(np.asarray(value, kind).tobytes())
        for value, kind in arrays
    ]
    return b"\t".join([image_id.encode(), str(regions.height).encode(), str(regions.width).encode(), *cells]) + b"\n"


def _ids(
    names: Sequence[Sequence[str]] | None,
    scores: Sequence[Sequence[float]] | None,
    n: int,
    words: dict[str, int],
    column: str,
    zeros: set[str],
) -> tuple[list[int], list[float]]:
    """The number of each region's first name: the name itself if it is a number, else its place in a growing
    vocabulary."""
    ids, confidences = [], []
    for at in range(n):
        first = names[at][0] if names is not None and names[at] else ""
        if not first:
            zeros.add(column)
            ids.append(0)
        elif first.isdecimal():
            ids.append(int(first))
            words.setdefault(first, int(first))
        else:
            ids.append(words.setdefault(first, len(words)))
        confidences.append(scores[at][0] if first and scores is not None and scores[at] else 0.0)
    if scores is None and n and column.startswith("attrs"):
        zeros.add("attrs_conf")
    return ids, confidences
