"""Shared by all benchmarks: alternate ours and the peer, take medians, print one JSON line last.

Ours, the peer and the limit alternate within one run, so that a busy machine slows all of them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any


def alternate(work: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Calls each of `work` once a round, in turns; returns what they returned (a rate or seconds), round by round."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-warm_up, rounds):
        for name, function in work.items():
            value = function()
            if turn >= 0:
                taken[name].append(value)
    return taken


def result(
    benchmark: str,
    *,
    ours: list[float],
    peer: list[float],
    peer_name: str,
    limit: list[float],
    unit: str,
    settings: Mapping[str, Any],
    lower_is_better: bool = False,
) -> dict[str, Any]:
    """The line of a benchmark: medians, and the medians of the ratios of each round. ratio > 1: ours is better."""

    def ratio(mine: list[float], other: list[float]) -> float:
        pairs = zip(mine, other, strict=True)
        return median(b / a if lower_is_better else a / b for a, b in pairs)

    return {
        "benchmark": benchmark,
        "ours": round(median(ours), 4),
        "peer": round(median(peer), 4),
        "peer_name": peer_name,
        "ratio": round(ratio(ours, peer), 3),
        "limit": round(median(limit), 4),
        "of_limit": round(ratio(ours, limit), 3),
        "unit": unit,
        "settings": dict(settings),
        "machine": machine(),
    }


def machine() -> str:
    """The processor's name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"


def print_result(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)
