"""Results: downstream entries in groups that can be compared, each main run beside its controls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures
from vbert.metrics.bootstrap import ConfidenceInterval
from vbert.objectives.trained import OVERRIDDEN
from vbert.report.page import EvaluatedEntry

if TYPE_CHECKING:
    import pyarrow as pa

MAIN, FLOOR, SCRATCH = "trained", "language-only floor", "without pre-training"
UNPAIRED = "pre-trained on unpaired texts"
TEXT_ALONE, IMAGE_ALONE, OTHER_TEXT = "text alone", "image alone", "images with other texts"
CONTROLS = (FLOOR, TEXT_ALONE, OTHER_TEXT, IMAGE_ALONE)  # what one side alone gives
ROLES = (MAIN, UNPAIRED, SCRATCH, *CONTROLS)
SPLITS = ("test", "val", "train")
FOLDS = "folds"  # `metric/folds`, see `vbert.objectives.retrieval`
PARTS = 24  # parts of the examples (question types) shown, the largest first


@dataclass(frozen=True)
class MetricValue:
    """A metric with its 95 % interval, where there is one, and the examples it is the mean of."""

    value: float
    interval: ConfidenceInterval | None = None
    count: int | None = None


UNITLESS = ("cider", "median", "rsum")  # parts of the names of metrics that are no shares


def _of_part(name: str, metric: str) -> bool:
    """Whether `name` is the metric of a part of the examples. Folds are all of them, cut another way."""
    return name.startswith(f"{metric}/") and name != f"{metric}/{FOLDS}"


def unitless(metric: str) -> bool:
    """Whether the metric is no share."""
    return any(word in metric for word in UNITLESS)


@dataclass(frozen=True)
class DownstreamRun:
    """A downstream entry on one split. `metric` is its objective's main one; None where the split has no labels.

    entry: its name without the seed, shared by the runs of an entry. start: its start, in words. teacher: the entry
    whose probabilities it learnt too, "" for none.
    """

    key: str
    name: str
    entry: str
    seed: int
    share: float
    start: str
    teacher: str
    data: str
    split: str
    objective: str
    role: str
    steps: int
    metric: str | None
    values: Mapping[str, MetricValue]
    curves: Sequence[Mapping[str, float]]
    examples: int
    quarantined: int
    evaluated: EvaluatedEntry
    given: bool = False  # regions to choose from are boxes that the data set gives
    overridden: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # see `trained.OVERRIDDEN`

    @property
    def main(self) -> MetricValue | None:
        return self.values.get(self.metric) if self.metric else None

    @property
    def note(self) -> str:
        """Role and training in words."""
        about = {
            FLOOR: f"{FLOOR}: other images’ features",
            TEXT_ALONE: f"{TEXT_ALONE}: no regions",
            IMAGE_ALONE: f"{IMAGE_ALONE}: no text",
            MAIN: "",
        }.get(self.role, self.role)
        share = f"{100 * self.share:g} % of the examples" if self.share < 1 else ""
        seed = f"seed {self.seed}" if self.name != self.entry else ""
        steps = f"{self.steps:,} steps" if self.steps else "not trained"
        taught = f"taught by {self.teacher}" if self.teacher else ""
        other = f"other {', '.join(self.overridden)} than its start’s contract says" if self.overridden else ""
        return ", ".join(part for part in (about, taught, share, steps, seed, other) if part)


@dataclass(frozen=True)
class MetricPart:
    """A part of the examples, such as a question type, and each run's value of it."""

    name: str
    values: list[tuple[DownstreamRun, MetricValue]]


