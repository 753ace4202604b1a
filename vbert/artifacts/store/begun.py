"""How far an unfinished artifact is."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vbert.artifacts.store import durable


@dataclass(frozen=True)
class Begun:
    """How much of an unfinished artifact is done, whatever happens; `total` is None where it is not known yet."""

    done: int
    total: int | None
    of: Literal["units", "steps"]

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.of}" if self.total else f"{self.done:,} {self.of}"


def begun(unfinished: Path, units: Collection[str]) -> Begun | None:
    """By the keys of its committed units or, where it is not made of units, by the step of its last checkpoint.

    None where nothing was begun.
    """
    if not durable.retry_permission(unfinished.is_dir):
        return Begun(len(units), None, "units") if units else None
    total = _hint(unfinished / "units.json").get("total")
    if units or total is not None:
        return Begun(len(units), total, "units")
    notes = sorted(unfinished.glob("scratch/*/content/kept.json"), key=lambda path: int(path.parents[1].name))
    last = _hint(notes[-1]) if notes else {}
    return Begun(last.get("done", 0), last.get("total"), "steps")


def _hint(path: Path) -> dict[str, Any]:
    try:
        hint = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return hint if isinstance(hint, dict) else {}
