"""Images that a caption is known to be false of, for pairs that don't match; neither text nor image alone reveals
them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from vbert.data.shapes.language import Meaning, SplitScenes
from vbert.data.shapes.scenes import ShapesSettings, stream

TRIES = 100  # partners that a caption without a false image may swap with


def add_false_of(
    settings: ShapesSettings, split: SplitScenes, texts: Sequence[tuple[int, Meaning, dict[str, Any]]]
) -> None:
    """Gives each caption of a split (place of its scene, meaning, row) `false_of`: up to `settings.false_of` images of
    the split that it is false of.

    A round shuffles the images of all captions of one kind among them, so that each image stands beside as many texts
    that are false of it as beside true ones: neither a text nor an image alone tells whether they match. A caption
    shuffled to an image that it is or may be true of swaps with another one; where none is found it goes without.
    """
    kinds: dict[str, list[int]] = {}
    for k, (_, _, row) in enumerate(texts):
        row["false_of"] = []
        kinds.setdefault(row["question_type"], []).append(k)
    for kind, members in kinds.items():
        places = [texts[k][0] for k in members]
        may_fit = [split.candidates(texts[k][1]) for k in members]
        for turn in range(settings.false_of):
            rng = stream(settings, "false of", split.scenes[0].split, kind, turn)
            image = rng.sample(places, len(places))
            for k in rng.sample(range(len(members)), len(members)):
                for _ in range(TRIES):
                    if not _among(image[k], may_fit[k]):
                        break
                    other = rng.randrange(len(members))
                    if not _among(image[other], may_fit[k]) and not _among(image[k], may_fit[other]):
                        image[k], image[other] = image[other], image[k]
            for k, member in enumerate(members):
                name = split.scenes[image[k]].image_id
                row = texts[member][2]
                if not _among(image[k], may_fit[k]) and name not in row["false_of"]:
                    row["false_of"].append(name)


def _among(place: int, places: Sequence[int]) -> bool:
    """Whether the sorted `places` hold `place`."""
    k = bisect_left(places, place)
    return k < len(places) and places[k] == place
