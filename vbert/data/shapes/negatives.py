"""Negatives: texts that differ from a true one in one thing and are checked to be false of the scene."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from random import Random
from typing import NamedTuple

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
    SceneFacts,
    WholeScene,
    canonical,
)
from vbert.data.shapes.scenes import ShapesSettings
from vbert.data.shapes.wording import place, words


class Negative(NamedTuple):
    """A false text, and its change of the true one: shape, color, size, place, count, relation or negation."""

    text: str
    changed: str


def negatives(
    settings: ShapesSettings, scene: SceneFacts, meaning: Meaning, wording: int, rng: Random
) -> list[Negative]:
    """Texts false of the scene: the meaning with one attribute, shape, count, relation or its negation changed, in the
    same wording (a changed negation has wordings of its own). A text about mere presence or
    absence gets two, its contrary and another: so false texts deny as often as true ones do."""
    texts: dict[str, Negative] = {}
    most = settings.negatives
    others = altered(settings, meaning, rng)
    if isinstance(meaning, Exists | HasAttribute) and not place(meaning.noun):
        most = min(most, 2)
        others = chain([(meaning._replace(negated=not meaning.negated), "negation")], others)
    for other, changed in others:
        if len(texts) == most:
            break
        if other.truth(scene) is False:
            text = words(other, wording)
            texts.setdefault(text, Negative(text, changed))
    return list(texts.values())


def altered(settings: ShapesSettings, meaning: Meaning, rng: Random) -> Iterator[tuple[Meaning, str]]:
    """The meaning with one thing changed, and which, in random order, the opposite relation first; some are as true as
    it."""
    changed: list[tuple[Meaning, str]] = []
    match meaning:
        case Exists(noun, negated):
            changed = [(Exists(n, negated), what) for n, what in _others(settings, noun)]
        case HasAttribute(noun, attribute, negated):
            changed = [(HasAttribute(noun, n, negated), what) for n, what in _others(settings, attribute)]
        case ExactCount(noun, number):
            changed = [(ExactCount(noun, n), "count") for n in (number - 1, number + 1) if n > 0]
            changed += [(ExactCount(n, number), what) for n, what in _others(settings, noun)]
        case MoreOf(more, fewer):
            changed = [(MoreOf(fewer, more), "count")]
            changed += [(MoreOf(n, fewer), what) for n, what in _others(settings, more) if n != fewer]
        case Relation(first, how, second):
            yield Relation(first, OPPOSITE[how], second), "relation"
            changed += [(Relation(n, how, second), what) for n, what in _others(settings, first) if n != second]
            changed += [(Relation(first, how, n), what) for n, what in _others(settings, second) if n != first]
        case WholeScene(nouns, ground):
            for k, noun in enumerate(nouns):
                rest = (*nouns[:k], *nouns[k + 1 :])
                lists = [((*rest, n), what) for n, what in _others(settings, noun)] + [((*rest, noun, noun), "count")]
                lists += [(rest, "count")] if rest else []
                changed += [(WholeScene(tuple(sorted(other, key=canonical)), ground), what) for other, what in lists]
    yield from rng.sample(changed, len(changed))


def _others(settings: ShapesSettings, noun: Noun) -> list[tuple[Noun, str]]:
    """The noun with one of its words changed, and which."""
    changed = [(noun._replace(shape=name), "shape") for name in settings.shapes if noun.shape not in (None, name)]
    changed += [(noun._replace(colour=name), "color") for name in settings.colours if noun.colour not in (None, name)]
    changed += [(noun._replace(size=name), "size") for name in ("small", "large") if noun.size not in (None, name)]
    changed += [(noun._replace(row=name), "place") for name in ROWS if noun.row not in (None, name)]
    changed += [(noun._replace(column=name), "place") for name in COLUMNS if noun.column not in (None, name)]
    return changed
