"""Compares starts and teachers: entries over their seeds, beside the entry without pre-training, or without teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.artifacts.steps.stage import Figures
from vbert.metrics.paired import PairedDifference, paired_difference
from vbert.model.bert import BertWeights
from vbert.objectives.trained import Model
from vbert.report.results import CONTROLS, SCRATCH, DownstreamRun, RunGroup, predicted_rows

RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """A downstream entry: its runs, one a seed, and how much better they are than `baseline` with the same seeds."""

    runs: Sequence[DownstreamRun]
    values: Sequence[float]
    baseline: str = ""
    gain: PairedDifference | None = None

    @property
    def first(self) -> DownstreamRun:
        return self.runs[0]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class StartComparison:
    """The entries of a group on one split, largest shares first."""

    group: RunGroup
    metric: str
    arms: Sequence[Arm]

    def figures(self) -> Figures:
        """`ENTRY/data/split/metric`, the mean over seeds, and its paired difference to the entry without pre-training,
        or without a teacher: `…_gain`, `…_gain_low`, `…_gain_high`."""
        figures: Figures = {}
        for arm in self.arms:
            name = f"{arm.first.entry}/{arm.first.data}/{arm.first.split}/{self.metric}"
            figures[name] = arm.mean
            if arm.gain:
                figures |= {f"{name}_gain": arm.gain.value, f"{name}_gain_low": arm.gain.low}
                figures[f"{name}_gain_high"] = arm.gain.high
        return figures


def comparisons(groups: Sequence[RunGroup]) -> list[StartComparison]:
    """One for each group in which an entry has several seeds or a counterpart without pre-training."""
    candidates = [_comparison(group) for group in groups if group.first.main]
    return [one for one in candidates if one and any(arm.gain or len(arm.runs) > 1 for arm in one.arms)]


def _comparison(group: RunGroup) -> StartComparison | None:
    metric = group.first.metric
    entries: dict[str, list[DownstreamRun]] = {}
    for run in group.every:
        if metric in run.values:
            entries.setdefault(run.entry, []).append(run)
    if metric is None or len(entries) < 2:
        return None
    scores: dict[str, tuple[list[float], list[str]] | None] = {}

    def scored(run: DownstreamRun) -> tuple[list[float], list[str]] | None:
        if run.key not in scores:
            scores[run.key] = _scores(run, metric)
        return scores[run.key]

    arms = []
    for runs in entries.values():
        baseline = _baseline(runs[0], entries)
        gain = None
        if baseline is not None:
            theirs = {run.seed: run for run in baseline}
            both = [(scored(run), scored(theirs[run.seed])) for run in runs if run.seed in theirs]
            pairs = [(ours, others) for ours, others in both if ours is not None and others is not None]
            if pairs and len({tuple(groups) for pair in pairs for _, groups in pair}) == 1:  # the same examples
                ours, others = zip(*pairs, strict=True)
                gain = paired_difference([s for s, _ in ours], [s for s, _ in others], ours[0][1], RESAMPLES)
        values = [run.values[metric].value for run in runs]
        arms.append(Arm(runs, values, baseline[0].entry if baseline else "", gain))
    arms.sort(key=lambda arm: (-arm.first.share, _origin(arm.first), arm.gain is not None, -arm.mean))
    return StartComparison(group, metric, arms)


def _baseline(run: DownstreamRun, entries: Mapping[str, Sequence[DownstreamRun]]) -> Sequence[DownstreamRun] | None:
    """The entry like that of `run` without its teacher, else without pre-training; of as many steps where there is
    one."""
    if run.role in CONTROLS or (run.role == SCRATCH and not run.teacher):
        return None
    without = run.role if run.teacher else SCRATCH
    like = [
        others
        for others in entries.values()
        if others[0].role == without
        and not others[0].teacher
        and others[0].share == run.share
        and _origin(others[0]) == _origin(run)
        and _sizes(others[0]) == _sizes(run)
    ]
    return min(like, key=lambda others: (abs(others[0].steps - run.steps), others[0].entry), default=None)


def _sizes(run: DownstreamRun) -> tuple[int, int]:
    config = run.evaluated.model.config()
    return config.layers, config.hidden_size


def _origin(run: DownstreamRun) -> str:
    """The BERT behind a run, behind its pre-training too; empty for weights drawn at random."""
    start: Any = run.evaluated.model.step.arguments.get("start") if run.evaluated.model.step else None
    while isinstance(start, Model):
        start = start.step.arguments.get("start") if start.step else None
    bert = start if isinstance(start, BertWeights) else getattr(start, "bert", None)
    return bert.fingerprint if bert else ""


def _scores(run: DownstreamRun, metric: str) -> tuple[list[float], list[str]] | None:
    """Each labelled example's score and its image, in the order of the examples; None for a metric that is no mean over
    examples."""
    from vbert.metrics.metric import ExampleScores, PartScores
    from vbert.objectives import load

    predictions = {p["example_id"]: p for p in run.evaluated.evaluation.predictions()}
    rows = predicted_rows(run, predictions)
    answered = [predictions[row["example_id"]] for row in rows]
    scores = load(run.objective).metrics(rows, answered, run.evaluated.model.head())[metric]
    images = [(row["image_ids"] or [row["example_id"]])[0] for row in rows]
    if isinstance(scores, PartScores):
        return [score for parts in scores.scores for score in parts], [images[i] for i in scores.counted()]
    if not isinstance(scores, ExampleScores) or scores.group is not None:
        return None
    kept = [(score, image) for score, image in zip(scores.scores, images, strict=True) if score is not None]
    return [score for score, _ in kept], [image for _, image in kept]
