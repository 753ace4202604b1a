"""What a model says, as plain data. Scores are probabilities unless their class says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """An answer, a class or a choice, and its probability (of `loss: bce`, which scores each for itself, the
    sigmoid)."""

    text: str
    score: float


@dataclass(frozen=True)
class Verdict:
    """Whether a statement is true, and the probability that it is; in a condition it is that truth."""

    true: bool
    score: float

    def __bool__(self) -> bool:
        return self.true


@dataclass(frozen=True)
class Match:
    """score: the probability that the text is true of the image. logit: match minus mismatch, by which images and texts
    are ranked."""

    score: float
    logit: float


@dataclass(frozen=True)
class Caption:
    """score: the geometric mean of the probabilities of its word pieces."""

    text: str
    score: float


@dataclass(frozen=True)
class GroundedRegion:
    """A region that a phrase may mean: its box (x1, y1, x2, y2 in pixels of the image as shown), the probability that
    it is the one, and its number and class in the image's regions."""

    box: tuple[float, float, float, float]
    score: float
    region: int
    name: str


@dataclass(frozen=True)
class Encoded:
    """last_hidden_state: float32 [T + R, H], the states of the T word pieces of `pieces`, special ones included, then
    of the image's R regions, whose `boxes` are theirs; pooled: float32 [H], that of [CLS] behind the pooler."""

    last_hidden_state: Tensor
    pooled: Tensor
    pieces: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...] = field(default=())

    @property
    def text(self) -> Tensor:
        """[T, H]."""
        return self.last_hidden_state[: len(self.pieces)]

    @property
    def regions(self) -> Tensor:
        """[R, H]."""
        return self.last_hidden_state[len(self.pieces) :]
