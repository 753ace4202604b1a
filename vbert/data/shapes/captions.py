"""Captions of a scene: descriptions, relations, counts and short statements, true ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

from vbert.data.shapes.language import (
    DescribedObject,
    ExactCount,
    Exists,
    HasAttribute,
    Meaning,
    MoreOf,
    Noun,
    Relation,
    SceneFacts,
    SplitScenes,
    WholeScene,
    canonical,
    lies,
)
from vbert.data.shapes.negatives import negatives
from vbert.data.shapes.scenes import ShapesSettings, stream
from vbert.data.shapes.wording import words
from vbert.errors import BuildError

T = TypeVar("T")
Row = dict[str, Any]
# The captions of a scene, as many as asked for; where the scene has no relation it gets a place, and so on.
ORDER = ("description", "list", "relation", "count", "place", "relation", "count", "place")
TRIES = 8
WORDINGS = 60  # a multiple of the number of wordings of every meaning


def captions(settings: ShapesSettings, split: SplitScenes) -> Iterator[tuple[int, Meaning, Row]]:
    """(place of the scene in the split, meaning, row) of each caption. `question_type` says what a caption is;
    `unique` is computed for every one."""
    for place, scene in enumerate(split.scenes):
        texts: set[str] = set()
        for k, kind in enumerate(ORDER[: settings.captions] + ("statement",) * settings.statements):
            rng = stream(settings, "caption", scene.number, k)
            for _ in range(TRIES):
                meaning = _unique(scene, split) if kind == "description" else MAKERS[kind](settings, scene, rng)
                wording = rng.randrange(WORDINGS)
                if meaning is None or (text := words(meaning, wording)) in texts:
                    continue
                texts.add(text)
                wrong = negatives(settings, scene, meaning, wording, rng)
                row = {
                    "example_id": f"{scene.image_id}/caption/{k}",
                    "kind": "caption",
                    "image_ids": [scene.image_id],
                    "split": scene.split,
                    "text": text,
                    "question_type": kind,
                    "negatives": [negative.text for negative in wrong],
                    "changed": [negative.changed for negative in wrong],
                    "unique": len(split.candidates(meaning)) == 1,
                }
                yield place, meaning, row
                break


def plain(thing: DescribedObject) -> Noun:
    return Noun(thing.shape, thing.colour)


def levels(scene: SceneFacts) -> Iterator[WholeScene]:
    """Ever fuller descriptions of all things: shape and colour; sizes; parts of the image; pixels; the ground."""
    for level in range(6):
        nouns = []
        for t in scene.things:
            noun = Noun(t.shape, t.colour, t.size if level else None)
            if level == 2:
                noun = noun._replace(row=t.row, column=t.column)
            if level >= 3:
                noun = noun._replace(at=(t.centre[0] // 2, t.centre[1] // 2))
            if level >= 4:
                noun = noun._replace(extent=(t.box[2] - t.box[0], t.box[3] - t.box[1]))
            nouns.append(noun)
        yield WholeScene(tuple(sorted(nouns, key=canonical)), scene.ground if level == 5 else None)


def _unique(scene: SceneFacts, split: SplitScenes) -> WholeScene:
    """The shortest description of the scene that is true of no other scene of the split."""
    for meaning in levels(scene):
        places = split.candidates(meaning)
        if len(places) == 1:
            return meaning
    others = ", ".join(split.scenes[place].image_id for place in places)
    raise BuildError(f"scenes {others} can't be told apart in words; ask for fewer images, larger ones or another seed")


def _list(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Meaning:
    return next(levels(scene))


def _relation(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Meaning | None:
    return pick(relations(scene), rng) or _place(settings, scene, rng)


def relations(scene: SceneFacts) -> list[Relation]:
    """Clear relations between things of different kinds, the canonically first one named first; of the two axes the
    one that sets them further apart."""
    meanings = []
    for k, one in enumerate(scene.things):
        for other in scene.things[k + 1 :]:
            if plain(one) == plain(other):
                continue
            across = abs(one.centre[0] - other.centre[0]) >= abs(one.centre[1] - other.centre[1])
            axis = ("left of", "right of") if across else ("above", "below")
            meanings += [Relation(plain(one), how, plain(other)) for how in axis if lies(one, how, other, scene.size)]
    return meanings


def _place(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Meaning | None:
    placed = [t for t in scene.things if t.row or t.column]
    thing = pick(placed, rng)
    return thing and Exists(Noun(thing.shape, thing.colour, None, thing.row, thing.column))


def _count(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Meaning:
    if rng.random() < 0.3 and (meaning := more(settings, scene, rng)):
        return meaning
    thing = rng.choice(scene.things)
    noun = rng.choice((Noun(), Noun(thing.shape), Noun(None, thing.colour), plain(thing)))
    return ExactCount(noun, noun.tally(scene)[0])


def kinds(settings: ShapesSettings) -> tuple[list[Noun], list[Noun]]:
    """One noun a colour, one a shape."""
    return [Noun(None, name) for name in settings.colours], [Noun(name) for name in settings.shapes]


def more(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> MoreOf | None:
    """ "More of one colour (or shape) than of another", true of the scene; None where no such text is true."""
    for nouns in rng.sample(kinds(settings), 2):
        for _ in range(TRIES):
            one, other = rng.sample(nouns, 2)
            if one.tally(scene) > other.tally(scene):
                return MoreOf(one, other)
    return None


def _statement(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Meaning | None:
    """A short statement about an attribute; as often negated as not."""
    negated = rng.random() < 0.5
    if len(scene.things) == 1 and rng.random() < 0.4:
        return _is(settings, scene.things[0], Noun(), negated, rng)
    if rng.random() < 0.2:
        alone = [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]
        if thing := pick(alone, rng):
            return _is(settings, thing, Noun(thing.shape), negated, rng)
    nouns = either(settings, scene, rng)
    return nouns and Exists(nouns[not negated], negated)


def _is(settings: ShapesSettings, thing: DescribedObject, subject: Noun, negated: bool, rng: Random) -> HasAttribute:
    """'the circle is red', 'the shape is not a triangle': of the one thing that `subject` describes."""
    if subject.shape is None and rng.random() < 0.5:
        shape = rng.choice([s for s in settings.shapes if s != thing.shape]) if negated else thing.shape
        return HasAttribute(subject, Noun(shape), negated)
    colour = rng.choice([c for c in settings.colours if c != thing.colour]) if negated else thing.colour
    return HasAttribute(subject, Noun(None, colour), negated)


def either(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> tuple[Noun, Noun] | None:
    """(absent, present): two nouns of the same form, one describing nothing in the scene, one something, so that the
    form tells nothing about which is asked for."""
    for form in rng.sample(("colour", "colour", "shape", "both", "both", "sized"), 6):
        present, absent = (
            pick(
                [
                    n
                    for _ in range(TRIES)
                    if Exists(n := _noun(settings, scene, form, there, rng)).truth(scene) is there
                ],
                rng,
            )
            for there in (True, False)
        )
        if present and absent:
            return absent, present
    return None


def _noun(settings: ShapesSettings, scene: SceneFacts, form: str, there: bool, rng: Random) -> Noun:
    """A noun that describes a thing of the scene, or (`there` False) one that may well not: of random attributes, or,
    for the two longer forms, half of the time of one thing's with another shape."""
    thing = rng.choice(scene.things)
    shape, colour, size = thing.shape, thing.colour, thing.size
    if not there:
        near = form in ("both", "sized") and rng.random() < 0.5
        shape, size = rng.choice(settings.shapes), rng.choice(("small", "large"))
        colour = colour if near else rng.choice(settings.colours)
    if form == "colour":
        return Noun(None, colour)
    if form == "shape":
        return Noun(shape)
    return Noun(shape, colour, (size or rng.choice(("small", "large"))) if form == "sized" else None)


Maker = Callable[[ShapesSettings, SceneFacts, Random], Meaning | None]
MAKERS: dict[str, Maker] = {
    "list": _list,
    "relation": _relation,
    "count": _count,
    "place": _place,
    "statement": _statement,
}


def pick(items: Sequence[T], rng: Random) -> T | None:
    return rng.choice(items) if items else None
