"""Statistics of shards: regions an image, classes, attributes, and the quarantine with its reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.errors import BuildError, Damaged
from vbert.regions.shards import Shards
from vbert.report.lineage import LineageNode

SAMPLED = 2000  # images whose classes and attributes are counted
COMMON = 12  # of these that are shown
LISTED = 20  # rows of the quarantine that are shown
BARS = 24


@dataclass(frozen=True)
class HistogramBar:
    """Images with `low` to `high` regions."""

    low: int
    high: int
    images: int
    share: float  # of the tallest bar


@dataclass(frozen=True)
class ShardStatistics:
    title: str
    images: int
    regions: int
    quantiles: tuple[int, int, int]  # fewest, median, most regions of an image
    bars: list[HistogramBar]
    classes: list[tuple[str, float]]  # name, share of the regions in the sample
    attributes: list[tuple[str, float]]
    sample: int
    facts: list[tuple[str, str]]
    quarantined: int
    reasons: list[tuple[str, int]]
    rows: list[dict[str, Any]]  # of the quarantine, the first ones

    @property
    def mean(self) -> float:
        return self.regions / self.images if self.images else 0.0


def statistics(shards: Iterable[Shards], nodes: Sequence[LineageNode]) -> tuple[list[ShardStatistics], list[str]]:
    """Statistics of the given shards and all others in the chain, each once; and sentences on unreadable ones."""
    by_key = {id(one) if one.step is None else one.fingerprint: one for one in shards}
    by_key.update({node.key: node.artifact for node in nodes if isinstance(node.artifact, Shards)})
    read, missing = [], []
    for one in sorted(by_key.values(), key=lambda one: one.title):
        try:
            read.append(_statistics(one))
        except Damaged:
            raise
        except (BuildError, OSError) as error:
            missing.append(f"{one.title}: {error}")
    return read, missing


def _statistics(shards: Shards) -> ShardStatistics:
    counts: list[int] = [int(n or 0) for n in shards.table()["n"].to_pylist()]
    ids = shards.image_ids()
    bad: list[dict[str, Any]] = shards.quarantine().to_pylist()
    classes, attributes = Counter[str](), Counter[str]()
    sample = ids[:: -(-len(ids) // SAMPLED) or 1]
    for image_id in sample:
        regions = shards.read(image_id)
        classes.update(regions.classes)
        attributes.update(name for names in regions.attributes for name in names)
    total = max(1, classes.total())
    contract = shards.contract()
    rule = {"rule": "not stated"} if contract.boxes is None else contract.boxes.model_dump(mode="json")
    ordered = sorted(counts) or [0]
    return ShardStatistics(
        title=shards.title,
        images=len(ids),
        regions=sum(counts),
        quantiles=(ordered[0], ordered[len(ordered) // 2], ordered[-1]),
        bars=_bars(counts),
        classes=[(name, n / total) for name, n in _common(classes)],
        attributes=[(name, n / total) for name, n in _common(attributes)],
        sample=len(sample),
        facts=[
            ("detector", contract.detector),
            ("feature", f"{contract.layer or 'layer not stated'}, {contract.dim} × {contract.dtype}"),
            ("boxes", ", ".join(f"{name} {value}" for name, value in rule.items())),
            ("features of", contract.features_of or "not stated"),
        ],
        quarantined=len(bad),
        reasons=_common(Counter(row["reason"] for row in bad)),
        rows=bad[:LISTED],
    )


def _common(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:COMMON]


def _bars(counts: Sequence[int]) -> list[HistogramBar]:
    """A histogram of whole numbers, in at most BARS bars of equal width."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // BARS)
    by = Counter((n - low) // width for n in counts)
    tallest = max(by.values())
    return [
        HistogramBar(low + i * width, low + (i + 1) * width - 1, by[i], by[i] / tallest)
        for i in range((high - low) // width + 1)
    ]
