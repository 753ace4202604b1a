"""Compares two sets of region features image by image, and names the likely cause where they differ. Memory doesn't
grow with the regions: a row of figures an image is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vbert.errors import UserError
from vbert.regions.interop.boxes_in import scale
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vbert.regions.interop.feature_sets import FeatureSet

    Floats = NDArray[Any]

ALIKE = 0.999  # cosine from which two features count as the same: float16 alone leaves above 0.9999
SAME_IOU = 0.9
NORM = 0.01  # by which the ratio of norms may differ from 1
ENOUGH = 0.9  # share of the regions that must agree
RULES = ((800, 1333), (600, 1000), (800, None), (600, None))  # usual sides of resized images

CAUSES = {
    "same": "the same boxes and features",
    "order": "the same regions in another order",
    "norm": "the same features times a constant",
    "unit": "the same directions, but one of the two has norm 1 everywhere: it is L2-normalised",
    "relu": "one is the other with negative numbers set to 0: before and after a ReLU (fc6 or fc7 before and after)",
    "boxes scaled": "the same features; the boxes of one are a constant times the other's: pixels of a resized image",
    "boxes normalised": "the same features; the boxes of one are shares of the image, those of the other pixels",
    "boxes xywh": "the same features; the boxes of one are x, y, width, height, those of the other two corners",
    "boxes yxyx": "the same features; x and y of the boxes are exchanged",
    "boxes shuffled": "the same features and the same boxes, but joined differently: one was sorted without the other",
    "boxes": "the same features with other boxes",
    "fewer": "the regions of one are among those of the other: another cap or threshold",
    "appended": "one has the same features with six numbers more, those of its boxes (append6)",
    "length": "features of different length: another layer or another network",
    "features": "the same boxes with other features: another layer (fc6 or fc7), other weights or other preprocessing, "
    "which the numbers can't tell apart",
    "some": "a part of the regions is the same, the rest is not: another box rule, NMS or preprocessing",
    "different": "neither boxes nor features agree: another detector, or other images under these ids",
    "unreadable": "one of the two can't be read",
}


@dataclass(frozen=True)
class ImageComparison:
    """One image: the numbers of regions in a and b and of matched ones, and medians over those (None without any)."""

    image_id: str
    cause: str
    a: int = 0
    b: int = 0
    matched: int = 0
    iou: float | None = None
    cosine: float | None = None
    norm_ratio: float | None = None  # of b to a
    detail: str = ""


@dataclass
class FeatureComparison:
    images: int = 0
    only_a: int = 0
    only_b: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    medians: dict[str, list[float]] = field(default_factory=lambda: {"iou": [], "cosine": [], "norm_ratio": []})
    details: Counter[str] = field(default_factory=Counter)

    def add(self, row: ImageComparison) -> None:
        self.images += 1
        self.causes[row.cause] += 1
        for name, values in self.medians.items():
            if (value := getattr(row, name)) is not None:
                values.append(value)
        if row.detail:
            self.details[f"{row.cause}: {row.detail}"] += 1

    @property
    def same(self) -> bool:
        return self.images > 0 and set(self.causes) == {"same"} and not self.only_a and not self.only_b

    def verdict(self) -> str:
        """A sentence: the commonest cause, and the number of its images."""
        if self.same:
            return f"the same: boxes and features of all {self.images:,} images agree"
        cause, count = self.causes.most_common(1)[0]
        sentence = f"{CAUSES[cause]} ({count:,} of {self.images:,} images)"
        detail = next((text for text, _ in self.details.most_common() if text.startswith(f"{cause}: ")), "")
        sentence += f"; {detail.removeprefix(f'{cause}: ')}" if detail else ""
        missing = [f"{n:,} images are in {name} only" for name, n in (("A", self.only_a), ("B", self.only_b)) if n]
        return "; ".join([f"not the same: {sentence}" if cause != "same" else f"mostly {sentence}", *missing])

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "same": self.same,
            "causes": dict(self.causes.most_common()),
            "median": {n: round(float(np.median(v)), 6) if v else None for n, v in self.medians.items()},
            "verdict": self.verdict(),
        }


def compare(
    a: FeatureSet, b: FeatureSet, progress: Callable[[int, int], None], total: FeatureComparison
) -> Iterator[ImageComparison]:
    """Every image of both, by sorted id; `total` grows with each. Raises UserError where they share none."""
    both = sorted(set(a.ids) & set(b.ids))
    if not both:
        raise UserError(
            f"{a.path} and {b.path} have no image in common; --ids-a and --ids-b take ids out of names",
            f"a: {', '.join(a.ids[:3])}\nb: {', '.join(b.ids[:3])}",
        )
    total.only_a, total.only_b = len(a.ids) - len(both), len(b.ids) - len(both)
    for done, image_id in enumerate(both):
        progress(done, len(both))
        try:
            row = compared(image_id, a.read(image_id), b.read(image_id))
        except BadEntry as error:
            row = ImageComparison(image_id, "unreadable", detail=str(error))
        total.add(row)
        yield row


def compared(image_id: str, a: RawRegions, b: RawRegions) -> ImageComparison:
    """One image. Regions are matched by their boxes where those agree, else by their features."""
    x, y = (np.asarray(one.features, np.float32) for one in (a, b))
    if not len(x) or not len(y):
        return ImageComparison(image_id, "same" if len(x) == len(y) else "fewer", len(x), len(y))
    appended = x.shape[1] != y.shape[1]
    if appended:
        if abs(x.shape[1] - y.shape[1]) != 6:
            return ImageComparison(image_id, "length", len(x), len(y), detail=f"{x.shape[1]} and {y.shape[1]}")
        shorter = min(x.shape[1], y.shape[1])
        x, y = x[:, :shorter], y[:, :shorter]
    cosines = _cosines(x, y)
    by_boxes = None if a.boxes is None or b.boxes is None else _matched(_ious(a.boxes, b.boxes), 0.5, SAME_IOU)
    by_features = _matched(cosines, ALIKE, ALIKE)
    least = min(len(x), len(y))
    agree = by_boxes is not None and len(by_boxes[0]) >= ENOUGH * least
    pairs = by_boxes if agree and by_boxes is not None else by_features if len(by_features[0]) else by_boxes
    figures = _figures(a, b, x, y, cosines, pairs)
    cause, detail = _cause(a, b, x, y, cosines, by_boxes if agree else None, by_boxes, by_features, figures)
    if appended and cause in ("same", "order", "fewer"):
        cause = "appended"
    return ImageComparison(image_id, cause, len(x), len(y), **figures, detail=detail)


def _cosines(x: Floats, y: Floats) -> Floats:
    """Cosines [n, m]; 1 for two features of zeros."""
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (x, y)]
    units = [one / np.where(length > 0, length, 1) for one, length in zip((x, y), lengths, strict=True)]
    both: Floats = units[0] @ units[1].T
    both[np.ix_(lengths[0][:, 0] == 0, lengths[1][:, 0] == 0)] = 1.0
    return both


def _ious(a: Any, b: Any) -> Floats:
    p, q = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2])
    inner = np.clip(sides, 0, None).prod(-1)
    areas = [np.clip(one[..., 2:] - one[..., :2], 0, None).prod(-1) for one in (p, q)]
    union = areas[0] + areas[1] - inner
    same = (np.abs(p - q) < 0.01).all(-1)  # boxes without area too
    return np.where(same, 1.0, inner / np.where(union > 0, union, 1))


def _matched(likeness: Floats, least: float, same: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The optimal matching of rows and columns, without pairs below `least`. Where nearly all pairs at equal positions
    are the `same`, these come first: among near duplicates another pair may score higher by a rounding."""
    from scipy.optimize import linear_sum_assignment

    places = np.flatnonzero(np.diagonal(likeness) >= same)
    if len(places) < ENOUGH * min(likeness.shape):
        places = places[:0]
    rest = [np.setdiff1d(np.arange(count), places) for count in likeness.shape]
    left = likeness[np.ix_(*rest)]
    rows, columns = linear_sum_assignment(left + 1e-9 * np.equal.outer(*rest), maximize=True)
    kept = left[rows, columns] >= least
    pairs = np.concatenate([places, rest[0][rows[kept]]]), np.concatenate([places, rest[1][columns[kept]]])
    order = np.argsort(pairs[0])
    return pairs[0][order], pairs[1][order]


