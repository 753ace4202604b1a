"""What an explanation says: words and regions with their relevances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class RelevantWord:
    """A word of the text (of a caption, a piece that was written), its relevance, and of each region how much it is
    of this word: the share of the word's attention to regions, mean over layers and heads; of a written piece, the
    region's relevance for it."""

    text: str
    relevance: float
    regions: tuple[float, ...]


@dataclass(frozen=True)
class RelevantRegion:
    """A region by its number among the image's, its box (x1, y1, x2, y2 in pixels of the image as shown; None where the
    features came without), its class, and its relevance. image: the number of its image, from 0."""

    region: int
    box: tuple[float, float, float, float] | None
    name: str
    relevance: float
    image: int = 0


@dataclass(frozen=True)
class Relevances:
    """Why `answer` was given, by `method`. A relevance above 0 speaks for the answer, one below 0 against it; their
    scale is the method's own. score: the answer's, as the model tells it; explained: the number that was taken apart,
    log-odds of most answers."""

    text: str
    answer: str
    score: float
    explained: float
    method: str
    words: tuple[RelevantWord, ...]
    regions: tuple[RelevantRegion, ...]
    pictures: tuple[Image.Image | None, ...] = field(default=(), repr=False, compare=False)


def strengths(relevance: Sequence[float]) -> list[float]:
    """Relevances from −1 to 1: divided by the largest, whichever its sign."""
    most = max((abs(one) for one in relevance), default=0.0)
    return [one / most if most else 0.0 for one in relevance]
