"""The artifact of explanations that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vbert.artifacts.steps.artifact import Artifact

FILE, RELEVANCES = "explanations.json", "relevances.jsonl"
LEAST = 20  # images: of fewer a kind is left out


@dataclass(frozen=True)
class MeasuredArea:
    """An area, or a difference of areas, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MeasuredMethod:
    """positive: the area under the accuracy while the most relevant goes first, the lower the better; negative: while
    the least relevant does, the higher the better; gap: negative − positive. over: by another method, the paired
    difference of gaps. curves: the two, at shares gone from 0 to 1 in equal steps."""

    positive: MeasuredArea
    negative: MeasuredArea
    gap: MeasuredArea
    over: Mapping[str, MeasuredArea]
    curves: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class MeasuredKind:
    """What goes (regions, words, both), over examples with two or more of it."""

    kind: str
    examples: int
    images: int
    methods: Mapping[str, MeasuredMethod]


class Explanations(Artifact):
    """explanations.json (areas and curves by what goes and by method), relevances.jsonl (of each example the words, and
    by method the relevances of words and regions).

    >>> artifact.kinds()["both"].methods["removal"].gap.value  # doctest: +SKIP
    """

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file(FILE).read_bytes())
        return content

    def kinds(self) -> dict[str, MeasuredKind]:
        return kinds_of(self.read())


def kinds_of(content: Mapping[str, Any]) -> dict[str, MeasuredKind]:
    """Of the content of explanations.json."""
    found = {}
    for kind, its in content["kinds"].items():
        methods = {name: _method(one) for name, one in its["methods"].items()}
        found[kind] = MeasuredKind(kind, its["examples"], its["images"], methods)
    return found


def _method(one: Mapping[str, Any]) -> MeasuredMethod:
    curves = one["curves"]
    return MeasuredMethod(
        positive=MeasuredArea(**one["positive"]),
        negative=MeasuredArea(**one["negative"]),
        gap=MeasuredArea(**one["gap"]),
        over={name: MeasuredArea(**value) for name, value in one["over"].items()},
        curves=(tuple(curves["positive"]), tuple(curves["negative"])),
    )