@dataclass(frozen=True)
class RunGroup:
    """Runs of one objective on one split of one data set; the main run comes first, controls after it.

    every: all seeds of all entries; `runs` has the first seed of each.
    """

    every: list[DownstreamRun]

    @property
    def runs(self) -> list[DownstreamRun]:
        return list({run.entry: run for run in reversed(self.every)}.values())[::-1]

    @property
    def first(self) -> DownstreamRun:
        return self.runs[0]

    @property
    def tones(self) -> dict[str, int]:
        """Run → its colour in the style sheet: controls always have the same one."""
        mains = iter((0, 2, 3, 5, 6))
        fixed = {SCRATCH: 1, UNPAIRED: 4, **dict.fromkeys(CONTROLS, 7)}
        return {run.key: fixed[run.role] if run.role in fixed else next(mains, 0) for run in self.runs}

    @property
    def title(self) -> str:
        first = self.first
        boxes = "with given boxes" if first.given else ""
        parts = (first.objective, first.data and f"on {first.data}", first.split, boxes)
        return " ".join(part for part in parts if part)

    @property
    def top(self) -> float:
        """The end of the main metric's axis: 1 for shares, else above the largest value."""
        mains = [run.main for run in self.runs if run.main]
        largest = max((max(one.value, one.interval.high if one.interval else 0) for one in mains), default=1.0)
        return 1.0 if largest <= 1 else math.ceil(largest)

    @property
    def shares(self) -> bool:
        """Whether that axis is in percent."""
        return self.top == 1 and not unitless(self.first.metric or "")

    @property
    def parts(self) -> list[MetricPart]:
        """`metric/part` of the main metric, the largest parts first."""
        metric = self.first.metric
        names = [name for name in self.first.values if metric and _of_part(name, metric)]
        names.sort(key=lambda name: (-(self.first.values[name].count or 0), name))
        return [
            MetricPart(
                name[len(metric or "") + 1 :], [(run, run.values[name]) for run in self.runs if name in run.values]
            )
            for name in names[:PARTS]
        ]

    @property
    def others(self) -> list[tuple[str, list[tuple[DownstreamRun, MetricValue]]]]:
        """Metrics beside the main one and its parts."""
        metric = self.first.metric
        names = [n for n in self.first.values if metric and n != metric and not _of_part(n, metric)]
        return [(name, [(run, run.values[name]) for run in self.runs if name in run.values]) for name in names]


def runs(downstream: Mapping[str, EvaluatedEntry], pretrained: bool) -> list[DownstreamRun]:
    """The entries as runs, in an order independent of the mapping's."""
    entries = [_run(key, entry, pretrained) for key, entry in downstream.items()]
    return sorted(
        entries, key=lambda run: (ROLES.index(run.role), -run.share, -run.steps, run.entry, run.seed, run.key)
    )


def groups(runs: Sequence[DownstreamRun]) -> list[RunGroup]:
    """Runs that can be compared, those of official tests first."""
    by: dict[tuple[str, str, str, bool], list[DownstreamRun]] = {}
    for run in runs:
        by.setdefault((run.objective, run.data, run.split, run.given), []).append(run)
    order = sorted(by, key=lambda key: (_split_rank(key[2]), ROLES.index(by[key][0].role), key))
    return [RunGroup(by[key]) for key in order]


def flat(runs: Sequence[DownstreamRun]) -> Figures:
    """`NAME/data/split/metric` → value."""
    return {f"{run.key}/{name}": value.value for run in runs for name, value in run.values.items()}


