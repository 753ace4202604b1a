"""Measures explanations over a sample of examples: perturbation curves, areas, intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Figures, Job, Stopped
from vbert.artifacts.store import durable
from vbert.data.examples import Examples
from vbert.device import device_of
from vbert.errors import UserError
from vbert.explain import DEFAULT, KINDS, MEASURED
from vbert.explain.explanations import FILE, LEAST, RELEVANCES
from vbert.explain.perturbation import Perturbation, area, at_shares
from vbert.explain.relevance import Explainer
from vbert.metrics.bootstrap import interval
from vbert.metrics.paired import PairedDifference, paired_difference
from vbert.objectives import Objective, load
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.downstream import evaluated_rows
from vbert.objectives.entry import EvaluateSettings, ExplainSettings, Head
from vbert.objectives.trained import Model
from vbert.regions.contract import check
from vbert.regions.shards import Shards
from vbert.training.sampler import derive

CHUNK = 16  # examples that are explained in one pass, and kept as one file
POINTS = 21  # of a drawn curve


def run_explain(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    plugin: Plugin,
    settings: ExplainSettings,
    methods: Sequence[Plugin],
    split: str,
    numerics: Numerics,
) -> Figures:
    """Writes an `Explanations` over a sample of the labelled examples of `split`; chunks already in scratch are
    kept."""
    torch.set_num_threads(numerics.threads)
    check(model.contract(), shards.contract())
    objective, head, names = load(plugin.name), model.head(), [method.name for method in methods]
    metric = checked_metric(plugin.name, objective, head)
    network = model.load().to(device_of(job.machine.device))
    rows = evaluated_rows(examples, shards, split, objective, head)
    unlabelled = rows.keep(objective.labelled)
    if not len(rows):
        more = f" ({unlabelled} have no label)" if unlabelled else ""
        raise UserError(f"{examples.title}: the split {split} has no example to measure explanations by{more}")
    encoder = model.vocabulary().encoder()
    side = ObjectiveDataset(objective, head, encoder, rows, shards, model.config().box_input)
    ids = rows.column("example_id")
    drawn = sorted(range(len(ids)), key=lambda i: derive(settings.seed, "explain", ids[i]))
    chosen = sorted(drawn[: settings.examples])
    perturbation = Perturbation(Explainer(network, objective, side), metric, names)
    folder = durable.make_directories(job.scratch / "explained")
    for start in range(0, len(chosen), CHUNK):
        target = folder / f"{start // CHUNK:06d}.jsonl"
        if not target.exists():
            some = chosen[start : start + CHUNK]
            predictions = list(objective.predict(network, side, some, EvaluateSettings()))
            lines = []
            for row, p, its in zip(rows[some], predictions, perturbation(some, predictions), strict=True):
                about = {"example_id": row["example_id"], "image_id": row["image_ids"][0], "answer": p["answer"]}
                lines.append(json.dumps({**about, **its._asdict()}, ensure_ascii=False))
            _keep(target, lines)
        job.progress(min(start + CHUNK, len(chosen)), len(chosen))
        if job.stopping:
            raise Stopped(f"stopped behind {min(start + CHUNK, len(chosen))} of {len(chosen)} examples")
    made = [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    content = {
        "split": split,
        "examples": len(made),
        "metric": metric,
        "methods": names,
        "kinds": measured(made, names, settings.resamples),
    }
    (job.directory / FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    kept = ("example_id", "image_id", "answer", "words", "relevance")
    lines = [json.dumps({name: one[name] for name in kept}, ensure_ascii=False, sort_keys=True) for one in made]
    (job.directory / RELEVANCES).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return {"examples": len(made)} | figures(content)


def checked_metric(name: str, objective: Objective, head: Head) -> str:
    """The metric by example that curves are of. Raises UserError where there is none, or for a control."""
    if head["images"] != "own" or head.get("text", "own") != "own":
        raise UserError("explain: a control was trained without looking: explain the entry that it is beside")
    if name not in MEASURED:
        raise UserError(
            f"explain: curves are of tasks that choose one answer ({', '.join(MEASURED)}), not of {name}: leave "
            "explain out"
        )
    return str(head.get("selects", objective.SELECTS))


def measured(made: Sequence[Mapping[str, Any]], methods: Sequence[str], resamples: int) -> dict[str, Any]:
    """Kind → its figures, see `MeasuredKind`, of examples as they are kept."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        its = [one for one in made if kind in one["curves"]]
        images = [str(one["image_id"]) for one in its]
        if len(set(images)) < LEAST:
            continue
        curves = {name: [one["curves"][kind][name] for one in its] for name in methods}
        areas = {name: [[area(way) for way in both] for both in each] for name, each in curves.items()}
        gaps = {name: [negative - positive for positive, negative in each] for name, each in areas.items()}
        others = [name for name in ("random", "attention") if name in methods]
        zeros = [0.0] * len(its)
        by_method = {}
        for name in methods:
            ways = list(zip(*areas[name], strict=True))
            bounds = [interval(list(each), images, resamples) for each in ways]
            positive, negative = (
                {"value": float(np.mean(each)), "low": one.low, "high": one.high}
                for each, one in zip(ways, bounds, strict=True)
            )
            over = {
                other: _difference(paired_difference([gaps[name]], [gaps[other]], images, resamples))
                for other in others
                if other != name
            }
            by_method[name] = {
                "positive": positive,
                "negative": negative,
                "gap": _difference(paired_difference([gaps[name]], [zeros], images, resamples)),
                "over": over,
                "curves": dict(zip(("positive", "negative"), _mean_curves(curves[name]), strict=True)),
            }
        found[kind] = {"examples": len(its), "images": len(set(images)), "methods": by_method}
    return found


def figures(content: Mapping[str, Any]) -> Figures:
    """The gaps of the default method, of raw attention and of random order, with words and regions gone."""
    methods = content["kinds"].get("both", {"methods": {}})["methods"]
    shown = [name for name in (DEFAULT, "attention", "random") if name in methods]
    return {f"{name}_gap": methods[name]["gap"]["value"] for name in shown}


def _difference(found: PairedDifference) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _mean_curves(each: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    shares = np.linspace(0, 1, POINTS)
    return [np.mean([at_shares(both[k], shares) for both in each], axis=0).round(6).tolist() for k in (0, 1)]


def _keep(target: Any, lines: Sequence[str]) -> None:
    """A file that is whole or absent."""
    making = target.with_name(f"{target.name}.part")
    making.unlink(missing_ok=True)
    durable.write_file(making, "".join(f"{line}\n" for line in lines).encode())
    durable.rename(making, target)
