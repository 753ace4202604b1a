"""Gathers a report's contents and writes its page. Runs in a child process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures
from vbert.artifacts.store.manifest import environment
from vbert.data.images import Images
from vbert.data.overlaps import Overlaps
from vbert.errors import BuildError, Damaged, UserError
from vbert.explain.explanations import Explanations
from vbert.objectives.trained import Model
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.regions.detector import DetectorWeights
from vbert.report import baselines, plots, results
from vbert.report.baselines import DetectorBaselines, MajorityBaseline
from vbert.report.comparison import comparisons
from vbert.report.contents import Page
from vbert.report.detections import scenes
from vbert.report.lineage import Lineage, trace_lineage
from vbert.report.matching import matching, without_matching
from vbert.report.overview import facts
from vbert.report.page import PAGE, EvaluatedEntry, ReportSettings
from vbert.report.phrases import head_tables
from vbert.report.plots import Chart
from vbert.report.predictions import Gallery, gallery
from vbert.report.regions import statistics
from vbert.report.render import render
from vbert.report.thumbnails import ThumbnailAlbum
from vbert.report.why import measured_sets

GALLERIES = 5  # groups whose predictions are shown


def write_report(
    directory: Path,
    title: str,
    detector: DetectorWeights | None,
    images: Images | None,
    pretrained: Model | None,
    downstream: Mapping[str, EvaluatedEntry],
    settings: ReportSettings,
    overlaps: Overlaps | None = None,
    heads: Mapping[str, HeadAnalysis] | None = None,
    explained: Mapping[str, Explanations] | None = None,
) -> Figures:
    """Write `report.html` into `directory`. Returns the metrics by `NAME/data/split/metric`."""
    runs = results.runs(downstream, pretrained is not None)
    page = gather(title, detector, images, pretrained, runs, settings, overlaps, heads or {}, explained or {})
    (directory / PAGE).write_bytes(render(page).encode("utf-8", errors="replace"))
    return results.flat(runs) | {name: value for one in page.comparisons for name, value in one.figures().items()}


def gather(
    title: str,
    detector: DetectorWeights | None,
    images: Images | None,
    pretrained: Model | None,
    runs: Sequence[results.DownstreamRun],
    settings: ReportSettings,
    overlaps: Overlaps | None = None,
    heads: Mapping[str, HeadAnalysis] | None = None,
    explained: Mapping[str, Explanations] | None = None,
) -> Page:
    album = ThumbnailAlbum(settings.side)
    groups = results.groups(runs)
    roots: list[Artifact | None] = [
        overlaps,
        detector,
        images,
        pretrained,
        *(heads or {}).values(),
        *(explained or {}).values(),
    ]
    for run in runs:
        roots += [run.evaluated.evaluation, run.evaluated.images]
    lineage = trace_lineage(one for one in roots if one is not None)
    shards, missing = statistics([run.evaluated.shards for run in runs], lineage.nodes)
    galleries = [gallery(group.first, album, settings.predictions) for group in groups[:GALLERIES]]
    examples, reason = _explained_examples(galleries, album, settings.attention)
    pretrainings = _pretrainings(pretrained, runs)
    hidden = {model: baselines.word_baseline(model) for model in pretrainings}
    detected = baselines.detector_baselines(detector, images)
    guesses = {group.first.key: baselines.answer_baselines(group.first, (group.first.split, "val")) for group in groups}
    return Page(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        groups=groups,
        comparisons=comparisons(groups),
        chain=lineage,
        detector=_detector_figures(detector),
        classes=detector.classes() if detector else [],
        scenes=scenes(detector, images, album, settings.scenes) if detector else [],
        pretrained=_last(pretrained.curves()) if pretrained else None,
        matchings=[m for model in pretrainings if (m := matching(model))],
        charts=_charts(detector, detected, hidden, groups, guesses),
        galleries=galleries,
        explained=examples,
        explained_reason=reason,
        measured=measured_sets(explained or {}),
        shards=shards,
        shards_missing=missing,
        environment=environment(),
        elsewhere=_elsewhere(lineage),
        numerics=_numerics(lineage),
        again=settings.again or f"vbert run {title}",
        facts=facts(runs, lineage),
        guesses={group.first.key: guesses[group.first.key].get(group.first.split, {}) for group in groups},
        detected=detected,
        hidden=hidden.get(pretrained) if pretrained else None,
        heads=head_tables(heads or {}),
    )


def _detector_figures(detector: DetectorWeights | None) -> Mapping[str, Any]:
    """map50, map, attribute_accuracy on held-out images; empty where it was not evaluated here."""
    if detector is not None and "evaluation.json" in detector.names():
        figures: dict[str, Any] = json.loads(detector.file("evaluation.json").read_bytes())
        return figures
    return {}


def _last(curves: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last value of every column."""
    return {name: value for row in curves for name, value in row.items()}


def _explained_examples(galleries: Sequence[Gallery], album: ThumbnailAlbum, count: int) -> tuple[list[Any], str]:
    """(explanations of some of the first gallery's predictions, in turns from its shelves; the reason where there is
    none)."""
    if not galleries or not count:
        return [], "No downstream task was evaluated."
    shelves = [shelf.shown for shelf in galleries[0].shelves]
    turns = [shelf[i] for i in range(max(map(len, shelves), default=0)) for shelf in shelves if i < len(shelf)]
    if not turns:
        return [], "No prediction to look into."
    try:
        from vbert.report.why import explained_examples

        return explained_examples(galleries[0].run, album, turns[:count]), ""
    except Damaged:
        raise
    except (BuildError, UserError, KeyError, OSError) as error:
        return [], f"Explanations could not be computed: {error}"


