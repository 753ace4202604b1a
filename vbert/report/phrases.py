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


KIND_WORDS = {
    "noun": ("nouns", "the thing itself"),
    "colour": ("colours", "the thing that has it"),
    "relation_first": ("relations, the first thing", "the thing before the word: a circle *above* a cross"),
    "relation_second": ("relations, the second thing", "the thing behind it"),
}


@dataclass(frozen=True)
class KindTable:
    """Words of a kind: how many, the share of each head whose most attended region is right, [layers][heads], that of
    regions drawn at random, and of the same model with random weights its best head's and the mean."""

    name: str
    words: int
    right: Sequence[Sequence[float]]
    random_region: float
    random_best: float
    random_mean: float

    @property
    def title(self) -> str:
        return KIND_WORDS[self.name][0]

    @property
    def about(self) -> str:
        return KIND_WORDS[self.name][1].replace("*", "")

    @property
    def best(self) -> tuple[int, int, float]:
        return _best(self.right)

    @property
    def mean(self) -> float:
        every = [share for layer in self.right for share in layer]
        return sum(every) / len(every)


def _best(right: Sequence[Sequence[float]]) -> tuple[int, int, float]:
    """Layer and head, from 1, and its share; of equal ones the first."""
    share, layer, head = min((-share, at, k) for at, row in enumerate(right) for k, share in enumerate(row))
    return layer + 1, head + 1, -share


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
    kinds: Sequence[KindTable] = ()

    @property
    def best(self) -> tuple[int, int, float]:
        return _best(self.right)

    @property
    def top(self) -> float:
        """The share that is shaded the most."""
        return max(self.best[2], 1e-9)

    @property
    def top_of_kinds(self) -> float:
        """Likewise in the maps of kinds of words, which can be compared by it."""
        return max([kind.best[2] for kind in self.kinds] + [1e-9])


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
                kinds=[
                    KindTable(
                        name=name,
                        words=kind["words"],
                        right=kind["right"],
                        random_region=kind["random_region"],
                        random_best=kind["random_model"]["best"],
                        random_mean=kind["random_model"]["mean"],
                    )
                    for name, kind in content["kinds"].items()
                ],
            ),
        )
    return list(tables.values())
