"""Means of the scores of examples: of all, of each kind, and of groups that count as their smallest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def mean(values: Sequence[float]) -> float:
    """`math.fsum(values) / len(values)`: correctly rounded sum, so the order of rows changes no digit."""
    return math.fsum(values) / len(values)


def mean_by(values: Iterable[float], keys: Iterable[Key]) -> dict[Key, float]:
    """The mean of the values of each key, in the order of the keys."""
    each: dict[Key, list[float]] = {}
    for value, key in zip(values, keys, strict=True):
        each.setdefault(key, []).append(value)
    return {key: mean(each[key]) for key in sorted(each, key=str)}


def smallest(values: Iterable[float], groups: Iterable[Key]) -> dict[Key, float]:
    """Each group's smallest value: of scores 0 and 1 the mean of it is the consistency, the share of groups that are
    wholly right."""
    least: dict[Key, float] = {}
    for value, group in zip(values, groups, strict=True):
        least[group] = min(value, least.get(group, value))
    return least
