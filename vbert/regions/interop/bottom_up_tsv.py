"""Bottom-up attention's TSV: one image a line, six columns, no header.

image_id · image_w · image_h · num_boxes · boxes · features
(width before height, unlike LXMERT's), boxes float32 [n, 4] x1 y1 x2 y2 in pixels of the original image and features
float32 [n, d] in base64. Neither classes nor confidences, so its boxes can't be capped.
Source: `tools/generate_tsv.py` of github.com/peteanderson80/bottom-up-attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vbert.regions.interop import Dtype, Place, Read, tsv
from vbert.regions.interop.raw_regions import RawRegions

VERSION = 2
TITLE = "bottom-up attention TSV (6 columns)"
BY_LENGTH = True
COLUMNS = 6


def holds(path: Path) -> bool:
    return tsv.columns(path) == COLUMNS


def files(path: Path) -> dict[str, Path]:
    return tsv.table_files(path)


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return tsv.lines(files)


def opened(files: Mapping[str, Path], dtype: Dtype | None = None) -> AbstractContextManager[Read]:
    return tsv.opened_table(files, _parse, dtype)


def _parse(row: Sequence[bytes], where: str, dtype: Dtype | None) -> RawRegions:
    _, width, height, count, boxes, features = tsv.checked_columns(row, COLUMNS, where)
    n = tsv.whole(count, "num_boxes", where)
    return RawRegions(
        features=tsv.features(features, n, dtype, where),
        boxes=tsv.boxes(boxes, n, where),
        width=tsv.whole(width, "image_w", where),
        height=tsv.whole(height, "image_h", where),
    )
