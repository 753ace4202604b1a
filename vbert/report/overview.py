"""The facts at the top of a report: data by split, model, training, hardware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vbert.errors import BuildError
from vbert.regions.contract import in_words
from vbert.report.lineage import Lineage
from vbert.report.results import DownstreamRun

TRAINED = ("pretrain", "finetune")


def facts(runs: Sequence[DownstreamRun], chain: Lineage) -> list[tuple[str, str]]:
    """(name of the fact, its value in words)."""
    rows: list[tuple[str, str]] = []
    for run in {run.data: run for run in runs}.values():
        splits = Counter(run.evaluated.examples.table()["split"].to_pylist())
        order = sorted(splits, key=lambda s: ("train", "val", "test").index(s) if s in ("train", "val", "test") else 3)
        rows.append((f"data: {run.data}", ", ".join(f"{split} {splits[split]:,}" for split in order) + " examples"))
    rows += [
        (f"contract overridden: {run.entry}", "; ".join(in_words(run.overridden, ("its start", "its regions"))))
        for run in {run.entry: run for run in runs}.values()
        if run.overridden
    ]
    if runs:
        try:
            config = runs[0].evaluated.model.config()
            rows.append(
                (
                    "model",
                    f"{config.layers} layers × {config.hidden_size}, {config.heads} heads, "
                    f"vocabulary {config.vocab_size:,}",
                )
            )
        except (BuildError, OSError):
            pass
    rows += [
        (node.title, training)
        for node in chain.nodes
        if node.stage in TRAINED and (training := _training(node.settings))
    ]
    machines = {
        f"{env.get('device') or 'CPU'}: {env.get('processor')}, {env.get('cores')} cores": None
        for node in chain.nodes
        if node.stage in ("detector", *TRAINED) and node.manifest and (env := node.manifest.environment)
    }
    return rows + [("hardware", "; ".join(machines))] * bool(machines)


def _training(arguments: Mapping[str, Any]) -> str:
    settings = arguments.get("settings")
    if not isinstance(settings, Mapping):
        return ""
    return (
        f"{settings.get('steps', 0):,} steps of {settings.get('batch_size')}, learning rate "
        f"{settings.get('learning_rate'):g}, seed {arguments.get('seed')}"
    )
