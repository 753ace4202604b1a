"""Words that tell of things in the image, by kind: of texts whose phrases have boxes, in English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from vbert.objectives.entry import Row

# noun: a phrase's last word, with the phrase's boxes. colour: one before it in the phrase, likewise. A relation word
# stands between two phrases; it is right with the boxes of the first, or with those of the second.
KINDS = ("noun", "colour", "relation_first", "relation_second")
# fmt: off
COLOURS = frozenset((
    "black", "blond", "blonde", "blue", "brown", "golden", "gray", "green", "grey", "orange", "pink", "purple", "red",
    "silver", "tan", "teal", "white", "yellow",
))
RELATIONS = frozenset((
    "above", "across", "against", "along", "around", "at", "behind", "below", "beneath", "beside", "between", "by",
    "in", "inside", "into", "left", "near", "on", "onto", "over", "right", "through", "toward", "towards", "under",
    "underneath", "upon",
))
# fmt: on
WORD = re.compile(r"\w+")


class NamingWord(NamedTuple):
    """A word of a text, characters [start, end), and the boxes of the thing that it tells of, xyxy in pixels."""

    kind: str
    start: int
    end: int
    boxes: list[list[float]]


def naming_words(row: Row) -> Iterator[NamingWord]:
    """Those of an example, in no order."""
    text: str = row["text"].lower()
    with_boxes = (phrase for phrase in row["phrases"] if phrase["boxes"])
    phrases = sorted(with_boxes, key=lambda one: (one["start"], one["end"]))
    for phrase in phrases:
        words = list(WORD.finditer(text, phrase["start"], phrase["end"]))
        if words:
            yield NamingWord("noun", *words[-1].span(), phrase["boxes"])
        for word in words[:-1]:
            if word[0] in COLOURS:
                yield NamingWord("colour", *word.span(), phrase["boxes"])
    for first, second in pairwise(phrases):
        if first["end"] <= second["start"]:
            between = [one for one in WORD.finditer(text, first["end"], second["start"]) if one[0] in RELATIONS]
            for word in between[:1]:
                yield NamingWord("relation_first", *word.span(), first["boxes"])
                yield NamingWord("relation_second", *word.span(), second["boxes"])
