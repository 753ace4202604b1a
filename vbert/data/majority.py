"""The majority value: the most frequent one of several, which majority baselines always predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value", str, int)


def majority(counts: Mapping[Value, int]) -> Value:
    """The most frequent value; of equally frequent ones the smallest. Raises ValueError where there is none."""
    return min(counts, key=lambda value: (-counts[value], value))
