"""Selected predictions: confident mistakes, right ones that were least certain, and some of the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vbert.errors import BuildError
from vbert.report.results import DownstreamRun, example_scores
from vbert.report.thumbnails import Thumbnail, ThumbnailAlbum

SAMPLED = 50_000  # predictions considered, at most
UNSURE = 0.8  # below this probability a right answer counts as uncertain
RIGHT = 0.5  # from this score on an answer counts as right
LONGEST = 400  # characters of a text that are shown


@dataclass(frozen=True)
class ShownPrediction:
    """A prediction with its example. `score` is its soft score, None without labels."""

    example_id: str
    text: str
    kind: str
    predicted: str
    wanted: list[str]
    confidence: float | None
    score: float | None
    image_ids: list[str]
    input: int = 0  # the one of the example's inputs whose attention is shown
    pictures: list[Thumbnail] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return self.score is not None and self.score >= RIGHT


@dataclass(frozen=True)
class PredictionShelf:
    title: str
    note: str
    tone: str  # bad, unsure or good
    shown: list[ShownPrediction]


@dataclass(frozen=True)
class Gallery:
    """A run's shelves of predictions; `wrong` of `looked_at` predictions are wrong (None without labels)."""

    run: DownstreamRun
    shelves: list[PredictionShelf]
    looked_at: int
    wrong: int | None
    reason: str = ""  # why there are no shelves


def gallery(run: DownstreamRun, album: ThumbnailAlbum, count: int) -> Gallery:
    """Shelves of `count` predictions each. Deterministic: ties are broken by the example's digest."""
    try:
        every = _every(run)
    except BuildError as error:
        return Gallery(run, [], 0, None, str(error))
    if not every:
        return Gallery(run, [], 0, None, "The evaluation made no predictions.")
    labelled = [one for one in every if one.score is not None]
    if not labelled:
        chosen = _varied(sorted(every, key=lambda one: (-(one.confidence or 0.0), _tie(one))), count)
        return Gallery(
            run, [PredictionShelf("Most certain", "", "unsure", _pictured(run, album, chosen))], len(every), None
        )
    wrong = sorted((o for o in labelled if not o.right), key=lambda o: (-(o.confidence or 0.0), _tie(o)))
    right = sorted((o for o in labelled if o.right), key=lambda o: (o.confidence or 0.0, _tie(o)))
    doubtful = [one for one in right if (one.confidence or 0.0) < UNSURE]
    unsure = _varied(doubtful, count)
    sure = _varied(right[len(doubtful) :][::-1], count)
    shelves = [
        PredictionShelf(
            "Wrong", "the most certain mistakes of each kind", "bad", _pictured(run, album, _varied(wrong, count))
        ),
        PredictionShelf(
            "Least certain",
            f"right, at less than {100 * UNSURE:.0f}\u00a0% probability",
            "unsure",
            _pictured(run, album, unsure),
        ),
        PredictionShelf("Right", "the most certain of each kind and answer", "good", _pictured(run, album, sure)),
    ]
    return Gallery(run, [shelf for shelf in shelves if shelf.shown], len(labelled), len(wrong))


def _every(run: DownstreamRun) -> list[ShownPrediction]:
    """The run's predictions joined with their examples and scored; a fixed sample of very many."""
    import pyarrow as pa
    import pyarrow.compute as pc

    answered = (p for p in run.evaluated.evaluation.predictions() if "quarantined" not in p)
    by_id = {str(p["example_id"]): p for p in answered}
    if len(by_id) > SAMPLED:
        by_id = {key: by_id[key] for key in sorted(sorted(by_id, key=_digest)[:SAMPLED])}
    table = run.evaluated.examples.table()
    rows: list[dict[str, Any]] = table.filter(pc.is_in(table["example_id"], pa.array(list(by_id)))).to_pylist()
    predictions = [by_id[row["example_id"]] for row in rows]
    scores = example_scores(run, rows, predictions)
    return [_shown(row, p, score) for row, p, score in zip(rows, predictions, scores, strict=True)]


def _shown(row: dict[str, Any], prediction: dict[str, Any], score: float | None) -> ShownPrediction:
    answers = sorted(row["answers"] or (), key=lambda a: (-a["score"], a["answer"]))
    wanted = [str(a["answer"]) for a in answers if a["score"] > 0] or ([row["label"]] if row["label"] else [])
    text = " / ".join(part for part in (row["text"], row["text_b"]) if part)
    confidence = prediction.get("score")
    return ShownPrediction(
        example_id=row["example_id"],
        text=text if len(text) <= LONGEST else text[:LONGEST] + "…",
        kind=row["question_type"] or "",
        predicted=str(prediction.get("answer", ""))[:LONGEST],
        wanted=[answer[:LONGEST] for answer in wanted[:3]],
        confidence=float(confidence) if isinstance(confidence, int | float) else None,
        score=score,
        image_ids=list(row["image_ids"]),
    )


def _varied(ordered: Iterable[ShownPrediction], count: int) -> list[ShownPrediction]:
    """`count` of them in the order they come, as many different (kind, answer) as there are."""
    turns: Counter[tuple[str, str]] = Counter()
    ranked = []
    for place, one in enumerate(ordered):
        ranked.append((turns[one.kind, one.predicted], place, one))
        turns[one.kind, one.predicted] += 1
    chosen = sorted(ranked, key=lambda entry: entry[:2])[:count]
    return [one for _, _, one in sorted(chosen, key=lambda entry: entry[1])]


def _pictured(run: DownstreamRun, album: ThumbnailAlbum, chosen: Sequence[ShownPrediction]) -> list[ShownPrediction]:
    images = run.evaluated.images
    return [replace(one, pictures=[album.picture(images, i) for i in one.image_ids]) for one in chosen]


def _tie(one: ShownPrediction) -> str:
    return _digest(one.example_id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
