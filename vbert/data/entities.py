"""Flickr30k Entities' own files (Plummer et al. 2015): sentences with marked phrases, and the boxes of what they name.

`Sentences/ID.txt` holds a sentence a line, phrases as `[/EN#chain/type words]`. A chain is one thing (or group) of the
photo, whatever the sentences call it; chain 0 is nothing that can be seen (`notvisual`). A phrase may have several
types, `[/EN#12/people/other the band]`. `Annotations/ID.xml` holds objects: one or more chains as `name`, and a
`bndbox`, or else flags: `scene` (the whole photo), `nobndbox` (not to be boxed).

As `flickr30k_entities_utils.py` of BryanPlummer/flickr30k_entities reads them: words are what blanks part, a phrase
ends at the word that ends in `]`, and empty lines count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbert.data.xml import parsed
from vbert.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Corners = tuple[float, float, float, float]

NOT_VISUAL = "0"  # the chain of what can't be seen
OPENED = re.compile(r"\[/EN#([0-9]+)((?:/[^/\s\[\]]+)+)")


@dataclass(frozen=True)
class Phrase:
    """Characters start to end of its sentence, and words from `first_word` on; `chain`: the number of what it names."""

    start: int
    end: int
    first_word: int
    chain: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """The words, joined by single blanks, and the phrases in their order. `where`: its line, for errors."""

    text: str
    phrases: tuple[Phrase, ...]
    where: str


@dataclass(frozen=True)
class Annotation:
    """The objects of a photo of `width` × `height` pixels.

    boxes: chain → x1, y1, x2, y2 of each of its boxes, as the file gives them (pixels counted from 1). scenes, unboxed:
    chains that are the whole photo, and that are not to be boxed.
    """

    width: int
    height: int
    boxes: Mapping[str, tuple[Corners, ...]]
    scenes: frozenset[str]
    unboxed: frozenset[str]


def sentences(text: str, name: str) -> list[Sentence]:
    """The sentences of a file; its k-th one is k in the official evaluation, from 0.

    name: of the file, for errors. Raises UserError, with file and line, for a phrase that doesn't end, has no words or
    no type, or stands in another one.
    """
    lines = enumerate(text.split("\n"), 1)
    return [_sentence(line, f"{name}:{number}") for number, line in lines if line.strip()]


def _sentence(line: str, where: str) -> Sentence:
    words: list[str] = []
    phrases: list[Phrase] = []
    length, opened = 0, None  # characters of the words and blanks so far; the mark of a phrase that hasn't ended
    start = first = 0
    for token in line.split():
        if token.startswith("[/"):
            if opened is not None:
                raise UserError(f"{where}: the phrase {opened[0]!r:.80} holds another, {token!r:.80}; close it by `]`")
            opened = OPENED.fullmatch(token)
            if opened is None:
                raise UserError(f"{where}: {token!r:.80} is no mark of a phrase as [/EN#12/people")
            start, first = length, len(words)
            continue
        last = opened is not None and token.endswith("]")
        if word := token[:-1] if last else token:
            words.append(word)
            length += len(word) + 1
        if last:
            assert opened is not None
            if len(words) == first:
                raise UserError(f"{where}: the phrase {opened[0]!r:.80} has no words")
            phrases.append(Phrase(start, length - 1, first, _chain(opened[1]), tuple(opened[2][1:].split("/"))))
            opened = None
    if opened is not None:
        raise UserError(f"{where}: the phrase {opened[0]!r:.80} has no end; close it by `]`")
    return Sentence(" ".join(words), tuple(phrases), where)


def annotation(data: bytes, name: str) -> Annotation:
    """The objects of a file. Raises UserError, with file and field, for what isn't as this module says."""
    tree = parsed(data, name)
    boxes: dict[str, tuple[Corners, ...]] = {}
    flagged: dict[str, set[str]] = {"scene": set(), "nobndbox": set()}
    for at, item in enumerate(tree.findall("object")):
        where = f"{name}: object[{at}]"
        chains = [_named(found.text, where) for found in item.findall("name")]
        if not chains:
            raise UserError(f"{where}: name: is missing")
        if (box := item.find("bndbox")) is not None:
            corners = tuple(_whole(box, side, f"{where}: bndbox") for side in ("xmin", "ymin", "xmax", "ymax"))
            for chain in chains:
                boxes[chain] = (*boxes.get(chain, ()), corners)  # type: ignore[arg-type]
            continue
        flags = [flag for flag in flagged if item.find(flag) is not None]
        if not flags:
            raise UserError(f"{where}: has neither bndbox nor the flags scene and nobndbox")
        for flag in flags:
            if _whole(item, flag, where) > 0:
                flagged[flag].update(chains)
    size = tree.find("size")
    if size is None:
        raise UserError(f"{name}: size: is missing")
    sides = [_whole(size, side, f"{name}: size") for side in ("width", "height")]
    return Annotation(sides[0], sides[1], boxes, frozenset(flagged["scene"]), frozenset(flagged["nobndbox"]))


def _named(text: str | None, where: str) -> str:
    chain = (text or "").strip()
    if not re.fullmatch("[0-9]+", chain):
        raise UserError(f"{where}: name: must be the number of a chain, not {chain!r:.80}")
    return _chain(chain)


def _chain(digits: str) -> str:
    """The number without leading zeros, as both files may write it."""
    return digits.lstrip("0") or NOT_VISUAL


def _whole(item: Element, field: str, where: str) -> int:
    text = (item.findtext(field) or "").strip()
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise UserError(f"{where}: {field}: {f'must be a whole number, not {text!r:.80}' if text else 'is missing'}")
    return int(text)
