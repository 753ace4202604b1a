"""Inputs of which words and regions are gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from vbert.objectives.batches import Input
from vbert.objectives.examined import Examined


class Gone(NamedTuple):
    """Words of an examined input, and regions, by their numbers among those that are shown."""

    words: frozenset[int]
    regions: frozenset[int]

    @classmethod
    def of(cls, units: Iterable[int], words: int) -> Gone:
        """Of words and regions numbered as one, `words` words before the regions."""
        chosen = frozenset(units)
        return cls(frozenset(k for k in chosen if k < words), frozenset(k - words for k in chosen if k >= words))


def words_of(one: Examined) -> list[list[int]]:
    """The places of the pieces of each word of the input, in their order; special tokens are none."""
    places: dict[int, list[int]] = {}
    for place, word in enumerate(one.input.text.words):
        if word >= 0:
            places.setdefault(word, []).append(place)
    return list(places.values())


def masked(given: Input, places: Iterable[int], mask: int) -> Input:
    """With the pieces at `places` as [MASK]: the others stay where they stand."""
    ids = list(given.text.ids)
    for place in places:
        ids[place] = mask
    return replace(given, text=replace(given.text, ids=ids))


def left(given: Input, kept: Sequence[int], count: int) -> Input:
    """With the regions `kept` alone, numbers among the `count` that are shown: the model has fewer to read."""
    shown = range(count) if given.regions is None else given.regions
    number = {region: k for k, region in enumerate(kept)}
    aligned = [(number[region], place) for region, place in given.aligned if region in number]
    return replace(given, regions=[shown[k] for k in kept], aligned=aligned)


def without(
    inputs: Sequence[Input], examined: Input, words: Sequence[Sequence[int]], gone: Gone, count: int, mask: int
) -> list[Input]:
    """The inputs of an example without what is gone: words of the `examined` one, regions of all. words: the places of
    each; count: how many regions are shown."""
    kept = [k for k in range(count) if k not in gone.regions]
    made = []
    for one in inputs:
        changed = left(one, kept, count) if gone.regions else one
        if gone.words and one is examined:
            changed = masked(changed, (place for word in gone.words for place in words[word]), mask)
        made.append(changed)
    return made


def every_other(units: int) -> list[Collection[int]]:
    """What is gone: nothing, all, each unit alone, and for each all but it."""
    whole = range(units)
    return [(), whole, *([k] for k in whole), *([j for j in whole if j != k] for k in whole)]
