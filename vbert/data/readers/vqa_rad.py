"""VQA-RAD's JSON (Lau et al. 2018): questions about radiological photos, with one answer each.

Either `trainset.json` and `testset.json` (qid, image_name, question, answer, answer_type, question_type, phrase_type),
or the original spreadsheet's JSON, whose rows have those and `question_frame`: rows whose phrase_type begins with
`test_` are test, the others train; there a frame that isn't `NULL` is one more question, as `trainset.json` has it.

- Rows with the same photo are in both official splits: a spec of it says `known_overlap`. `options: {split: image}`
  takes the photos whose id hashes into the last `test` (0.15) as test, and all others as train; with `validation` of
  the spec all three splits then have photos of their own.
- Answers are normalised (see `metrics.vqa.normalise`); whole numbers stand for their digits.
- `answer_type` is CLOSED or OPEN; of several question types, divided by commas, all are kept, in their order.
- A photo's id is its file's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._answers import right_answer
from vbert.data.readers._files import split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._photos import PhotoFiles
from vbert.data.readers._rows import check_choice, checked
from vbert.data.shares import share_of
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json",)

NAMED = re.compile(r"(?:.*/)?(trainset|testset|VQA_RAD Dataset Public)\.json")
WORDS = {"trainset": "train", "testset": "test", "VQA_RAD Dataset Public": "train"}
NO_FRAME = ("NULL", "")


class Row(TypedDict):
    qid: int | str
    image_name: str
    question: str
    answer: str | int | float
    answer_type: NotRequired[str | None]
    question_type: NotRequired[str | None]
    phrase_type: NotRequired[str | None]
    question_frame: NotRequired[str | None]


def images(raws: Mapping[str, RawFiles], split: str = "official", test: float = 0.15) -> Iterator[ImageRow]:
    """Every photo that is asked about; in no split where the official one parts questions, not photos."""
    _check(split, test)
    photos, seen = PhotoFiles(raws), set[str]()
    for where, _, row in _rows(raws):
        if (name := row["image_name"].strip()) not in seen:
            seen.add(name)
            source, member = photos.find(name, "", where)
            of = None if split == "official" else _by_image(name, test)
            yield {"image_id": name, "path": member, "source": source, "split": of}


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], split: str = "official", test: float = 0.15
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One question an example, and one more for a frame."""
    _check(split, test)
    odd = Odd()
    for where, of, row in _rows(raws):
        image_id, phrase = row["image_name"].strip(), row.get("phrase_type") or ""
        official = "test" if phrase.startswith("test_") else of
        texts = {str(row["qid"]): row["question"]}
        if official == "train" and (frame := (row.get("question_frame") or "").strip()) not in NO_FRAME:
            texts[f"{row['qid']}/frame"] = frame
        for example_id, text in texts.items():
            if not text.strip():
                odd.add("empty_questions", where)
                continue
            yield {
                "example_id": example_id,
                "kind": "question",
                "image_ids": [image_id],
                "split": official if split == "official" else _by_image(image_id, test),
                "text": text.strip(),
                "answers": right_answer(str(row["answer"]), odd, where),
                "question_type": odd.label(row.get("question_type"), f"{where}: question_type"),
                "answer_type": odd.label(row.get("answer_type"), f"{where}: answer_type"),
            }
    yield from odd.notes()


def _by_image(image_id: str, test: float) -> str:
    """The last share of the hashes, since `validation` takes the first."""
    return "test" if share_of(image_id) >= 1 - test else "train"


def _check(split: Any, test: Any) -> None:
    check_choice(split, ("official", "image"), "split")
    if type(test) not in (int, float) or not 0 < test < 1:
        raise UserError(f"options.test: must be a share between 0 and 1, not {test!r:.80}")


def _rows(raws: Mapping[str, RawFiles]) -> Iterator[tuple[str, str, Row]]:
    """(place, split of the file, row)"""
    for file in split_files(raws, None, NAMED, WORDS, "trainset.json, testset.json or VQA_RAD Dataset Public.json"):
        for at, row in enumerate(checked(file.read(), list[Row], file.name)):
            yield f"{file.name}[{at}]", file.split, row
