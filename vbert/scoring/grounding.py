"""Scores of phrase grounding (Flickr30k Entities) and of referring expressions (RefCOCO)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.data.boxes import ROUNDING
from vbert.data.entities import Corners, annotation, sentences
from vbert.data.names import count_of
from vbert.data.refs import read_refs
from vbert.errors import UserError, nearest
from vbert.metrics import grounding
from vbert.metrics.means import mean
from vbert.scoring import formats
from vbert.scoring.files import check_ids, document, read, text_of
from vbert.scoring.score import Figures, IdsDiffer, Missing, Score, match

STRICT = ConfigDict(strict=True)
IMAGE_ID = re.compile("[A-Za-z0-9_-]+")

Number = Annotated[float, Field(allow_inf_nan=False)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]


@with_config(STRICT)
class Grounded(TypedDict):
    """boxes: x1 y1 x2 y2, best first, a list for each phrase with a box, in the sentence's order."""

    image_id: int | str
    sentence_id: int | str
    boxes: list[list[Box]]


@with_config(STRICT)
class Located(TypedDict):
    sent_id: int | str
    pred_box: Box


@with_config(STRICT)
class Thing(TypedDict):
    id: int | str
    bbox: Box


@with_config(STRICT)
class Instances(TypedDict):
    annotations: list[Thing]


Phrase = tuple[tuple[Corners, ...], tuple[str, ...]]  # its true boxes, its types


def score_grounding(
    annotations: Path, split: Path, predictions: Path, protocol: grounding.Protocol = "any", missing: Missing = "error"
) -> Score:
    """Recall at 1, 5 and 10 and its bound, over the phrases with a box and by type, as ashkamath/mdetr
    `datasets/flickr_eval.py`. `scored` and `of` count sentences with such a phrase.

    annotations: a folder of `Annotations` and `Sentences`; boxes are taken as the files have them, counted from 1, and
    those that readers of examples leave out or cut (without area, beyond the stated size) are counted in a note.
    split: the list of photos, also as a name in the folder. A phrase without a predicted box, and those of a missing
    sentence that counts as wrong, are wrong at any place.

    Raises UserError for a file that isn't of the format, IdsDiffer for ids that don't agree.
    """
    known, others, notes = _phrases(annotations, split)
    given = document(predictions, list[Grounded], formats.GROUNDING_PREDICTIONS)
    names = [f"{row['image_id']}/{row['sentence_id']}" for row in given.content]
    check_ids(predictions, formats.GROUNDING_PREDICTIONS, [*known, *others], names)
    matched = match(known, names, missing, annotations / "Sentences", predictions, allowed=others)
    places = {name: at for at, name in enumerate(names)}
    ranks: list[list[int | None]] = []
    for name in matched.scored:
        if name not in places:
            ranks.append([None] * len(known[name]))
            continue
        boxes = given.content[places[name]]["boxes"]
        if len(boxes) != len(known[name]):
            given.refuse(
                [places[name], "boxes"],
                f"{count_of(boxes, 'list')} of boxes for the {count_of(known[name], 'phrase')} of sentence {name:.80}; "
                "give one for each phrase that has a box, in the order of the sentence",
            )
        pairs = zip(boxes, known[name], strict=True)
        ranks.append([grounding.rank(own, true, protocol) if own else None for own, (true, _) in pairs])
    types = [[its for _, its in known[name]] for name in matched.scored]
    figures: Figures = {}
    per_type: dict[str, dict[str, float]] = {}
    for name, metric in grounding.recalls(ranks, types).items():
        figure, _, kind = name.partition("/")
        value = metric.value()
        assert value is not None
        if kind:
            per_type.setdefault(kind, {})[figure] = value
        else:
            figures[figure] = value
    figures["per_type"] = per_type
    figures["phrases"] = sum(map(len, ranks))
    ignored = [name for name, row in zip(names, given.content, strict=True) if name in others and row["boxes"]]
    if ignored:
        said = count_of(ignored, "sentence")
        notes.append(f"{predictions}: {said} without a phrase that has a box, whose boxes don't count")
    return matched.score(figures, *notes)


