"""Texts about a scene, judged: what they say, whether it is false, and how many of its things they name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vbert.data.scene_checks import SceneCheck
from vbert.data.shapes.language import (
    HasAttribute,
    Meaning,
    MoreOf,
    Noun,
    SceneFacts,
    WholeScene,
    described,
    matched,
    nouns_of,
)
from vbert.data.shapes.parsing import parse


def check(text: str, scene: Mapping[str, Any]) -> SceneCheck:
    """`scene`: {"side": of the image in pixels, "ground": RGB, "things": [[shape, colour, size, x1, y1, x2, y2], …]},
    as the reader `shapes` gives it."""
    things = described(((t[0], t[1], t[2], (t[3], t[4], t[5], t[6])) for t in scene["things"]), scene["side"])
    red, green, blue = scene["ground"]
    meaning = _parsed(text)
    if meaning is None:
        return SceneCheck(None, False, 0, len(things))
    facts = SceneFacts(0, "", "", scene["side"], things, (red, green, blue))
    return SceneCheck(type(meaning).__name__, meaning.truth(facts) is not False, named(meaning, facts), len(things))


def named(meaning: Meaning, scene: SceneFacts) -> int:
    """How many things of the scene the meaning names: of a list those that have a noun of their own, else those that
    one of its nouns surely describes. Nouns that are said to be absent name nothing."""
    if isinstance(meaning, WholeScene):
        return matched([[noun.fits(thing) is True for thing in scene.things] for noun in meaning.nouns])
    nouns = _named_by(meaning)
    return sum(any(noun.fits(thing) is True for noun in nouns) for thing in scene.things)


def _named_by(meaning: Meaning) -> tuple[Noun, ...]:
    match meaning:
        case MoreOf(more, fewer):
            return (more, fewer)
        case HasAttribute(noun, _, _):  # the attribute is said of it: 'the circle is red' names no other red thing
            return (noun,)
    return nouns_of(meaning)


_parsed = lru_cache(maxsize=1 << 16)(parse)  # a model writes few different texts
