"""Beam search over the next pieces of many images' texts at once; greedy search is that of one beam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class SearchRules:
    """beams: texts kept of each image. length: pieces of a text at most; minimum: at least, before it may end.
    length_penalty: a finished text's score is Σ log p / n^length_penalty over its n pieces, the ending one among them.
    no_repeat: no text has the same n-gram of so many pieces twice; 0: it may. end: the piece that ends a text.
    allowed, starts: bool [vocabulary], the pieces that may stand in a text, and that may stand first; `end` may always.
    """

    beams: int
    length: int
    minimum: int
    length_penalty: float
    no_repeat: int
    end: int
    allowed: Tensor
    starts: Tensor


@dataclass(frozen=True)
class FoundText:
    """pieces: without the ending one. total: Σ log p; score: see `SearchRules.length_penalty`."""

    pieces: tuple[int, ...]
    total: float
    score: float


@dataclass
class _Image:
    """The search for one image: texts that still grow (pieces and Σ log p), and the best finished ones."""

    grows: list[tuple[tuple[int, ...], float]] = field(default_factory=lambda: [((), 0.0)])
    finished: list[FoundText] = field(default_factory=list)
    done: bool = False

    def grow(self, totals: list[float], places: list[int], width: int, rules: SearchRules) -> list[int]:
        """Takes the candidates, best first: `place // width` is the piece, `place % width` the text that it continues.
        Returns the text that each of `beams` new ones continues."""
        grown: list[tuple[tuple[int, ...], float]] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(zip(totals, places, strict=True)):
            piece, beam = divmod(place, width)
            if total == NEVER or len(grown) == rules.beams:
                break
            pieces = self.grows[beam][0]
            if piece != rules.end:
                grown.append(((*pieces, piece), total))
                parents.append(beam)
            elif rank < rules.beams and not self.done:
                self._finish(pieces, total, True, rules)
        best = grown[0][1] if grown else NEVER
        while len(grown) < rules.beams:  # too few pieces are allowed: texts that no one continues
            grown.append(((*self.grows[0][0], rules.end), NEVER))
            parents.append(0)
        self.grows = grown
        full = len(self.finished) == rules.beams
        ahead = best / rules.length**rules.length_penalty  # the most that one that grows can come to
        self.done = self.done or best == NEVER or (full and (rules.beams == 1 or self.finished[-1].score >= ahead))
        return parents

    def best(self, rules: SearchRules) -> FoundText:
        """The best text, of the finished ones and, unless they are done, of those that grew to the full length."""
        for pieces, total in () if self.done else self.grows:
            if total > NEVER:
                self._finish(pieces, total, False, rules)
        return self.finished[0] if self.finished else FoundText((), 0.0, 0.0)

    def _finish(self, pieces: tuple[int, ...], total: float, ended: bool, rules: SearchRules) -> None:
        score = total / max(len(pieces) + ended, 1) ** rules.length_penalty
        self.finished.append(FoundText(pieces, total, score))
        self.finished.sort(key=lambda text: (-text.score, text.pieces))
        del self.finished[rules.beams :]


@torch.no_grad()
def search(
    read: Callable[[Tensor, Tensor | None], Tensor], first: int, images: int, rules: SearchRules
) -> list[FoundText]:
    """The best text of each image, after the piece `first`.

    read: the last pieces of all texts (int64 [texts]), and of each the text that it continues (int64 [texts]; None:
    each its own) → log-probabilities of the next piece, fp32 [texts, vocabulary]. It is asked for one text an image
    first, then for `beams`. Of equal scores the smaller piece, then the better beam, is first. An image is done when
    `beams` texts are finished that none which still grows can overtake; a text of `length` pieces is finished as it is.
    """
    searched = [_Image() for _ in range(images)]
    last, rows = torch.full((images,), first), None
    for place in range(rules.length):
        width = len(last) // images
        scores = read(last, rows)
        allowed = rules.allowed.clone() if place else rules.allowed & rules.starts
        allowed[rules.end] = place >= rules.minimum
        scores = scores.masked_fill(~allowed.to(scores.device), NEVER)
        if rules.no_repeat:
            for beam, (pieces, _) in enumerate(text for one in searched for text in one.grows):
                scores[beam, _repeating(pieces, rules.no_repeat)] = NEVER
        sums = torch.tensor([total for one in searched for _, total in one.grows], device=scores.device)
        # Piece by piece, its beams side by side: among equals the first is the one that is wanted.
        ordered = (sums[:, None] + scores).view(images, width, -1).transpose(1, 2).flatten(1)
        values, places = _best(ordered, min(2 * rules.beams, ordered.shape[1]))
        parents = [
            image * width + beam
            for image, candidates in enumerate(zip(values.tolist(), places.tolist(), strict=True))
            for beam in searched[image].grow(*candidates, width, rules)
        ]
        if all(one.done for one in searched):
            break
        last, rows = torch.tensor([pieces[-1] for one in searched for pieces, _ in one.grows]), torch.tensor(parents)
    return [one.best(rules) for one in searched]


def _repeating(pieces: tuple[int, ...], size: int) -> list[int]:
    """The pieces that would make the last `size` of a text an n-gram that it has."""
    tail = pieces[len(pieces) - size + 1 :]
    starts = range(len(pieces) - size + 1)
    return [pieces[k + size - 1] for k in starts if len(pieces) >= size and pieces[k : k + size - 1] == tail]


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their places, both [rows, count]; equal ones by place. `topk` promises no
    order of equal ones, nor which of them it takes where there are more than fit."""
    values, places = scores.topk(count)
    if bool(((scores >= values[:, -1:]).sum(1) > count).logical_and(values[:, -1] > NEVER).any()):
        values, places = (part[:, :count] for part in scores.sort(dim=1, descending=True, stable=True))
    places, order = places.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)
