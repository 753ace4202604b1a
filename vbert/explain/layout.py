"""Where the pictures and words of a drawn explanation stand, in pixels."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

SIDE = 460  # of a picture's longer side
GAP, LINE, SIZE = 10, 27, 15  # between parts; of a line of words; of their letters


@dataclass(frozen=True)
class WordPlace:
    """The rectangle of a word; its text stands in the middle."""

    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Drawn:
    """sizes: of each picture, as drawn; at: its left edge; words: their places, below the pictures."""

    width: int
    height: int
    top: int
    sizes: list[tuple[int, int]]
    at: list[int]
    words: list[WordPlace]


def laid_out(sizes: Sequence[tuple[int, int]], words: Sequence[str], side: int = SIDE) -> Drawn:
    """sizes: of the images, in their own pixels. The answer has a line of its own above the pictures."""
    drawn, at, left = [], [], GAP
    for width, height in sizes:
        scale = side / max(width, height, 1)
        drawn.append((max(1, round(width * scale)), max(1, round(height * scale))))
        at.append(left)
        left += drawn[-1][0] + GAP
    whole = max(left, 2 * GAP + 320)
    top = GAP + LINE
    below = top + max((height for _, height in drawn), default=0) + GAP
    places: list[WordPlace] = []
    x = float(GAP)
    for word in words:
        wide = 12 + sum(letter_width(letter) for letter in word)
        if places and x + wide > whole - GAP:
            x, below = float(GAP), below + LINE
        places.append(WordPlace(x, below, wide))
        x += wide + 5
    return Drawn(whole, below + LINE + GAP, top, drawn, at, places)


def letter_width(letter: str) -> float:
    """Of one in a sans serif of SIZE, about; wide ones are East Asian."""
    return SIZE * (1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.58)
