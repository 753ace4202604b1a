"""Oscar's TSV: one image a line, with or without the offsets of its lines beside it (`features.lineidx`).

Captioning has two columns: image id · JSON {"num_boxes": n, "features": base64}; pre-training three or more: image id ·
n · … · base64. The array is float32 [n, d]; d follows from the bytes, never from a flag. With d = 2054 (or whenever
they fit) the last six are the box over the image's size: x1/W, y1/H, x2/W, y2/H, w/W, h/H; some write them in pixels.
With d = 2054 and the like (six more than a multiple of 256) and six that are no box an entry is refused. The file has
no image sizes, so boxes in pixels need those from elsewhere.
Source: `oscar/run_captioning.py`, `oscar/datasets/oscar_tsv.py` and `oscar/utils/tsv_file.py` of
github.com/microsoft/Oscar.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.regions.interop import Dtype, Place, Read, tsv
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
TITLE = "Oscar TSV (image id and JSON, or image id, count and features)"
BY_LENGTH = True
NEAR = 2e-3  # of the image's size, by which x2 − x1 and w may differ
PIXEL = 1.01  # by which they may differ in pixels: inclusive corners, and rounding


def holds(path: Path) -> bool:
    return 2 <= tsv.columns(path) <= 5


def files(path: Path) -> dict[str, Path]:
    return tsv.table_files(path)


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    return tsv.lines(files)


def opened(files: Mapping[str, Path], dtype: Dtype | None = None) -> AbstractContextManager[Read]:
    return tsv.opened_table(files, _parse, dtype)


def _parse(row: Sequence[bytes], where: str, dtype: Dtype | None) -> RawRegions:
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
    values = tsv.features(text, n, dtype, where)
    length = values.shape[1]
    if not n or length < 7:
        return RawRegions(features=values)
    last = values[:, -6:]
    if _are_boxes(last, NEAR) and last[:, 2:4].max() <= 1 + NEAR:
        return RawRegions(features=values[:, :-6], boxes=last[:, :4], unit="normalised")
    if (length - 6) % 256:
        return RawRegions(features=values)
    if not _are_boxes(last, PIXEL) or last[:, 2:4].max() <= 2:
        seen = " ".join(f"{value:.4g}" for value in last[0])
        detail = f"{length} numbers are {length - 6} and the six of a box, but the last six are no box ({seen})"
        raise BadEntry(where, "no box", f"{detail}; mend them, or cut them off")
    note = f"the last six of its {length} numbers are boxes in pixels"
    return RawRegions(features=values[:, :-6], boxes=last[:, :4], note=note)


def _are_boxes(six: NDArray[Any], near: float) -> bool:
    """Whether the numbers [n, 6] are x1 y1 x2 y2 w h, `near` enough; none left of the image or above it."""
    import numpy as np

    x1, y1, x2, y2, w, h = six.T.astype(np.float64)
    sides = max(np.abs(x2 - x1 - w).max(), np.abs(y2 - y1 - h).max()) <= near
    return bool(sides and min(x1.min(), y1.min()) >= -near and w.max() > 0 and h.max() > 0)
