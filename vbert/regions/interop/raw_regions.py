"""The regions of one image in a foreign file, and the error for an unreadable entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vbert.regions.shards import FLOAT16_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Unit = Literal["pixels", "normalised"]


@dataclass(frozen=True)
class RawRegions:
    """The n regions of one image as its file has them; None for fields that it lacks.

    features [n, d]; boxes [n, 4] x1 y1 x2 y2 in pixels, or `normalised`: divided by width and height; width and height
    as recorded beside them; scores [n]; classes and attributes: names, or numbers as text where the file has those;
    attribute_scores [n]; distributions [n, C]; `note`: the interpretation of the file, where it isn't obvious.
    """

    features: NDArray[np.floating[Any]]
    boxes: NDArray[np.floating[Any]] | None = None
    unit: Unit = "pixels"
    width: int | None = None
    height: int | None = None
    scores: NDArray[np.floating[Any]] | None = None
    classes: Sequence[str] | None = None
    attributes: Sequence[Sequence[str]] | None = None
    attribute_scores: Sequence[Sequence[float]] | None = None
    distributions: NDArray[np.floating[Any]] | None = None
    note: str = ""


class BadEntry(Exception):
    """An unusable entry of one image: `where` in which file, the `reason` in a word or two, the `detail` in a
    sentence."""

    def __init__(self, where: str, reason: str, detail: str) -> None:
        super().__init__(where, reason, detail)
        self.where, self.reason, self.detail = where, reason, detail

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


SMALLEST = 2.0**-24  # of float16, other than 0
TINY, HUGE = 0.05, 0.1  # the largest shares of numbers beyond these bounds in features of a network


def out_of_proportion(features: NDArray[np.floating[Any]]) -> str | None:
    """A sentence where the numbers can't be features of a network, or have another type; else None.

    Bytes of float16, float64 or whole numbers, read as float32, have exponents of all sizes: 20 to 50 % of them are
    below 6e-8, against none but zeros of real features.
    """
    import numpy as np

    sizes = np.abs(np.asarray(features, np.float64))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes):
        return None
    tiny, huge = float((sizes < SMALLEST).mean()), float((sizes > FLOAT16_MAX).mean())
    if tiny <= TINY and huge <= HUGE:
        return None
    return f"of its numbers other than 0, {tiny:.0%} are below {SMALLEST:.0e} and {huge:.0%} above {FLOAT16_MAX:g}"


def check_finite(regions: RawRegions, where: str) -> None:
    """Raises BadEntry where a number of the entry is NaN or infinite."""
    import numpy as np

    for name in ("features", "boxes", "scores", "distributions"):
        value = getattr(regions, name)
        if value is not None and not bool(np.isfinite(value).all()):
            raise BadEntry(where, "not finite", f"{name} hold NaN or infinite numbers")
    if not all(math.isfinite(score) for scores in regions.attribute_scores or () for score in scores):
        raise BadEntry(where, "not finite", "attribute_scores hold NaN or infinite numbers")


def numbered(ids: Any) -> list[str]:
    """Numbers of classes as text, until a vocabulary names them."""
    return [str(int(number)) for number in ids]


def missing_library(extra: str, what: str) -> str:
    """The sentence for a format whose library isn't installed."""
    return f"{what} needs the package {extra!r}; install it with: pip install 'vbert[interop]' (or {extra} itself)"


def sibling(path: Path, ending: str) -> Path:
    """`train.hdf5` and `_imgid2idx.pkl` → `train_imgid2idx.pkl` beside it."""
    return path.with_name(path.name.removesuffix(path.suffix) + ending)
