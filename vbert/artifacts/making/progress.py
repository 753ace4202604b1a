"""How far the units of a step are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock

from vbert.artifacts.steps.step import Figures

Progress = Callable[..., None]  # progress(done, total, **figures)


class Tally:
    """How far the units of a step are, counted in what they are of; figures that their makers report are summed."""

    def __init__(self, counts: Mapping[str, int], done: Sequence[str], show: Progress) -> None:
        self._counts, self._show, self._lock, self._began = counts, show, Lock(), time.monotonic()
        self._have = {key: counts[key] for key in done}
        self._before = sum(self._have.values())
        self._waiting = iter([key for key in counts if key not in self._have])
        self._figures: dict[str, dict[str, float]] = {}
        show(self._before, sum(counts.values()))

    def within(self, key: str, done: int, _total: int, **figures: float) -> None:
        self._note(key, done, figures)

    def finished(self, figures: Figures) -> None:
        """The next of the units, in their order, is committed."""
        key = next(self._waiting)
        same = {name: figures[name] for name in self._figures.get(key, ()) if name in figures}
        self._note(key, self._counts[key], same)

    def _note(self, key: str, done: int, figures: dict[str, float]) -> None:
        with self._lock:
            self._have[key], self._figures[key] = max(done, self._have.get(key, 0)), figures
            names = dict.fromkeys(name for each in self._figures.values() for name in each)
            sums = {name: sum(each.get(name, 0) for each in self._figures.values()) for name in names}
            there = sum(self._have.values())
            rate = (there - self._before) / max(time.monotonic() - self._began, 1e-9)
        self._show(there, sum(self._counts.values()), per_second=rate, **sums)
