"""Predictions of phrases: the boxes that were chosen and the true ones, and what attention heads alone know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.objectives.grounding_protocols import judged
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.report.thumbnails import DrawnBox, boxed

LONGEST = 80  # characters of a phrase that are shown


@dataclass(frozen=True)
class ShownPhrase:
    """A phrase of a prediction: its number in the picture, whether its box is right (None without boxes), and the
    probability of the box."""

    number: int
    words: str
    right: bool | None
    sure: float


def shown_phrases(
    row: dict[str, Any], prediction: dict[str, Any], head: Mapping[str, Any]
) -> tuple[list[ShownPhrase], list[DrawnBox], list[DrawnBox]]:
    """(its phrases, the box chosen for each, their true boxes)."""
    places = {one.number: one for one in judged(row, prediction, dict(head))}
    merged = head["protocol"] == "merged"
    phrases, names, chosen, true, true_of = [], [], [], [], []
    for k, (phrase, ranked) in enumerate(zip(row["phrases"], prediction["ranked"], strict=True)):
        words = row["text"][phrase["start"] : phrase["end"]][:LONGEST]
        right = None if k not in places else (places[k].merged if merged else places[k].any) == 1
        phrases.append(ShownPhrase(k + 1, words, right, prediction["sure"][k]))
        true += phrase["boxes"]
        true_of += [words] * len(phrase["boxes"])
        chosen.append(prediction["regions"][ranked[0]] if ranked else [0.0] * 4)
        names.append(words)
    drawn = boxed(chosen, names, range(len(chosen)))
    truth = boxed(true, true_of, [0] * len(true), true=True)
    return phrases, [box for box in drawn if box.width and box.height], truth


@dataclass(frozen=True)
class HeadTable:
    """A start's attention heads: the share right of each, [layers][heads], and of heads that know nothing."""

    title: str
    start: str
    split: str
    phrases: int
    count: int
    right: Sequence[Sequence[float]]
    random_region: float
    random: Mapping[str, Mapping[str, float]]

    @property
    def best(self) -> tuple[int, int, float]:
        """Layer and head, from 1, and its share; of equal ones the first."""
        every = [(-share, at, k) for at, layer in enumerate(self.right) for k, share in enumerate(layer)]
        share, layer, head = min(every)
        return layer + 1, head + 1, -share

    @property
    def top(self) -> float:
        """The share that is shaded the most."""
        return max(self.best[2], 1e-9)


def head_tables(heads: Mapping[str, HeadAnalysis]) -> list[HeadTable]:
    """By `NAME/data/split`; entries with the same start and phrases share one."""
    tables: dict[str, HeadTable] = {}
    for key, artifact in sorted(heads.items()):
        name, data, split = key.rsplit("/", 2)
        made_by = artifact.step
        model = made_by.arguments["model"] if made_by else None
        content = artifact.read()
        tables.setdefault(
            artifact.fingerprint if made_by else key,
            HeadTable(
                title=f"{name} on {data}",
                start=(model.label or "" if model else "") or "the start",
                split=split,
                phrases=content["phrases"],
                count=content["count"],
                right=content["right"],
                random_region=content["random_region"],
                random=content["random"],
            ),
        )
    return list(tables.values())
