"""Selected predictions: confident mistakes, right ones that were least certain, and some of the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vbert.errors import BuildError
from vbert.objectives.sections import Section
from vbert.report.phrases import ShownPhrase, shown_phrases
from vbert.report.results import DownstreamRun, example_scores, predicted_rows, unitless
from vbert.report.thumbnails import DrawnBox, Thumbnail, ThumbnailAlbum, boxed

SAMPLED = 50_000  # predictions considered, at most
UNSURE = 0.8  # below this probability a right answer counts as uncertain
RIGHT = 0.5  # from this score on an answer counts as right
LONGEST = 400  # characters of a text that are shown
OPTIONS = 6  # of what was chosen among, the most probable ones


@dataclass(frozen=True)
class Option:
    """One of what the model chose among, with its probability."""

    text: str
    probability: float
    right: bool
    chosen: bool


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
    options: list[Option] = field(default_factory=list)
    named: list[DrawnBox] = field(default_factory=list)  # boxes in the first image that words of the text name
    pictures: list[Thumbnail] = field(default_factory=list)
    phrases: list[ShownPhrase] = field(default_factory=list)
    truth: list[DrawnBox] = field(default_factory=list)  # true boxes of phrases, in the first image

    @property
    def right(self) -> bool:
        """With phrases: all of them."""
        return self.score is not None and self.score >= (1.0 if self.phrases else RIGHT)


@dataclass(frozen=True)
class PredictionShelf:
    title: str
    note: str
    tone: str  # bad, unsure or good
    shown: list[ShownPrediction]


@dataclass(frozen=True)
class Gallery:
    """A run's shelves of predictions; `wrong` of `looked_at` predictions are wrong (None without labels). sections:
    what its objective shows of all of them."""

    run: DownstreamRun
    shelves: list[PredictionShelf]
    looked_at: int
    wrong: int | None
    reason: str = ""  # why there are no shelves
    unlabelled: bool = False
    sections: list[Section] = field(default_factory=list)


def gallery(run: DownstreamRun, album: ThumbnailAlbum, count: int) -> Gallery:
    """Shelves of `count` predictions each. Deterministic: ties are broken by the example's digest."""
    try:
        every, sections = _every(run)
    except BuildError as error:
        return Gallery(run, [], 0, None, str(error))
    if not every:
        return Gallery(run, [], 0, None, "The evaluation made no predictions.")
    labelled = [one for one in every if one.score is not None]
    if not labelled:
        chosen = _varied(sorted(every, key=lambda one: (-(one.confidence or 0.0), _tie(one))), count)
        shelf = PredictionShelf("Most certain", "", "unsure", _pictured(run, album, chosen))
        return Gallery(run, [shelf], len(every), None, sections=sections, unlabelled=True)
    if unitless(run.metric or ""):
        ordered = sorted(labelled, key=lambda o: (o.score or 0.0, _tie(o)))
        shelves = [
            PredictionShelf(title, f"by {run.metric}", tone, _pictured(run, album, _varied(part, count)))
            for title, tone, part in (("Lowest", "bad", ordered), ("Highest", "good", ordered[: -count - 1 : -1]))
        ]
        return Gallery(run, shelves, len(labelled), None, sections=sections)
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
    shelves = [shelf for shelf in shelves if shelf.shown]
    return Gallery(run, shelves, len(labelled), len(wrong), sections=sections)


def _every(run: DownstreamRun) -> tuple[list[ShownPrediction], list[Section]]:
    """The run's predictions joined with their examples and scored, a fixed sample of very many; what the objective
    shows of them."""
    from vbert.objectives import OBJECTIVES, load

    answered = (p for p in run.evaluated.evaluation.predictions() if "quarantined" not in p)
    by_id = {str(p["example_id"]): p for p in answered}
    if len(by_id) > SAMPLED:
        by_id = {key: by_id[key] for key in sorted(sorted(by_id, key=_digest)[:SAMPLED])}
    rows = predicted_rows(run, by_id)
    predictions = [by_id[row["example_id"]] for row in rows]
    scores = example_scores(run, rows, predictions)
    head = run.evaluated.model.head()
    sections = load(run.objective).sections(rows, predictions, head) if run.objective in OBJECTIVES else []
    shown = [_shown(row, p, score, head) for row, p, score in zip(rows, predictions, scores, strict=True)]
    return shown, sections


def _shown(
    row: dict[str, Any], prediction: dict[str, Any], score: float | None, head: Mapping[str, Any]
) -> ShownPrediction:
    answers = sorted(row["answers"] or (), key=lambda a: (-a["score"], a["answer"]))
    choices = [choice["text"] for choice in row["choices"] or ()]
    called = {str(k): text for k, text in enumerate(choices)}  # labels of a choice are numbers
    label = called.get(row["label"] or "", row["label"])
    wanted = [str(a["answer"]) for a in answers if a["score"] > 0] or ([label] if label else [])
    references = list(row["given"] or ()) if head.get("kind") == "captions" else []
    answer = str(prediction.get("answer", ""))
    names, probabilities = choices or head.get("labels", ()), prediction.get("probabilities", ())
    options = [
        Option(name[:LONGEST], float(share), name in wanted, name == called.get(answer, answer))
        for name, share in zip(names, probabilities, strict=len(names) == len(probabilities))
    ]
    options = sorted(options, key=lambda option: -option.probability)[:OPTIONS]
    text = "" if references else " / ".join(part for part in (row["text"], row["text_b"]) if part)
    confidence = prediction.get("score")
    found = shown_phrases(row, prediction, head) if "ranked" in prediction else None
    phrases, named, truth = found or ([], _named_boxes(row), [])
    predicted, image_ids = called.get(answer, answer), list(row["image_ids"])
    if ranking := prediction.get("text_to_image"):
        predicted = "its own image"
        if ranking["rank"] > 1:
            predicted = f"the second image; its own, the first, is at rank {ranking['rank']:,}"
            image_ids += [found for found in ranking["top"] if found not in image_ids][:1]
    return ShownPrediction(
        example_id=row["example_id"],
        text=text if len(text) <= LONGEST else text[:LONGEST] + "…",
        kind=row["question_type"] or "",
        predicted=predicted[:LONGEST],
        wanted=[answer[:LONGEST] for answer in (references or wanted)[:3]],
        confidence=float(confidence) if isinstance(confidence, int | float) else None,
        score=score,
        image_ids=image_ids,
        options=options,
        named=named,
        phrases=phrases,
        truth=truth,
    )


def _named_boxes(row: Mapping[str, Any]) -> list[DrawnBox]:
    """The boxes that words of the text and of the choices name, each once, with the words."""
    words: dict[tuple[float, ...], str] = {}
    for part in (row, *(row["choices"] or ())):
        for phrase in part["phrases"] or ():
            for box in phrase["boxes"]:
                words.setdefault(tuple(box), part["text"][phrase["start"] : phrase["end"]])
    return boxed(list(words), list(words.values()), range(len(words)))


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

    def pictures(one: ShownPrediction) -> list[Thumbnail]:
        return [
            album.picture(images, i).over([] if k else [*one.truth, *one.named]) for k, i in enumerate(one.image_ids)
        ]

    return [replace(one, pictures=pictures(one)) for one in chosen]


def _tie(one: ShownPrediction) -> str:
    return _digest(one.example_id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