def _pretrainings(pretrained: Model | None, runs: Sequence[results.DownstreamRun]) -> list[Model]:
    """The models that runs start from, where they are still in the store, and the recipe's own."""
    models: dict[str, Model] = {}
    for run in runs:
        start = run.evaluated.model.input("start") if run.evaluated.model.step else None
        if isinstance(start, Model) and start.stage_name == "pretrain":
            with suppress(BuildError):
                start.manifest  # noqa: B018
                models[start.fingerprint] = start
    if pretrained is not None and not (pretrained.step and pretrained.fingerprint in models):
        return [*models.values(), pretrained]
    return list(models.values())


def _charts(
    detector: DetectorWeights | None,
    detected: DetectorBaselines,
    hidden: Mapping[Model, MajorityBaseline | None],
    groups: Sequence[results.RunGroup],
    guesses: Mapping[str, Mapping[str, Mapping[str, MajorityBaseline]]],
) -> list[tuple[str, list[Chart]]]:
    """Training curves of each trained model; empty parts are left out."""
    attribute = detected.attributes.get("val")
    baselines_drawn = {"attribute_accuracy": attribute.share} if attribute else {}
    curves = detector.curves() if detector else []
    parts: list[tuple[str, list[Chart | None]]] = [("Detector", _training(curves, baselines_drawn))]
    for model, word in hidden.items():
        baselines_drawn = {"mlm_accuracy": word.share} if word else {}
        parts.append((f"Pre-training {model.label or ''}".strip(), _training(model.curves(), baselines_drawn)))
    drawn: set[str] = set()
    for group in groups:
        fresh = [run for run in group.runs if run.name not in drawn]
        drawn |= {run.name for run in fresh}
        if fresh:
            title = f"Fine-tuning {group.title.removesuffix(group.first.split)}"
            parts.append((title, _tuning(group, fresh, guesses[group.first.key].get("val", {}))))
    return [(title, kept) for title, charts in parts if (kept := [chart for chart in charts if chart])]


def _training(rows: Sequence[Mapping[str, float]], guesses: Mapping[str, float]) -> list[Chart | None]:
    shares = without_matching(plots.shares(rows))
    drawn = {name: guess for name, guess in guesses.items() if name in {point.name for point in shares}}
    return [
        plots.line_chart("Losses", plots.losses(rows), share=False),
        plots.line_chart("Held-out figures (val)", shares, share=True, guesses=drawn),
    ]


def _tuning(
    group: results.RunGroup, runs: Sequence[results.DownstreamRun], guesses: Mapping[str, MajorityBaseline]
) -> list[Chart | None]:
    """Entries side by side, and the first one by kind of example. guesses: by metric, of the split val."""
    metric, first = group.first.metric or "accuracy", group.first
    tones = {run.name: group.tones[run.key] for run in runs}

    def of(run: results.DownstreamRun, points: Sequence[plots.Point], wanted: str) -> list[plots.Point]:
        return [plots.Point(run.name, p.step, p.value) for p in points if p.name == wanted]

    loss = [p for run in runs for p in of(run, plots.losses(run.curves), "loss")]
    main = [p for run in runs for p in of(run, plots.shares(run.curves), metric)]
    parts = [
        plots.Point(p.name.removeprefix(f"{metric}/"), p.step, p.value)
        for p in plots.shares(first.curves)
        if p.name.startswith(f"{metric}/")
    ]
    shares = {name.removeprefix(f"{metric}/"): guess.share for name, guess in guesses.items()}
    whole = {name: share for name, share in shares.items() if name == metric}
    kinds = {point.name: shares[point.name] for point in parts if point.name in shares}
    return [
        plots.line_chart("Loss", loss, share=False, tones=tones),
        plots.line_chart(f"Held-out {metric} (val)", main, share=True, tones=tones, guesses=whole),
        plots.line_chart(f"Held-out {metric} (val) of {first.name}, by kind", parts, share=True, guesses=kinds),
    ]


def _elsewhere(lineage: Lineage) -> list[tuple[str, list[str]]]:
    """(facts of an environment that is not this report's own, the artifacts made in it)."""
    here = _flat(environment() | {"device": "cpu"})
    titles: dict[str, list[str]] = {}
    for node in lineage.nodes:
        there = _flat(node.manifest.environment) if node.manifest else {}
        facts = [f"{name} {value}" for name, value in there.items() if name != "dirty" and value != here.get(name)]
        if facts:
            titles.setdefault(", ".join(facts), []).append(node.title)
    return list(titles.items())


def _numerics(lineage: Lineage) -> list[tuple[str, list[str]]]:
    """(threads, processes and precision in words, the artifacts computed with them)."""
    titles: dict[str, list[str]] = {}
    for node in lineage.nodes:
        if node.numerics:
            settings = ", ".join(f"{name} {value}" for name, value in node.numerics.items())
            titles.setdefault(settings, []).append(node.title)
    return list(titles.items())


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if k != "libraries"} | dict(facts.get("libraries") or {})
