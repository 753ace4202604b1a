"""A score: figures, and how many examples they are of; and the match of predictions with examples by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vbert.errors import BuildError

Missing = Literal["error", "wrong", "skip"]
Figures = dict[str, Any]  # a share, a number, text, or some of these by name
Value = TypeVar("Value")
NAMED = 5  # ids that an error names of each sort


@dataclass(frozen=True)
class Score:
    """`figures`: shares from 0 to 1 but for those named in `plain`, in the order of printing. `scored`: examples that
    count in them, `of` those of the annotations; `missing`: examples without a prediction, which are scored as 0, or
    left out; `notes`: what the figures don't say, in sentences."""

    figures: Figures
    scored: int
    of: int
    missing: int
    notes: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


class IdsDiffer(BuildError):
    """Predictions and annotations are not of the same examples; the message counts and names them."""


@dataclass(frozen=True)
class Matched:
    """`scored`: the ids that count, in the order of the annotations; `missing`: how many have no prediction."""

    scored: list[str]
    of: int
    missing: int

    def score(self, figures: Figures, *notes: str) -> Score:
        return Score(figures, len(self.scored), self.of, self.missing, notes)


def match(
    expected: Iterable[str],
    given: Iterable[str],
    policy: Missing,
    expecting: Path | str,
    giving: Path | str,
    allowed: Iterable[str] = (),
    forgivable: bool = True,
) -> Matched:
    """Ids of examples against those of predictions. `allowed`: ids that may have a prediction and don't count;
    `forgivable`: whether another policy would let missing ones pass.

    Raises IdsDiffer for ids that are doubled on either side, unknown, or (policy `error`) missing, and where nothing
    would be left to score.
    """
    wanted, found = list(expected), Counter(list(given))
    known = Counter(wanted)
    missing = [name for name in known if name not in found]
    others = set(allowed)
    faults = {
        f"{expecting}: doubled": [name for name, count in known.items() if count > 1],
        f"{giving}: doubled": [name for name, count in found.items() if count > 1],
        f"{giving}: unknown": [name for name in found if name not in known and name not in others],
    }
    if policy == "error" or len(missing) == len(known):
        faults[f"{giving}: missing"] = missing
    if any(faults.values()) or not known:
        raise IdsDiffer(_sentence(faults, len(known), expecting, giving, forgivable))
    left_out = set(missing) if policy == "skip" else set()
    return Matched([name for name in wanted if name not in left_out], len(wanted), len(missing))


def _sentence(
    faults: Mapping[str, Sequence[str]], of: int, expecting: Path | str, giving: Path | str, forgivable: bool
) -> str:
    if not of:
        return f"{expecting}: holds no example"
    counts = [f"{len(names):,} {sort.rpartition(': ')[2]}" for sort, names in faults.items() if names]
    lines = [f"{giving} is not of the {of:,} ids of {expecting}: {', '.join(counts)}"]
    for sort, names in faults.items():
        if names:
            more = ", …" if len(names) > NAMED else ""
            lines.append(f"{sort}: {', '.join(f'{name!s:.80}' for name in names[:NAMED])}{more}")
    if forgivable and 0 < len(faults.get(f"{giving}: missing", ())) < of:
        lines.append("`--missing wrong` counts missing ones as 0, `--missing skip` leaves them out")
    return "\n".join(lines)
