"""Negatives: texts false of a scene that differ from a true one in one thing. Checked, not hoped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from random import Random

from vbert.data.shapes.language import (
    COLUMNS,
    OPPOSITE,
    ROWS,
    Facts,
    Is,
    Meaning,
    More,
    Noun,
    Number,
    Only,
    Relation,
    Some,
    canonical,
)
from vbert.data.shapes.scenes import ShapesSettings
from vbert.data.shapes.wording import place, words


def negatives(settings: ShapesSettings, scene: Facts, meaning: Meaning, wording: int, rng: Random) -> list[str]:
    """Texts false of the scene: the meaning with one attribute, shape, count, relation or its negation changed, in the
    same wording (a changed negation has wordings of its own). What only says that something is there, or isn't, gets
    two, its contrary and another: so false texts deny as often as true ones do."""
    found: list[str] = []
    most = settings.negatives
    others = altered(settings, meaning, rng)
    if isinstance(meaning, Some | Is) and not place(meaning.noun):
        most = min(most, 2)
        others = chain([meaning._replace(negated=not meaning.negated)], others)
    for other in others:
        if len(found) == most:
            break
        if other.truth(scene) is False and (text := words(other, wording)) not in found:
            found.append(text)
    return found


def altered(settings: ShapesSettings, meaning: Meaning, rng: Random) -> Iterator[Meaning]:
    """The meaning with one thing changed, in random order, the opposite relation first; some are as true as it."""
    changed: list[Meaning] = []
    match meaning:
        case Some(noun, negated):
            changed = [Some(n, negated) for n in _others(settings, noun)]
        case Is(noun, what, negated):
            changed = [Is(noun, w, negated) for w in _others(settings, what)]
        case Number(noun, number):
            changed = [Number(noun, n) for n in (number - 1, number + 1) if n > 0]
            changed += [Number(n, number) for n in _others(settings, noun)]
        case More(more, fewer):
            changed = [More(fewer, more)]
            changed += [More(n, fewer) for n in _others(settings, more) if n != fewer]
        case Relation(first, how, second):
            yield Relation(first, OPPOSITE[how], second)
            changed += [Relation(n, how, second) for n in _others(settings, first) if n != second]
            changed += [Relation(first, how, n) for n in _others(settings, second) if n != first]
        case Only(nouns, ground):
            for k, noun in enumerate(nouns):
                rest = (*nouns[:k], *nouns[k + 1 :])
                lists = [(*rest, n) for n in _others(settings, noun)] + [(*rest, noun, noun)]
                lists += [rest] if rest else []
                changed += [Only(tuple(sorted(other, key=canonical)), ground) for other in lists]
    yield from rng.sample(changed, len(changed))


def _others(settings: ShapesSettings, noun: Noun) -> list[Noun]:
    """The noun with one of its words changed."""
    found = [noun._replace(shape=name) for name in settings.shapes if noun.shape not in (None, name)]
    found += [noun._replace(colour=name) for name in settings.colours if noun.colour not in (None, name)]
    found += [noun._replace(size=name) for name in ("small", "large") if noun.size not in (None, name)]
    found += [noun._replace(row=name) for name in ROWS if noun.row not in (None, name)]
    return found + [noun._replace(column=name) for name in COLUMNS if noun.column not in (None, name)]
