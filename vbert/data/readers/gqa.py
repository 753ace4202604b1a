"""GQA's JSON (Hudson and Manning 2019): questions made from scene graphs, with one answer each.

`{train,val,testdev}_balanced_questions.json` map a question's id to question, imageId, answer, types; testdev is the
split test. Other files (`test_balanced_questions.json`, without answers): `options: {splits: {test: FILE}}`, by their
endings. Photos `images/ID.jpg`.

- `answers` hold the answer as it stands, for exact match. `question_type` is the structural type (verify, query,
  choose, logical, compare), `answer_type` the semantic one (object, attribute, category, relation, global).
- A photo is in the split of its questions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems, SplitFile, split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import checked
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json", ".txt")

NAMED = re.compile(r"(?:.*/)?(train|val|testdev)_balanced_questions\.json")
WORDS = {"train": "train", "val": "val", "testdev": "test"}


class Types(TypedDict, total=False):
    structural: str | None
    semantic: str | None


class Question(TypedDict):
    question: str
    imageId: str
    answer: NotRequired[str | None]
    types: NotRequired[Types | None]


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[ImageRow]:
    """Every photo that is asked about. Raises UserError for one in two splits."""
    photos, seen = PhotoStems(raws), dict[str, str]()
    for file in _files(raws, splits):
        for where, _, row in _questions(file):
            image_id = row["imageId"]
            if image_id not in seen:
                seen[image_id] = file.split
                source, member = photos.find(image_id, where)
                yield {"image_id": image_id, "path": member, "source": source, "split": file.split}
            elif seen[image_id] != file.split:
                raise UserError(f"{where}: photo {image_id} is in {file.split} and in {seen[image_id]}; part them")


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], splits: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One question an example."""
    odd = Odd()
    for file in _files(raws, splits):
        for where, number, row in _questions(file):
            text, answer, types = row["question"].strip(), row.get("answer"), row.get("types") or Types()
            if not text:
                odd.add("empty_questions", where)
                continue
            if answer is None:
                odd.add("unlabelled", where)
            elif not answer.strip():
                odd.add("empty_answers", where)
            yield {
                "example_id": number,
                "kind": "question",
                "image_ids": [row["imageId"]],
                "split": file.split,
                "text": text,
                "answers": None if answer is None else [{"answer": answer, "score": 1.0}] if answer.strip() else [],
                "question_type": odd.label(types.get("structural"), f"{where}: types.structural"),
                "answer_type": odd.label(types.get("semantic"), f"{where}: types.semantic"),
            }
    yield from odd.notes()


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    return split_files(raws, splits, NAMED, WORDS, "train_balanced_questions.json and the like")


def _questions(file: SplitFile) -> Iterator[tuple[str, str, Question]]:
    """(place, id, question)"""
    for number, row in checked(file.read(), dict[str, Question], file.name).items():
        yield f"{file.name}: {number}", number, row