def _split_rank(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _run(key: str, entry: EvaluatedEntry, pretrained: bool) -> DownstreamRun:
    evaluation, model = entry.evaluation, entry.model
    name, data, split = key.rsplit("/", 2) if key.count("/") >= 2 else (key, "", "")
    head, curves = model.head(), model.curves()
    intervals, counts = evaluation.intervals(), evaluation.counts()
    arguments = model.step.arguments if model.step else {}
    settings, seed = arguments.get("settings"), int(arguments.get("seed", 0))
    values = {
        metric: MetricValue(value, intervals.get(metric), counts.get(metric))
        for metric, value in evaluation.metrics().items()
    }
    return DownstreamRun(
        key=key,
        name=name,
        entry=name.removesuffix(f"@{seed}"),
        seed=seed,
        share=float(getattr(settings, "share", 1.0)),
        start=_start(arguments.get("start")),
        teacher=teacher.label or "a teacher" if isinstance(teacher := arguments.get("teacher"), Artifact) else "",
        data=data,
        split=split,
        objective=str(head.get("objective", head.get("kind", ""))),
        role=_role(model, head, pretrained),
        steps=int(curves[-1]["step"]) if curves else 0,
        metric=_main_metric(head, values),
        values=values,
        curves=curves,
        examples=counts.get("examples", 0),
        quarantined=counts.get("quarantined", 0),
        evaluated=entry,
        given=head.get("kind") == "phrases" and entry.shards.contract().features_of == "given",
        overridden=head.get(OVERRIDDEN, {}),
    )


def _role(model: Artifact, head: Mapping[str, Any], pretrained: bool) -> str:
    if (images := head.get("images", "own")) != "own":
        return FLOOR if images == "shuffled" else TEXT_ALONE
    if (text := head.get("text", "own")) != "own":
        return OTHER_TEXT if text == "shuffled" else IMAGE_ALONE
    start = model.step.arguments.get("start") if model.step else None
    if pretrained and model.step is not None and not isinstance(start, Artifact):
        return SCRATCH
    if isinstance(start, Artifact) and start.step and start.stage_name == "pretrain":
        return UNPAIRED if start.step.arguments["settings"].images == "shuffled" else MAIN
    return MAIN


def _start(start: Any) -> str:
    """A model's start in words: the pre-training, the BERT, or "none"."""
    if isinstance(start, Artifact):
        return start.label or "pre-trained"
    bert = getattr(start, "bert", None)
    return f"{bert.label or 'a BERT'}, as published" if bert else "none"


def predicted_rows(run: DownstreamRun, ids: Iterable[str]) -> list[dict[str, Any]]:
    """The examples of predictions, as the objective evaluates them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _evaluated(run, run.split)
    return list(table.filter(pc.is_in(table["example_id"], pa.array(list(ids), pa.string()))).to_pylist())


def evaluated_rows(run: DownstreamRun, split: str, whole: bool = True) -> list[dict[str, Any]]:
    """The examples of a split as the objective evaluates them; with `whole` False as it trains on them."""
    return list(_evaluated(run, split, whole).to_pylist())


def _evaluated(run: DownstreamRun, split: str, whole: bool = True) -> pa.Table:
    """The table of `evaluated_rows`; split "": all."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vbert.objectives import OBJECTIVES, load

    table, head = run.evaluated.examples.table(), run.evaluated.model.head()
    if run.objective in OBJECTIVES:
        objective = load(run.objective)
        chosen = pc.is_in(table["kind"], pa.array(list(objective.KINDS)))
        types = head.get("types")
        if types := head.get("evaluated_types", types) if whole else types:
            chosen = pc.and_(chosen, pc.is_in(table["question_type"], pa.array(list(types), pa.string())))
        if split:
            chosen = pc.and_(chosen, pc.is_in(table["split"], pa.array([split])))
        table = table.filter(chosen)
        table = objective.evaluated(table) if whole else table
    return table


def example_scores(
    run: DownstreamRun, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> Sequence[float | None]:
    """Each example's score in the main metric (where that is a mean over parts of examples, their mean), or in the
    first one that is a mean over examples where the main one is none; None without labels."""
    from vbert.metrics.metric import ExampleScores, PartScores
    from vbert.objectives import OBJECTIVES, load

    if run.objective in OBJECTIVES and run.metric:
        metrics = load(run.objective).metrics(rows, predictions, run.evaluated.model.head())
        for metric in (metrics.get(run.metric), *metrics.values()):
            if isinstance(metric, ExampleScores) and metric.group is None:
                return metric.scores
            if isinstance(metric, PartScores):
                return [math.fsum(scores) / len(scores) if scores else None for scores in metric.scores]
    return [None] * len(rows)


def _main_metric(head: Mapping[str, Any], values: Mapping[str, MetricValue]) -> str | None:
    """The metric that the objective selects models by, else the first."""
    from vbert.objectives import OBJECTIVES, load

    objective = str(head.get("objective", ""))
    wanted = head.get("selects", load(objective).SELECTS if objective in OBJECTIVES else "")
    return wanted if wanted in values else next(iter(sorted(values)), None)