def _phrases(folder: Path, split: Path) -> tuple[dict[str, list[Phrase]], set[str], list[str]]:
    """(`photo/sentence` → its phrases that have a box, the sentences that have none, notes) of a list of photos."""
    listed = split if split.exists() else folder / split
    known: dict[str, list[Phrase]] = {}
    others = set[str]()
    flat: list[str] = []  # the photo of each odd box
    beyond: list[str] = []
    photos = [line.strip() for line in text_of(listed, formats.GROUNDING_SPLIT).split("\n")]
    match(filter(None, photos), filter(None, photos), "error", listed, listed, forgivable=False)
    for number, photo in enumerate(photos, 1):
        if not photo:
            continue
        if not IMAGE_ID.fullmatch(photo):
            raise UserError(f"{listed}:{number}: must be the number of a photo, not {photo!r:.80}")
        objects, texts = folder / "Annotations" / f"{photo}.xml", folder / "Sentences" / f"{photo}.txt"
        found = annotation(read(objects), str(objects))
        boxes = found.boxes
        for x1, y1, x2, y2 in {box for its in boxes.values() for box in its}:
            if x2 <= x1 or y2 <= y1:
                flat.append(photo)
            elif min(x1, y1) < -ROUNDING or x2 > found.width + ROUNDING or y2 > found.height + ROUNDING:
                beyond.append(photo)
        for k, sentence in enumerate(sentences(text_of(texts, formats.GROUNDING_SENTENCES), str(texts))):
            phrases = [(boxes[p.chain], p.types) for p in sentence.phrases if p.chain in boxes]
            if phrases:
                known[f"{photo}/{k}"] = phrases
            else:
                others.add(f"{photo}/{k}")
    root, notes = folder / "Annotations", []
    if flat:
        notes.append(f"{root}: {_boxes(flat)} without area, which none is right of, as in {flat[0]}.xml")
    if beyond:
        what = _boxes(beyond)
        notes.append(f"{root}: {what} beyond the stated size, taken as the file has it, as in {beyond[0]}.xml")
    return known, others, notes


def _boxes(odd: list[str]) -> str:
    return f"{len(odd):,} box{'' if len(odd) == 1 else 'es'}"


def score_refcoco(
    annotations: Path,
    refs: Path,
    split: str,
    predictions: Path,
    iou: grounding.Overlap = "inclusive",
    missing: Missing = "error",
) -> Score:
    """The share of a split's expressions whose box overlaps the true one by more than half, counted in inclusive pixels
    as lichengunc/MAttNet and UNITER do, or exactly. Boxes are x y width height.

    Raises UserError for a file that isn't of the format, IdsDiffer for ids that don't agree.
    """
    every = read_refs(refs)
    chosen = [ref for ref in every if ref["split"] == split]
    if not chosen:
        splits = sorted({ref["split"] for ref in every})
        raise UserError(f"--split: {refs} has no split {split!r:.80}; {nearest(split, splits):.300}")
    things = document(annotations, Instances, formats.COCO_INSTANCES).content["annotations"]
    ids = [str(row["id"]) for row in things]
    match(ids, ids, "error", annotations, annotations, forgivable=False)
    boxes = {name: row["bbox"] for name, row in zip(ids, things, strict=True)}
    if absent := [ref for ref in chosen if str(ref["ann_id"]) not in boxes]:
        raise IdsDiffer(
            f"{annotations}: lacks {count_of(absent, 'annotation')} of {refs}, the first {absent[0]['ann_id']}"
        )
    true = [(str(one["sent_id"]), boxes[str(ref["ann_id"])]) for ref in chosen for one in ref["sentences"]]
    given = document(predictions, list[Located], formats.REFCOCO_PREDICTIONS).content
    names = [str(row["sent_id"]) for row in given]
    check_ids(predictions, formats.REFCOCO_PREDICTIONS, [name for name, _ in true], names)
    matched = match([name for name, _ in true], names, missing, f"{refs} ({split})", predictions)
    found, wanted = {name: row["pred_box"] for name, row in zip(names, given, strict=True)}, dict(true)
    each = [
        grounding.expression(_corners(found[name]), _corners(wanted[name]), iou) if name in found else 0.0
        for name in matched.scored
    ]
    return matched.score({"accuracy": mean(each)})


def _corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]