def _figures(a: RawRegions, b: RawRegions, x: Floats, y: Floats, cosines: Floats, pairs: Any) -> dict[str, Any]:
    if pairs is None or not len(pairs[0]):
        return {"matched": 0}
    rows, columns = pairs
    lengths = np.linalg.norm(x[rows], axis=1), np.linalg.norm(y[columns], axis=1)
    real = lengths[0] > 0
    ious = None
    if a.boxes is not None and b.boxes is not None:
        ious = float(np.median(_ious(a.boxes, b.boxes)[rows, columns]))
    return {
        "matched": len(rows),
        "iou": None if ious is None else round(ious, 6),
        "cosine": round(float(np.median(cosines[rows, columns])), 6),
        "norm_ratio": round(float(np.median(lengths[1][real] / lengths[0][real])), 6) if real.any() else None,
    }


def _cause(
    a: RawRegions,
    b: RawRegions,
    x: Floats,
    y: Floats,
    cosines: Floats,
    agreed: Any,
    by_boxes: Any,
    by_features: Any,
    figures: dict[str, Any],
) -> tuple[str, str]:
    least, most = sorted((len(x), len(y)))
    if len(by_features[0]) >= ENOUGH * least:  # the features are the same
        if agreed is not None:
            rows, columns = agreed
            alike = cosines[rows, columns] >= ALIKE
            tight = _ious(a.boxes, b.boxes)[rows, columns] >= SAME_IOU
            if alike.mean() < ENOUGH:
                return "boxes shuffled", ""
            if tight.mean() < ENOUGH:
                return "boxes", f"overlap of {figures['iou']:.2f}"
        elif by_boxes is not None:
            return _box_cause(a, b, by_features)
        if (cause := _norms(x, y, by_features)) is not None:
            return cause
        if least != most:
            return "fewer", f"{least} of {most} regions"
        in_place = [(pairs[0] == pairs[1]).all() for pairs in (by_features, agreed) if pairs is not None]
        return ("same" if all(in_place) else "order"), ""
    if agreed is not None:
        rows, columns = agreed
        if _relu(x[rows], y[columns]):
            return "relu", ""
        return "features", f"cosine {figures['cosine']:.3f}"
    if len(by_features[0]) or (by_boxes is not None and len(by_boxes[0])):
        return "some", ""
    return "different", ""


