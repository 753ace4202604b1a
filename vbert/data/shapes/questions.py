"""Questions with answers. Forms, polarities and answers are drawn before attributes, so that a text tells little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from vbert.data.shapes.captions import TRIES, either, kinds, more, pick, relations
from vbert.data.shapes.language import OPPOSITE, DescribedObject, Noun, Relation, SceneFacts
from vbert.data.shapes.scenes import ShapesSettings, stream
from vbert.data.shapes.wording import noun_phrase, plural, some

ORDER = ("exists", "color", "exists", "shape", "count", "compare")
ASKED = ("is there a {}?", "is there a {} in the image?", "does the image contain a {}?", "is a {} present?")
DENIED = (
    "is there no {}?",
    "is there not a {} in the image?",
    "does the image not contain a {}?",
    "is no {} present?",
)
COLOR = ("what color is the {}?", "what is the color of the {}?", "which color does the {} have?")
ONE_SHAPE = ("what shape is in the image?", "what shape does the image contain?", "what shape is shown?")
SHAPE = ("what is the {} shape?", "what shape is the {} one?", "which shape is {}?")
COUNT = ("how many {} are there?", "how many {} does the image contain?", "what is the number of {}?")
RELATION = ("is {} {} {}?", "is there {} {} {}?")
MORE = ("are there more {} than {}?", "does the image contain more {} than {}?")

Asked = tuple[str, str, str]  # question_type, question, answer


def questions(settings: ShapesSettings, scenes: Sequence[SceneFacts]) -> Iterator[dict[str, Any]]:
    """The question rows of scenes; where a scene admits no question of a type it gets one of existence."""
    for scene in scenes:
        texts: set[str] = set()
        for k in range(settings.questions):
            rng = stream(settings, "question", scene.number, k)
            for attempt in range(TRIES):
                kind = ORDER[k % len(ORDER)] if attempt < TRIES // 2 else "exists"
                made = MAKERS[kind](settings, scene, rng)
                if made is None or made[1] in texts:
                    continue
                texts.add(made[1])
                yield {
                    "example_id": f"{scene.image_id}/question/{k}",
                    "kind": "question",
                    "image_ids": [scene.image_id],
                    "split": scene.split,
                    "text": made[1],
                    "answers": [{"answer": made[2], "score": 1.0}],
                    "question_type": made[0],
                }
                break


def _exists(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Asked | None:
    nouns = either(settings, scene, rng)
    there, negated = rng.random() < 0.5, rng.random() < 0.5
    if nouns is None:
        return None
    text = rng.choice(DENIED if negated else ASKED).format(noun_phrase(nouns[there]))
    return "exists", text, "yes" if there is not negated else "no"


def _colour(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Asked | None:
    thing, noun = _singled_out(scene, rng, lambda t: (Noun(t.shape), Noun(t.shape, None, t.size)))
    return ("color", rng.choice(COLOR).format(noun_phrase(noun)), thing.colour) if thing else None


def _shape(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Asked | None:
    if len(scene.things) == 1 and rng.random() < 0.5:
        return "shape", rng.choice(ONE_SHAPE), scene.things[0].shape
    thing, noun = _singled_out(scene, rng, lambda t: (Noun(None, t.colour), Noun(None, t.colour, t.size)))
    if thing is None:
        return None
    if noun.size is None:
        return "shape", rng.choice(SHAPE).format(noun.colour), thing.shape
    return "shape", rng.choice(SHAPE[:2]).format(f"{noun.size} {noun.colour}"), thing.shape


def _singled_out(
    scene: SceneFacts, rng: Random, nouns: Callable[[DescribedObject], tuple[Noun, Noun]]
) -> tuple[DescribedObject | None, Noun]:
    """A thing, and the shorter of the two nouns that describes it alone; (None, …) where there is no such thing.
    The only thing of a scene is 'the shape' half of the time."""
    if len(scene.things) == 1 and rng.random() < 0.5 and nouns(scene.things[0])[0].colour is None:
        return scene.things[0], Noun()
    choices = []
    for thing in scene.things:
        noun = next((n for n in nouns(thing) if n.tally(scene) == (1, 1)), None)
        if noun is not None:
            choices.append((thing, noun))
    return pick(choices, rng) or (None, Noun())


def _count(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Asked:
    """The number is drawn first, among those that some noun has."""
    by_number: dict[int, list[Noun]] = {}
    for noun in (*kinds(settings)[0], *kinds(settings)[1], Noun()):
        by_number.setdefault(noun.tally(scene)[0], []).append(noun)
    number = rng.choice(sorted(by_number))
    noun = rng.choice(by_number[number])
    # Digits: VQA's normalisation turns number words into them.
    return "count", rng.choice(COUNT).format(plural(noun)), str(number)


def _compare(settings: ShapesSettings, scene: SceneFacts, rng: Random) -> Asked | None:
    """Relations of places or of numbers; the false ones are the opposite of true ones."""
    true = rng.random() < 0.5
    answer = "yes" if true else "no"
    opposite = [(r, Relation(r.first, OPPOSITE[r.how], r.second)) for r in relations(scene)]
    both = pick([two for two in opposite if two[1].truth(scene) is False], rng)
    if both and rng.random() < 0.7:
        relation = both[0] if true else both[1]
        text = rng.choice(RELATION).format(some(relation.first), relation.how, some(relation.second))
        return "relation", text, answer
    if (counts := more(settings, scene, rng)) is None:
        return None
    one, other = (counts.more, counts.fewer) if true else (counts.fewer, counts.more)
    return "compare", rng.choice(MORE).format(plural(one), plural(other)), answer


MAKERS: dict[str, Callable[[ShapesSettings, SceneFacts, Random], Asked | None]] = {
    "exists": _exists,
    "color": _colour,
    "shape": _shape,
    "count": _count,
    "compare": _compare,
}
