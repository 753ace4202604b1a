"""Choices: the accuracy of VCR's answers, of its rationales, and of both together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def right(scores: ArrayLike, labels: Sequence[int]) -> list[float]:
    """1 where the highest of scores [n, choices] is at the label (the first of equal ones), else 0.

    VCR (rowanz/r2c `models/eval_q2ar.py`): Q→A and QA→R, the rationale given the *right* answer, are means of these.
    """
    import numpy as np

    hits = np.asarray(scores).argmax(1) == np.asarray(labels)
    return [float(hit) for hit in hits.tolist()]


def joint(answers: Sequence[float], rationales: Sequence[float]) -> list[float]:
    """VCR's Q→AR: 1 where answer and rationale are right. As the smallest of a group, see `means.smallest`."""
    return [min(pair) for pair in zip(answers, rationales, strict=True)]
