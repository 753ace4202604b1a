"""Words back into meanings: the inverse of `wording`.

`parse(words(meaning, k))` is the meaning, for every meaning that `words` tells whole and every wording, so no text has
two. Words are as the generator writes them, but capitals, blanks, commas and a full stop don't matter: a decoded
caption is word pieces joined. A text outside this grammar (a wrong plural, a list without `and`, a word more) has no
meaning: None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import get_args

from vbert.data.shapes.language import (
    COLUMNS,
    OPPOSITE,
    ROWS,
    ExactCount,
    Exists,
    HasAttribute,
    Meaning,
    MoreOf,
    Noun,
    Relation,
    WholeScene,
)
from vbert.data.shapes.scene import COLOURS, Shape
from vbert.data.shapes.wording import MORE, NONE, NUMBER, NUMERALS, ONLY, RELATION, SOME, noun_phrase, plural

_SHAPES = (*get_args(Shape), "shape")


def _one_of(*words: str) -> str:
    return "|".join(words)


_NUMBER = "[0-9]{1,4}"
_NOUN = re.compile(
    rf"(?:(?P<size>small|large) )?(?:(?P<colour>{_one_of(*COLOURS)}) )?(?P<shape>(?:{_one_of(*_SHAPES)})(?:e?s)?)"
    rf"(?: in the (?P<row>{_one_of(*ROWS)})?(?:(?(row) |)(?P<column>{_one_of(*COLUMNS)}))? part)?"
    rf"(?: at (?P<x>{_NUMBER}) (?P<y>{_NUMBER}))?(?: sized (?P<width>{_NUMBER}) (?P<height>{_NUMBER}))?"
)
_GROUND = re.compile(rf"(?P<list>.+) on a ground of (?P<rgb>{_NUMBER} {_NUMBER} {_NUMBER})")
_ATTRIBUTE = re.compile(r"(?P<color>the color of )?the (?P<noun>.+) is(?P<no> not)? (?P<a>a )?(?P<what>[a-z]+)")
_ITEM = re.compile(rf"(?:and )?(?P<number>a|{_one_of(*NUMERALS)}) (?P<noun>{_NOUN.pattern})(?: |$)")


def parse(text: str) -> Meaning | None:
    """What the text says; None for a text outside the grammar."""
    plain = re.sub(r"[,\s]+", " ", text.lower()).strip().removesuffix(".").rstrip()
    return next((meaning for read in _READERS for meaning in read(plain)), None)


def _exists(text: str) -> Iterator[Meaning]:
    for pattern in SOME:
        for (phrase,) in _slots(pattern, text):
            if phrase.startswith("a ") and (noun := _noun(phrase[2:])):
                yield Exists(noun)
    for pattern in NONE:
        for (phrase,) in _slots(pattern, text):
            if noun := _noun(phrase):
                yield Exists(noun, negated=True)


def _count(text: str) -> Iterator[Meaning]:
    for pattern in NUMBER:
        for verb in ("is", "are"):
            for (phrase,) in _slots(pattern.format("{}", **{"is": verb}), text):
                if (counted := _several(phrase)) and (counted[1] == 1) is (verb == "is"):
                    yield ExactCount(*counted)


def _more(text: str) -> Iterator[Meaning]:
    for pattern in MORE:
        for phrases in _slots(pattern, text):
            more, fewer = (_noun(phrase, many=True) for phrase in phrases)
            if more and fewer:
                yield MoreOf(more, fewer)


def _attribute(text: str) -> Iterator[Meaning]:
    if (found := _ATTRIBUTE.fullmatch(text)) is None or (noun := _noun(found["noun"])) is None:
        return
    what = found["what"]
    if found["a"] and not found["color"] and what in _SHAPES[:-1]:
        yield HasAttribute(noun, Noun(what), found["no"] is not None)
    elif not found["a"] and what in COLOURS:
        yield HasAttribute(noun, Noun(None, what), found["no"] is not None)


def _relation(text: str) -> Iterator[Meaning]:
    for pattern in RELATION:
        for how in OPPOSITE:
            for phrases in _slots(pattern.format("{}", how, "{}"), text):
                first, second = (_noun(phrase[2:]) if phrase.startswith("a ") else None for phrase in phrases)
                if first and second:
                    yield Relation(first, how, second)


def _whole(text: str) -> Iterator[Meaning]:
    for pattern in ONLY:
        for (listing,) in _slots(pattern, text):
            ground = None
            if on := _GROUND.fullmatch(listing):
                red, green, blue = map(int, on["rgb"].split())
                listing, ground = on["list"], (red, green, blue)
            if nouns := _list(listing):
                yield WholeScene(nouns, ground)


def _list(text: str) -> tuple[Noun, ...] | None:
    """'a black circle two blue rectangles and a red triangle': a noun a thing; None for no such list."""
    nouns: list[Noun] = []
    at = 0
    while at < len(text):
        if (item := _ITEM.match(text, at)) is None:
            return None
        last = item.end() == len(text)
        if item[0].startswith("and ") is not (last and at > 0):
            return None
        counted = (_noun(item["noun"]), 1) if item["number"] == "a" else _several(item[0].removeprefix("and ").strip())
        if counted is None or counted[0] is None or (item["number"] != "a" and counted[1] < 2):
            return None
        nouns += [counted[0]] * counted[1]
        at = item.end()
    return tuple(nouns)


def _slots(pattern: str, text: str) -> Iterator[tuple[str, ...]]:
    """What stands at the `{}` of the pattern, if the text fits it."""
    if found := re.fullmatch("(.+)".join(map(re.escape, pattern.split("{}"))), text):
        yield found.groups()


def _several(phrase: str) -> tuple[Noun, int] | None:
    """'two red circles' → (red circle, 2)."""
    numeral, _, rest = phrase.partition(" ")
    if numeral not in NUMERALS:
        return None
    number = NUMERALS.index(numeral)
    noun = _noun(rest, many=number != 1)
    return (noun, number) if noun else None


def _noun(phrase: str, many: bool = False) -> Noun | None:
    """A noun phrase without its article or numeral, in the plural if there are `many`."""
    if (found := _NOUN.fullmatch(phrase)) is None or found[0] != phrase:
        return None
    shape = next(s for s in _SHAPES if found["shape"].startswith(s))
    at = (int(found["x"]), int(found["y"])) if found["x"] else None
    extent = (int(found["width"]), int(found["height"])) if found["width"] else None
    noun = Noun(
        None if shape == "shape" else shape, found["colour"], found["size"], found["row"], found["column"], at, extent
    )
    bare = phrase[: found.end("shape")]
    return noun if bare == (plural(noun) if many else noun_phrase(noun)) else None


_READERS: tuple[Callable[[str], Iterator[Meaning]], ...] = (_exists, _count, _more, _attribute, _relation, _whole)
