"""Oscar's TSV: one image a line, with or without the offsets of its lines beside it (`features.lineidx`).

Captioning has two columns: image id · JSON {"num_boxes": n, "features": base64}; pre-training three or more: image id ·
n · … · base64. The array is float32 [n, d]; d follows from the bytes, never from a flag. With d = 2054 (or whenever
they fit) the last six are the box over the image's size: x1/W, y1/H, x2/W, y2/H, w/W, h/H. The file has no image sizes,
so boxes in pixels need those from elsewhere.
Source: `oscar/run_captioning.py`, `oscar/datasets/oscar_tsv.py` and `oscar/utils/tsv_file.py` of
github.com/microsoft/Oscar.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.regions.interop import Place, Read, tsv
from vbert.regions.interop.found import BadEntry, Found

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
TITLE = "Oscar TSV (image id and JSON, or image id, count and features)"
NEAR = 2e-3  # of the image's size, by which x2 − x1 and w may differ


def holds(path: Path) -> bool:
    return 2 <= tsv.columns(path) <= 5


def files(path: Path) -> dict[str, Path]:
    return tsv.table_files(path)


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return tsv.lines(files)


def opened(files: Mapping[str, Path]) -> AbstractContextManager[Read]:
    return tsv.opened_table(files, _parse)


def _parse(row: Sequence[bytes], where: str) -> Found:
    if len(row) < 2:
        raise BadEntry(where, "truncated", "one column: the line is cut off")
    if len(row) == 2:
        try:
            about = json.loads(row[1])
            count, text = str(about["num_boxes"]).encode(), about["features"].encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            detail = f"the second column is no JSON of num_boxes and features ({type(error).__name__}: {error})"
            raise BadEntry(where, "truncated", detail[:300]) from None
    else:
        count, text = row[1], row[-1]
    n = tsv.whole(count, "num_boxes", where)
    values = tsv.array(text, "<f4", (n, -1), "features", where)
    if n and _ends_in_boxes(values):
        return Found(features=values[:, :-6], boxes=values[:, -6:-2], unit="normalised")
    return Found(features=values)


def _ends_in_boxes(values: NDArray[Any]) -> bool:
    """Whether the last six numbers of all rows are x1 y1 x2 y2 w h within the unit square."""
    import numpy as np

    if values.shape[1] < 7:
        return False
    x1, y1, x2, y2, w, h = values[:, -6:].T.astype(np.float64)
    inside = min(x1.min(), y1.min()) >= -NEAR and max(x2.max(), y2.max()) <= 1 + NEAR
    sides = max(np.abs(x2 - x1 - w).max(), np.abs(y2 - y1 - h).max()) <= NEAR
    return bool(inside and sides and w.max() > 0 and h.max() > 0)
