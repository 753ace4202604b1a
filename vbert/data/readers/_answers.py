"""For readers of questions: people's answers as targets of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vbert.data.readers._odd import Odd
from vbert.metrics.vqa import normalise


def soft_targets(given: Sequence[str], odd: Odd, where: str) -> list[dict[str, Any]]:
    """Each normalised answer of several people with its accuracy by VQA's rule (see `metrics.vqa.accuracy`): the mean
    over the people of min(1, n / 3), n the equal answers of the others; of ten, min(0.3 n, 1). Those that are empty
    are left out and counted.
    """
    people, counts = len(given), Counter(map(normalise, given))
    for _ in range(counts.pop("", 0)):
        odd.add("empty_answers", where)
    return [
        {"answer": text, "score": (min(3, n) * (people - n) + min(3, n - 1) * n) / (3 * people)}
        for text, n in counts.items()
    ]


def right_answer(given: str, odd: Odd, where: str) -> list[dict[str, Any]]:
    """The only answer of a question, normalised; none, counted, where nothing is left of it."""
    if text := normalise(given):
        return [{"answer": text, "score": 1.0}]
    odd.add("empty_answers", where)
    return []
