"""The contents of a report: all that its page shows, gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.report import results
from vbert.report.baselines import DetectorBaselines, MajorityBaseline
from vbert.report.comparison import StartComparison
from vbert.report.detections import DetectedImage
from vbert.report.lineage import Lineage
from vbert.report.matching import MatchingFigures
from vbert.report.phrases import HeadTable
from vbert.report.plots import Chart
from vbert.report.predictions import Gallery
from vbert.report.regions import ShardStatistics
from vbert.report.why import ExplainedExample, MeasuredSet


@dataclass
class Page:
    """The data of the page's template."""

    title: str
    made: str
    groups: list[results.RunGroup]
    comparisons: list[StartComparison]
    chain: Lineage
    detector: Mapping[str, Any]
    classes: Sequence[str]
    scenes: list[DetectedImage]
    pretrained: Mapping[str, Any] | None
    matchings: Sequence[MatchingFigures]
    charts: list[tuple[str, list[Chart]]]
    galleries: list[Gallery]
    explained: list[ExplainedExample]
    explained_reason: str
    measured: list[MeasuredSet]
    shards: list[ShardStatistics]
    shards_missing: list[str]
    environment: Mapping[str, Any]
    elsewhere: list[tuple[str, list[str]]]
    numerics: list[tuple[str, list[str]]]
    again: str
    facts: list[tuple[str, str]]
    guesses: Mapping[str, Mapping[str, MajorityBaseline]]  # run → metric
    detected: DetectorBaselines
    heads: list[HeadTable]
    hidden: MajorityBaseline | None  # of the pre-training that `pretrained` is about