def _norms(x: Floats, y: Floats, pairs: Any) -> tuple[str, str] | None:
    """The cause of a difference in norms alone, or None: the directions are the same."""
    rows, columns = pairs
    before, after = np.linalg.norm(x[rows], axis=1), np.linalg.norm(y[columns], axis=1)
    real = before > 0
    if not real.any():
        return None
    ratios = after[real] / before[real]
    ratio = float(np.median(ratios))
    if abs(ratio - 1) < NORM and np.abs(ratios - 1).max() < 2 * NORM:
        return None
    for lengths in (before[real], after[real]):
        if np.abs(lengths - 1).max() < NORM and len(lengths) > 1:
            return "unit", ""
    return "norm", f"B is {ratio:.4g} × A" if np.abs(ratios / ratio - 1).max() < 2 * NORM else "by region"


def _relu(x: Floats, y: Floats) -> bool:
    def after(p: Floats, q: Floats) -> bool:
        return bool(p.min() < 0 and np.median(np.diagonal(_cosines(np.maximum(p, 0), q))) >= ALIKE)

    return after(x, y) or after(y, x)


def _box_cause(a: RawRegions, b: RawRegions, pairs: Any) -> tuple[str, str]:
    """The cause of a difference in boxes alone: the features are the same, region by region."""
    rows, columns = pairs
    p, q = np.asarray(a.boxes, np.float64)[rows], np.asarray(b.boxes, np.float64)[columns]

    def close(one: Floats, other: Floats) -> bool:
        extent = max(1e-6, float(np.abs(other).max()))
        return bool(np.median(np.abs(one - other).max(1)) <= 0.01 * extent)

    def corners(boxes: Floats) -> Floats:
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)

    if close(corners(p), q) or close(corners(q), p):
        return "boxes xywh", ""
    if close(p[:, [1, 0, 3, 2]], q):
        return "boxes yxyx", ""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = q / p
    usable = np.isfinite(ratios) & (p > 0) & (q > 0)
    factors = [float(np.median(ratios[:, axis::2][usable[:, axis::2]])) for axis in (0, 1) if usable[:, axis::2].any()]
    if len(factors) == 2 and close(p * np.asarray(factors * 2), q):
        return _scaled(a, b, p, q, factors)
    return "boxes", ""


def _scaled(a: RawRegions, b: RawRegions, p: Floats, q: Floats, factors: list[float]) -> tuple[str, str]:
    if min(p.max(), q.max()) <= 1.5 < max(p.max(), q.max()):
        return "boxes normalised", ""
    width, height = (a.width or b.width), (a.height or b.height)
    detail = f"B is {factors[0]:.4g} × A"
    if abs(factors[0] / factors[1] - 1) > 0.02:
        return "boxes scaled", f"B is {factors[0]:.4g} × A along x and {factors[1]:.4g} along y"
    if width and height:
        larger, which = (factors[0], "B") if factors[0] > 1 else (1 / factors[0], "A")
        for short, long in RULES:
            if abs(larger / scale((width, height), short, long) - 1) < 0.005:
                detail = f"as if {which} were --boxes-in resized:{short}" + (f",{long}" if long else "")
                break
    return "boxes scaled", detail
