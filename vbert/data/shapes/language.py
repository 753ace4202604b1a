"""The meanings of texts about a scene, and their truth: true, false, or unclear (None).

Sizes between small and large, positions near the border of two parts and objects hardly beside one another are
unclear: no text asserts or denies them. The logic is Kleene's. Only published facts count: shape, colour, size and box
of the visible pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vbert.data.shapes.scene import Scene

Truth = bool | None
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class DescribedObject(NamedTuple):
    """An object as texts see it."""

    shape: str
    colour: str
    size: str | None  # small, large; None: unclear
    row: str | None  # None: unclear
    column: str | None
    centre: tuple[int, int]  # x1 + x2, y1 + y2: twice the box's centre
    box: tuple[int, int, int, int]


class SceneFacts(NamedTuple):
    """A scene as texts see it. Things are in the canonical order: by colour, shape, size, then place."""

    number: int
    image_id: str
    split: str
    size: int
    things: tuple[DescribedObject, ...]
    ground: tuple[int, int, int]  # RGB the background starts with


def facts(scene: Scene) -> SceneFacts:
    things = described(((o.shape, o.colour, o.size, o.box) for o in scene.objects), scene.size)
    return SceneFacts(scene.number, scene.image_id, scene.split, scene.size, things, scene.background[1])


def described(
    objects: Iterable[tuple[str, str, str, tuple[int, int, int, int]]], side: int
) -> tuple[DescribedObject, ...]:
    """Objects (shape, colour, size with medium, box) of an image of `side` pixels, as texts see them."""
    things = []
    for shape, colour, size, box in objects:
        x1, y1, x2, y2 = box
        row, column = _third(y1 + y2, side, ROWS), _third(x1 + x2, side, COLUMNS)
        clear = None if size == "medium" else size
        things.append(DescribedObject(shape, colour, clear, row, column, (x1 + x2, y1 + y2), box))
    return tuple(sorted(things, key=lambda t: (t.colour, t.shape, t.size or "", t.centre)))


def _third(doubled: int, size: int, names: tuple[str, ...]) -> str | None:
    """The third of the image that a centre (doubled) lies in; None within a fortieth of the side of a border."""
    for k in (1, 2):
        if abs(60 * doubled - 40 * k * size) < 3 * size:  # |c − k·size/3| < size/40, times 120
            return None
    return names[3 * doubled // (2 * size)]


class Noun(NamedTuple):
    """A description of a thing; None: anything."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    row: str | None = None
    column: str | None = None
    at: tuple[int, int] | None = None  # centre in whole pixels from the left and the top
    extent: tuple[int, int] | None = None  # width and height of the box in pixels

    def fits(self, thing: DescribedObject) -> Truth:
        if self.colour is not None and self.colour != thing.colour:
            return False
        if self.shape is not None and self.shape != thing.shape:
            return False
        x1, y1, x2, y2 = thing.box
        if self.at is not None and self.at != (thing.centre[0] // 2, thing.centre[1] // 2):
            return False
        if self.extent is not None and self.extent != (x2 - x1, y2 - y1):
            return False
        sure = True
        for wanted, is_ in ((self.size, thing.size), (self.row, thing.row), (self.column, thing.column)):
            if wanted is not None and wanted != is_:
                if is_ is not None:
                    return False
                sure = False
        return True if sure else None

    def tally(self, scene: SceneFacts) -> tuple[int, int]:
        """(least, greatest) number of things that the noun may describe."""
        fits = [self.fits(thing) for thing in scene.things]
        sure = fits.count(True)
        return sure, sure + fits.count(None)


def canonical(noun: Noun) -> tuple[object, ...]:
    """The order in which texts name things: by colour, shape, size, then place."""
    words = (noun.colour, noun.shape, noun.size, noun.row, noun.column)
    return (*(word or "" for word in words), noun.at or (), noun.extent or ())


class Exists(NamedTuple):
    """There is such a thing; `negated`: there is none."""

    noun: Noun
    negated: bool = False

    def truth(self, scene: SceneFacts) -> Truth:
        least, most = self.noun.tally(scene)
        there = True if least else None if most else False
        return there if there is None else there is not self.negated


class ExactCount(NamedTuple):
    """There are exactly `number`."""

    noun: Noun
    number: int

    def truth(self, scene: SceneFacts) -> Truth:
        least, most = self.noun.tally(scene)
        if not least <= self.number <= most:
            return False
        return True if least == most else None


class MoreOf(NamedTuple):
    """There are more of one than of the other."""

    more: Noun
    fewer: Noun

    def truth(self, scene: SceneFacts) -> Truth:
        (least, most), (other_least, other_most) = self.more.tally(scene), self.fewer.tally(scene)
        return True if least > other_most else False if most <= other_least else None


class HasAttribute(NamedTuple):
    """The one thing so described has the colour or shape of `what`; false where there is not exactly one."""

    noun: Noun
    what: Noun
    negated: bool = False

    def truth(self, scene: SceneFacts) -> Truth:
        least, most = self.noun.tally(scene)
        if least > 1 or most == 0:
            return False
        if (least, most) != (1, 1):
            return None
        thing = next(t for t in scene.things if self.noun.fits(t))
        fits = self.what.fits(thing)
        return fits if fits is None else fits is not self.negated


class Relation(NamedTuple):
    """One of the first lies `how` of one of the second: by the boxes' centres, clear from a tenth of the side on."""

    first: Noun
    how: str
    second: Noun

    def truth(self, scene: SceneFacts) -> Truth:
        answer: Truth = False
        for one in scene.things:
            for other in scene.things:
                if one is other:
                    continue
                fits = (self.first.fits(one), self.second.fits(other), lies(one, self.how, other, scene.size))
                if False not in fits:
                    if None not in fits:
                        return True
                    answer = None
        return answer


def lies(one: DescribedObject, how: str, other: DescribedObject, size: int) -> Truth:
    axis = 0 if how in ("left of", "right of") else 1
    ahead = 5 * (other.centre[axis] - one.centre[axis])
    if how in ("right of", "below"):
        ahead = -ahead
    return True if ahead >= size else False if ahead <= -size else None


class WholeScene(NamedTuple):
    """The scene holds exactly these things: one noun a thing, all with shape and colour, in canonical order."""

    nouns: tuple[Noun, ...]
    ground: tuple[int, int, int] | None = None

    def truth(self, scene: SceneFacts) -> Truth:
        if len(self.nouns) != len(scene.things) or (self.ground is not None and self.ground != scene.ground):
            return False
        fits = [[noun.fits(thing) for thing in scene.things] for noun in self.nouns]
        if matched([[f is True for f in row] for row in fits]) == len(fits):
            return True
        return None if matched([[f is not False for f in row] for row in fits]) == len(fits) else False


def matched(fits: Sequence[Sequence[bool]]) -> int:
    """How many rows can have a column of their own at once (augmenting paths)."""
    owner: dict[int, int] = {}

    def give(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in owner or give(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return sum(give(row, set()) for row in range(len(fits)))


Meaning = Exists | ExactCount | MoreOf | HasAttribute | Relation | WholeScene


def nouns_of(meaning: Meaning) -> tuple[Noun, ...]:
    """The nouns that must each fit a thing for the meaning to be true; empty for a meaning about absence."""
    match meaning:
        case Exists(noun, negated):
            return () if negated else (noun,)
        case ExactCount(noun, number):
            return (noun,) if number else ()
        case MoreOf(more, _):
            return (more,)
        case HasAttribute(noun, what, negated):
            return (noun,) if negated else (noun, what)
        case Relation(first, _, second):
            return (first, second)
        case WholeScene(nouns):
            return nouns


class SplitScenes:
    """The scenes of one split; finds those that a meaning may be true of."""

    def __init__(self, scenes: Sequence[SceneFacts]) -> None:
        self.scenes = scenes
        self._having: dict[tuple[str | None, str | None], set[int]] = {}
        # By type too: as tuples, ExactCount(noun, 1) equals Exists(noun, True).
        self._known: dict[tuple[type[Meaning], Meaning], tuple[int, ...]] = {}
        for place, scene in enumerate(scenes):
            for thing in scene.things:
                for shape in (thing.shape, None):
                    for colour in (thing.colour, None):
                        self._having.setdefault((shape, colour), set()).add(place)

    def candidates(self, meaning: Meaning) -> tuple[int, ...]:
        """Indices in `scenes` of those for which the meaning is true or unclear."""
        key = (type(meaning), meaning)
        if (known := self._known.get(key)) is not None:
            return known
        sets = sorted((self._having.get((n.shape, n.colour), set()) for n in nouns_of(meaning)), key=len)
        places = sorted(set.intersection(*sets)) if sets else range(len(self.scenes))
        candidates = tuple(place for place in places if meaning.truth(self.scenes[place]) is not False)
        self._known[key] = candidates
        return candidates
