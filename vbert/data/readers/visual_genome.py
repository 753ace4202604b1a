"""Visual Genome's JSON (Krishna et al. 2017): descriptions of regions and questions about photos.

`image_data.json` (image_id, coco_id), `region_descriptions.json` (of each photo `regions` of region_id and phrase) and
`question_answers.json` (of each photo `qas` of qa_id, question and answer), the latter two where they are given. They
have hundreds of MB and are read a photo at a time. Photos `IMAGE_ID.jpg` in any folders.

- A description is a caption `IMAGE/region/REGION_ID`, a question `IMAGE/question/QA_ID`.
- There are no official splits: all are train, of which the spec's `validation` takes a share.
- Half of the photos are COCO's, from other files and so with other bits: models trained on them have seen photos that
  COCO's data sets evaluate on. Those with a coco_id are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._answers import right_answer
from vbert.data.readers._files import PhotoStems
from vbert.data.readers._odd import Odd
from vbert.data.readers._stream import items
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json",)

PHOTOS, REGIONS, QUESTIONS = "image_data.json", "region_descriptions.json", "question_answers.json"


class PhotoRow(TypedDict):
    image_id: int
    coco_id: NotRequired[int | None]


class Region(TypedDict):
    region_id: int
    phrase: str


class RegionsRow(TypedDict):
    id: int
    regions: list[Region]


class Question(TypedDict):
    qa_id: int
    question: str
    answer: str


class QuestionsRow(TypedDict):
    id: int
    qas: list[Question]


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow | ReaderNote]:
    """Every photo of image_data.json."""
    photos, of_coco, seen = PhotoStems(raws), 0, set[int]()
    for raw, name in _files(raws, PHOTOS) or _missing(raws):
        for where, row in items(raw, name, PhotoRow):
            if row["image_id"] in seen:
                raise UserError(f"{where}: image_id: {row['image_id']} is listed before")
            seen.add(row["image_id"])
            of_coco += row.get("coco_id") is not None
            source, member = photos.find(str(row["image_id"]), where)
            yield {"image_id": str(row["image_id"]), "path": member, "source": source, "split": "train"}
    if of_coco:
        said = f"{of_coco:,} of the {len(seen):,} photos are COCO's too, with other bits, so that overlaps aren't seen"
        yield ReaderNote("photos_of_coco", of_coco, said)


def examples(raws: Mapping[str, RawFiles], image_ids: Collection[str]) -> Iterator[dict[str, Any] | ReaderNote]:
    """One description, and one question, an example."""
    odd = Odd()
    regions, questions = _files(raws, REGIONS), _files(raws, QUESTIONS)
    if not regions and not questions:
        raise UserError(f"{', '.join(raws)} hold neither {REGIONS} nor {QUESTIONS}")
    for raw, name in regions:
        for where, photo in items(raw, name, RegionsRow):
            known = set[int]()
            for at, row in enumerate(photo["regions"]):
                text, place = row["phrase"].strip(), f"{where}.regions[{at}]"
                if not text:
                    odd.add("empty_captions", place)
                elif row["region_id"] in known:
                    odd.add("repeated_regions", place)
                else:
                    known.add(row["region_id"])
                    yield _row(photo["id"], f"region/{row['region_id']}", "caption", text)
    for raw, name in questions:
        for where, asked in items(raw, name, QuestionsRow):
            known = set()
            for at, question in enumerate(asked["qas"]):
                text, place = question["question"].strip(), f"{where}.qas[{at}]"
                if not text:
                    odd.add("empty_questions", place)
                elif question["qa_id"] in known:
                    odd.add("repeated_questions", place)
                else:
                    known.add(question["qa_id"])
                    answers = right_answer(question["answer"], odd, place)
                    yield _row(asked["id"], f"question/{question['qa_id']}", "question", text) | {"answers": answers}
    yield from odd.notes()


def _row(image_id: int, name: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "example_id": f"{image_id}/{name}",
        "kind": kind,
        "image_ids": [str(image_id)],
        "split": None,
        "text": text,
    }


def _files(raws: Mapping[str, RawFiles], wanted: str) -> list[tuple[RawFiles, str]]:
    """The files of that name."""
    return [(raw, name) for raw in raws.values() for name in raw.members() if f"/{name}".endswith(f"/{wanted}")]


def _missing(raws: Mapping[str, RawFiles]) -> list[tuple[RawFiles, str]]:
    raise UserError(f"{', '.join(raws)} hold no {PHOTOS}; are they the right files?")
