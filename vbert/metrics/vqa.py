"""Accuracy of visual question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def soft_accuracy(answer: str, answers: Sequence[Mapping[str, Any]]) -> float:
    """The score of `answer` among an example's scored answers; 0 where it is none of them.

    For VQA v2 the scores are min(0.3 · annotators, 1) (Antol et al. 2015, averaged over annotators left out); for
    data sets with one answer they are 1.
    """
    return max((float(a["score"]) for a in answers if a["answer"] == answer), default=0.0)
