"""Texts that need more than one thing at once: statements over two images, sentiments, phrases, choices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby
from random import Random
from typing import Any, NamedTuple

from vbert.data.shapes.captions import TRIES, kinds, levels, pick, relations
from vbert.data.shapes.language import SceneFacts
from vbert.data.shapes.scenes import ShapesSettings, stream
from vbert.data.shapes.wording import ONLY, TextSpan, listed, noun_phrase, plural

Row = dict[str, Any]
BLOCK = 40  # scenes of a split that pairs are made among; earlier blocks don't depend on later scenes


class PairClaim(NamedTuple):
    """A statement over a left and a right image. `left` and `right` map an image to the property that decides; the
    statement is true where `right`'s property is the `partner` of `left`'s."""

    kind: str
    text: str
    left: Callable[[SceneFacts], Hashable]
    right: Callable[[SceneFacts], Hashable]
    partner: Callable[[Any], Hashable]


def pairs(settings: ShapesSettings, scenes: Sequence[SceneFacts]) -> Iterator[Row]:
    """The pair rows of a split, about `pairs` a scene, in fours: two left and two right images, of which each left one
    makes the statement true with one right one and false with the other. So every statement has both labels equally
    often, and neither the text nor, beside it, one of the images tells anything."""
    for start in range(0, len(scenes), BLOCK):
        block = scenes[start : start + BLOCK]
        rng = stream(settings, "pairs", block[0].split, start // BLOCK)
        for k in range(settings.pairs * len(block) // 4):
            for _ in range(TRIES):
                claim = _claim(settings, rng)
                if (four := _four(claim, block, rng)) is not None:
                    yield from _pair_rows(claim, four, f"{block[0].split}/pair/{start // BLOCK:05d}-{k:02d}")
                    break


def _claim(settings: ShapesSettings, rng: Random) -> PairClaim:
    colours, shapes = kinds(settings)
    noun = rng.choice(rng.choice((colours, shapes)))
    kind = rng.choice(("one", "both", "same", "different", "total"))
    a = f"a {noun_phrase(noun)}"

    def there(scene: SceneFacts) -> bool:
        return noun.tally(scene)[0] > 0

    def number(scene: SceneFacts) -> int:
        return noun.tally(scene)[0]

    if kind == "one":
        text = rng.choice(("exactly one of the two images contains {}", "only one of the images shows {}")).format(a)
        return PairClaim(kind, text, there, there, lambda left: not left)
    if kind == "both":
        text = rng.choice(("both images contain {} or neither does", "{} is in both images or in none")).format(a)
        return PairClaim(kind, text, there, there, lambda left: left)
    if kind in ("same", "different"):
        patterns = {
            "same": ("the two images contain the same number of {}", "as many {} are on the left as on the right"),
            "different": ("the two images contain different numbers of {}", "the numbers of {} left and right differ"),
        }
        text = rng.choice(patterns[kind]).format(plural(noun))
        return PairClaim(kind, text, number, number, lambda left: left)
    total = rng.choice((1, 2, 3))
    text = rng.choice(("together the images contain exactly {} {}", "the two images hold {} {} in all")).format(
        ("one", "two", "three")[total - 1], plural(noun) if total > 1 else noun_phrase(noun)
    )
    return PairClaim(kind, text, number, number, lambda left: total - left)


def _four(
    claim: PairClaim, block: Sequence[SceneFacts], rng: Random
) -> tuple[SceneFacts, SceneFacts, SceneFacts, SceneFacts] | None:
    """Left a, left b, right a, right b: right a is the partner of left a alone, right b of left b alone."""
    order = rng.sample(list(block), len(block))
    for one in order[:TRIES]:
        value = claim.left(one)
        other = next((s for s in order if claim.left(s) != value), None)
        if other is None:
            continue
        scenes: list[SceneFacts] = []
        for left in (one, other):
            taken = [one, other, *scenes]
            wanted = claim.partner(claim.left(left))
            right = next((s for s in reversed(order) if s not in taken and claim.right(s) == wanted), None)
            if right is None:
                break
            scenes.append(right)
        if len(scenes) == 2:
            return one, other, scenes[0], scenes[1]
    return None


def _pair_rows(
    claim: PairClaim, four: tuple[SceneFacts, SceneFacts, SceneFacts, SceneFacts], name: str
) -> Iterator[Row]:
    one, other, right_one, right_other = four
    fits = ((one, right_one, True), (one, right_other, False), (other, right_one, False), (other, right_other, True))
    for k, (left, right, partners) in enumerate(fits):
        true = partners is not (claim.kind == "different")
        yield {
            "example_id": f"{name}/{k}",
            "kind": "pair",
            "image_ids": [left.image_id, right.image_id],
            "split": left.split,
            "text": claim.text,
            "label": "true" if true else "false",
            "question_type": claim.kind,
        }


SENTIMENTS = (
    "i love {} and hate {}",
    "{} make me happy, {} make me sad",
    "more {} please, fewer {}",
    "nothing is better than {} and nothing worse than {}",
)


def sentiments(settings: ShapesSettings, scenes: Sequence[SceneFacts]) -> Iterator[Row]:
    """Three rows a scene: a liking for one kind and a dislike of another; positive where the image holds more of the
    liked, negative where more of the disliked, neutral where as many. Every image has each label once, and liked and
    disliked are drawn without a preference: neither image nor text tells the label alone. Scenes that can't have all
    three get none."""
    for scene in scenes:
        rng = stream(settings, "sentiment", scene.number)
        for nouns in rng.sample(kinds(settings), 2):
            tallies = [(noun, noun.tally(scene)[0]) for noun in nouns]
            unequal = [(a, b) for a, n in tallies for b, m in tallies if n > m]
            equal = [(a, b) for a, n in tallies for b, m in tallies if n == m and a != b]
            if unequal and equal:
                liked, disliked = rng.choice(unequal)
                shown = {"positive": (liked, disliked), "neutral": rng.choice(equal), "negative": (disliked, liked)}
                for k, (label, (good, bad)) in enumerate(shown.items()):
                    yield {
                        "example_id": f"{scene.image_id}/sentiment/{k}",
                        "kind": "sentiment",
                        "image_ids": [scene.image_id],
                        "split": scene.split,
                        "text": rng.choice(SENTIMENTS).format(plural(good), plural(bad)),
                        "label": label,
                    }
                break


def phrases(settings: ShapesSettings, scenes: Sequence[SceneFacts]) -> Iterator[Row]:
    """Two rows a scene: the list of all things, and a relation of two things each of which is alone of its kind."""
    for scene in scenes:
        rng = stream(settings, "phrases", scene.number)
        whole = next(levels(scene))
        before, after = rng.choice(ONLY).split("{}")
        text, spans = listed(whole)
        moved = [s._replace(start=s.start + len(before), end=s.end + len(before)) for s in spans]
        yield _phrase_row(scene, 0, f"{before}{text}{after}", moved)
        alone = [r for r in relations(scene) if r.first.tally(scene) == r.second.tally(scene) == (1, 1)]
        if (relation := pick(alone, rng)) is not None:
            one, other = (f"the {noun_phrase(noun)}" for noun in (relation.first, relation.second))
            text = f"{one} is {relation.how} {other}"
            first = TextSpan(0, len(one), relation.first, 1)
            yield _phrase_row(scene, 1, text, [first, TextSpan(len(text) - len(other), len(text), relation.second, 1)])


def choices(settings: ShapesSettings, captioned: Iterable[Row]) -> Iterator[Row]:
    """Choice rows, up to `choices` a scene: a caption among its negatives, two or more, in an order drawn for each row;
    `label` is the caption's place, from 0. `captioned`: caption rows, those of a scene together.

    The caption differs from each of the others in one thing, they from one another in two: who compares the texts can
    find it without the image, who reads each alone can't.
    """
    for image_id, captions in groupby(captioned, key=lambda row: row["image_ids"][0]):
        rng = stream(settings, "choice", image_id)
        chosen = [row for row in captions if len(row["negatives"]) > 1]
        for row in rng.sample(chosen, min(settings.choices, len(chosen))):
            texts = rng.sample([row["text"], *row["negatives"]], 1 + len(row["negatives"]))
            yield {
                "example_id": row["example_id"].replace("/caption/", "/choice/"),
                "kind": "choice",
                "image_ids": row["image_ids"],
                "split": row["split"],
                "text": "",
                "choices": [{"text": text} for text in texts],
                "label": str(texts.index(row["text"])),
                "question_type": row["question_type"],
            }


def _phrase_row(scene: SceneFacts, k: int, text: str, spans: Sequence[TextSpan]) -> Row:
    boxes = [[list(t.box) for t in scene.things if span.noun.fits(t)] for span in spans]
    return {
        "example_id": f"{scene.image_id}/phrases/{k}",
        "kind": "phrases",
        "image_ids": [scene.image_id],
        "split": scene.split,
        "text": text,
        "phrases": [{"start": s.start, "end": s.end, "boxes": b} for s, b in zip(spans, boxes, strict=True)],
    }
