"""The relevances of a prediction's parts as one explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vbert.explain.explanation import Explanation
from vbert.explain.relevant import RelevantRegion, RelevantWord

if TYPE_CHECKING:
    from PIL import Image

    from vbert.explain.relevance import ExaminedPart
    from vbert.regions.shards import Regions


def explanation(
    row: Mapping[str, Any],
    prediction: Mapping[str, Any],
    parts: Sequence[ExaminedPart],
    images: Sequence[Regions],
    method: str,
    pictures: Sequence[Image.Image | None],
) -> Explanation:
    """images: the regions of the example's images; parts: of its prediction, one at least. Of several parts that are
    word pieces of one caption, all are told; else the first."""
    first = parts[0]
    caption = first.examined.input.causal
    told = list(parts) if caption else [first]
    words = _written(told) if caption else _read(first)
    relevance = [sum(part.regions[n] for part in told) for n in range(len(first.regions))]
    answer, score = _answer(row, prediction, images)
    return Explanation(
        text="" if caption else " / ".join(filter(None, (row["text"], row["text_b"]))),
        answer=answer,
        score=score,
        explained=sum(part.score for part in told),
        method=method,
        words=tuple(words),
        regions=tuple(_regions(first, relevance, images)),
        pictures=tuple(pictures),
    )


def _read(part: ExaminedPart) -> list[RelevantWord]:
    each = zip(part.words, part.relevant, part.looks, strict=True)
    return [RelevantWord(word, relevance, tuple(looks)) for word, relevance, looks in each]


def _written(parts: Sequence[ExaminedPart]) -> list[RelevantWord]:
    """A caption's pieces: what the regions give to each."""
    return [RelevantWord(part.examined.part, sum(part.regions), tuple(part.regions)) for part in parts]


def _regions(part: ExaminedPart, relevance: Sequence[float], images: Sequence[Regions]) -> list[RelevantRegion]:
    every = [(image, n) for image, its in enumerate(images) for n in range(len(its.features))]
    shown = part.examined.input.regions
    found = []
    for (image, n), value in zip(every if shown is None else [every[i] for i in shown], relevance, strict=True):
        its = images[image]
        box = None if its.boxes is None else tuple(its.boxes[n].astype(float).tolist())
        found.append(RelevantRegion(n, cast(Any, box), its.classes[n] if its.classes else "", value, image))
    return found


def _answer(row: Mapping[str, Any], prediction: Mapping[str, Any], images: Sequence[Regions]) -> tuple[str, float]:
    """(the answer in words, its score); of a phrase the region that was chosen."""
    if ranked := next(filter(None, prediction.get("ranked", ())), None):
        sure = next((one for its, one in zip(prediction["ranked"], prediction["sure"], strict=True) if its), 0.0)
        names = images[0].classes
        return f"region {ranked[0] + 1}" + (f", {names[ranked[0]]}" if names else ""), float(sure)
    if "answer" not in prediction:  # retrieval: the text and its own image
        return "match", float(prediction.get("score", 0.0))
    answer = str(prediction["answer"])
    return (row["choices"][int(answer)]["text"] if row["choices"] else answer), float(prediction["score"])
