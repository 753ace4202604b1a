"""The contents of a report: all that its page shows, gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.report import results
from vbert.report.baselines import Detected, Guess
from vbert.report.comparison import Comparison
from vbert.report.detections import Scene
from vbert.report.lineage import Chain
from vbert.report.matching import Matching
from vbert.report.plots import Chart
from vbert.report.predictions import Gallery
from vbert.report.regions import Statistics


@dataclass
class Page:
    """All that the template reads."""

    title: str
    made: str
    groups: list[results.Group]
    comparisons: list[Comparison]
    chain: Chain
    detector: Mapping[str, Any]
    classes: Sequence[str]
    scenes: list[Scene]
    pretrained: Mapping[str, Any] | None
    matchings: Sequence[Matching]
    charts: list[tuple[str, list[Chart]]]
    galleries: list[Gallery]
    gazes: list[Any]
    gaze_reason: str
    shards: list[Statistics]
    shards_missing: list[str]
    environment: Mapping[str, Any]
    elsewhere: list[tuple[str, list[str]]]
    numerics: list[tuple[str, list[str]]]
    again: str
    facts: list[tuple[str, str]]
    guesses: Mapping[str, Mapping[str, Guess]]  # run → metric
    detected: Detected
    hidden: Guess | None  # of the pre-training that `pretrained` is about
