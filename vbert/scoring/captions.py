"""Scores of captions, in COCO's formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.data.names import count_of
from vbert.metrics import captions
from vbert.scoring import formats
from vbert.scoring.files import check_ids, document
from vbert.scoring.score import Figures, IdsDiffer, Missing, Score, match

FIGURES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
STRICT = ConfigDict(strict=True)


@with_config(STRICT)
class Photo(TypedDict):
    id: int | str


@with_config(STRICT)
class Caption(TypedDict):
    id: int | str
    image_id: int | str
    caption: str


@with_config(STRICT)
class Captions(TypedDict):
    images: list[Photo]
    annotations: list[Caption]


@with_config(STRICT)
class Result(TypedDict):
    image_id: int | str
    caption: str


class Annotated(NamedTuple):
    """A file of COCO captions: `images` in its order, those without a caption too; image → ids of its `texts`, in the
    file's order; text → its `words`."""

    images: list[str]
    texts: Mapping[str, list[str]]
    words: Mapping[str, str]


def annotated(path: Path) -> Annotated:
    """Raises UserError for another file, IdsDiffer for doubled ids and captions of an image that it doesn't list."""
    content = document(path, Captions, formats.COCO_CAPTIONS).content
    images = [str(row["id"]) for row in content["images"]]
    ids = [str(row["id"]) for row in content["annotations"]]
    for names in (images, ids):
        match(names, names, "error", path, path, forgivable=False)
    texts: dict[str, list[str]] = {image: [] for image in images}
    for name, row in zip(ids, content["annotations"], strict=True):
        if (image := str(row["image_id"])) not in texts:
            raise IdsDiffer(f"{path}: annotation {name:.80} is of the image {image:.80}, which `images` doesn't list")
        texts[image].append(name)
    return Annotated(
        images, texts, {name: row["caption"] for name, row in zip(ids, content["annotations"], strict=True)}
    )


def score_captioning(annotations: Path, predictions: Path, missing: Missing = "error") -> Score:
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE over all images of the annotations that have a caption, as
    coco-caption; an image without a prediction is an error, an empty caption, or left out.

    Raises UserError for a file that isn't of the format, IdsDiffer for ids that don't agree.
    """
    truth = annotated(annotations)
    given = [
        (str(row["image_id"]), row["caption"])
        for row in document(predictions, list[Result], formats.COCO_RESULTS).content
    ]
    known = [image for image in truth.images if truth.texts[image]]
    names = [name for name, _ in given]
    check_ids(predictions, formats.COCO_RESULTS, truth.images, names)
    matched = match(known, names, missing, annotations, predictions, allowed=truth.images)
    answers = dict(given)
    found = captions.figures(
        [answers.get(image, "") for image in matched.scored],
        [[truth.words[text] for text in truth.texts[image]] for image in matched.scored],
        captions.java(),
    )
    figures: Figures = {name: found.values[name] for name in FIGURES if name in found.values}
    figures["tokenizer"] = found.tokenizer
    if found.absent:
        figures["absent"] = dict(found.absent)
    notes = [f"{name} is absent: {reason}" for name, reason in found.absent.items()]
    if len(known) < len(truth.images):
        without = [image for image in truth.images if not truth.texts[image]]
        notes.append(f"{annotations}: {count_of(without, 'image')} without a caption, which don't count")
    return matched.score(figures, *notes)
