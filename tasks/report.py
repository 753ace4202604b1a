"""Stage `report`: one self-contained HTML page of the whole chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from vbert.artifacts.steps.settings import Since
from vbert.artifacts.steps.stage import Build, Figures, Job, stage
from vbert.data.images import Images
from vbert.data.overlaps import Overlaps
from vbert.explain.explanations import Explanations
from vbert.objectives.trained import Model
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.regions.detector import DetectorWeights
from vbert.report.page import EvaluatedEntry, Report, ReportSettings


@stage("report", makes=Report, version=3, retries=1, through=False, same_bits=False, shows=True)
def report(
    build: Build,
    title: str,
    overlaps: Annotated[Overlaps | None, Since(None)],
    detector: DetectorWeights | None,
    scenes: Images | None,
    pretrained: Model | None,
    downstream: Mapping[str, EvaluatedEntry],
    heads: Annotated[Mapping[str, HeadAnalysis] | None, Since(None)] = None,
    settings: ReportSettings = ReportSettings(),  # noqa: B008  frozen
    explained: Annotated[Mapping[str, Explanations] | None, Since(None)] = None,
) -> Figures:
    """`scenes`: the collection with the detector's held-out images; `downstream`, `heads` of the starts of grounding,
    and `explained`: by `NAME/data/split`. `overlaps` stands first, so that photos on both sides end a run before it
    trains.

    Returns the metrics by `NAME/data/split/metric`. The page holds times, so its bits are not reproducible.
    """
    inputs = (
        title,
        overlaps,
        detector,
        scenes,
        pretrained,
        dict(downstream),
        dict(heads or {}),
        settings,
        dict(explained or {}),
    )
    return build.process(_report, *inputs)


def _report(
    job: Job,
    title: str,
    overlaps: Overlaps | None,
    detector: DetectorWeights | None,
    scenes: Images | None,
    pretrained: Model | None,
    downstream: Mapping[str, EvaluatedEntry],
    heads: Mapping[str, HeadAnalysis],
    settings: ReportSettings,
    explained: Mapping[str, Explanations],
) -> Figures:
    from vbert.report.write import write_report

    return write_report(
        job.directory, title, detector, scenes, pretrained, downstream, settings, overlaps, heads, explained
    )
