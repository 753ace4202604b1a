"""VQA v2's JSON (Goyal et al. 2017), also OK-VQA's and VQA v1's: questions, and ten people's answers to each.

`v2_OpenEnded_mscoco_train2014_questions.json` holds `questions` (image_id, question, question_id),
`v2_mscoco_train2014_annotations.json` holds `annotations` (question_id, question_type, answer_type, answers of answer,
answer_confidence, answer_id). The names of the questions' files say the split; else `options: {splits: {train: FILE,
test: [FILE, FILE]}}` names them by their endings. Annotations are all files whose names end in `annotations.json`.

- A question's id is its number, `given` its people's answers as they stand in the file, `answers` the normalised ones
  with their accuracies. Several answers need an `answer_id` each: the official score tells equal ones apart by it.
- A question's single answer scores 1, as VQA's rule would give it 0; it has no `given`.
- Where the annotations hold none of a file's questions, these have no answers (the official test splits); where they
  hold some, they must hold all.
- Questions of a `test-dev` file that a `test` file holds too are part `test-dev` of the test split.
- Photos are found by the number at the end of their names; with COCO's own, `images: {from: coco_2014}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.names import count_of
from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._answers import right_answer, soft_targets
from vbert.data.readers._files import PhotoStems, SplitFile, split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import checked
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2
OWN = (".json",)

NAMED = re.compile(r"(?:.*[/_])?((?:train|val|test)(?:-dev)?)[0-9]*_questions\.json")
WORDS = {"train": "train", "val": "val", "test": "test", "test-dev": "test"}
ANNOTATIONS = "annotations.json"


class Question(TypedDict):
    image_id: int | str
    question: str
    question_id: int | str


class Questions(TypedDict):
    questions: list[Question]


class Answer(TypedDict):
    answer: str
    answer_id: NotRequired[int | str | None]


class Annotation(TypedDict):
    question_id: int | str
    answers: list[Answer]
    question_type: NotRequired[str | None]
    answer_type: NotRequired[str | None]


class Annotations(TypedDict):
    annotations: list[Annotation]


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[ImageRow]:
    """Every photo that is asked about; one that several splits ask about is in none."""
    photos, places = PhotoStems(raws, numbers=True), dict[str, tuple[str, set[str]]]()
    for file in _files(raws, splits):
        for where, row in _questions(file):
            places.setdefault(str(row["image_id"]), (where, set()))[1].add(file.split)
    for image_id, (where, of) in places.items():
        source, member = photos.find(image_id, where)
        yield {"image_id": image_id, "path": member, "source": source, "split": min(of) if len(of) == 1 else None}


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], splits: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One question an example."""
    annotations, odd = _annotations(raws), Odd()
    files = _files(raws, splits)
    dev = {str(row["question_id"]) for file in files if file.word == "test-dev" for _, row in _questions(file)}
    whole = any(file.word == "test" for file in files)
    for file in files:
        if file.word == "test-dev" and whole:
            continue
        questions = list(_questions(file))
        known = [str(row["question_id"]) in annotations for _, row in questions]
        if any(known) and not all(known):
            where, row = questions[known.index(False)]
            raise UserError(
                f"{where}: question {row['question_id']} has no annotation, as have {known.count(False):,} of the "
                f"file's {len(known):,}: give the annotations of all of them, or of none"
            )
        for where, row in questions:
            number = str(row["question_id"])
            place, annotation = annotations.pop(number, (where, None))
            if not row["question"].strip():
                odd.add("empty_questions", where)
                continue
            example: dict[str, Any] = {
                "example_id": number,
                "kind": "question",
                "image_ids": [str(row["image_id"])],
                "split": file.split,
                "part": "test-dev" if number in dev else None,
                "text": row["question"].strip(),
            }
            if annotation is None:
                odd.add("unlabelled", where)
            else:
                example |= _answered(annotation, place, odd)
            yield example
    if annotations:
        place = next(iter(annotations.values()))[0]
        raise UserError(
            f"{place}: {count_of(annotations, 'annotation')} of questions that no file asks; give the questions that "
            f"belong to them"
        )
    yield from odd.notes()


def _answered(annotation: Annotation, where: str, odd: Odd) -> dict[str, Any]:
    given = [answer["answer"] for answer in annotation["answers"]]
    if single := len(given) == 1:
        odd.add("single_answers", where)
    return {
        "given": None if single else given,
        "answers": right_answer(given[0], odd, where) if single else soft_targets(given, odd, where),
        "question_type": odd.label(annotation.get("question_type"), f"{where}: question_type"),
        "answer_type": odd.label(annotation.get("answer_type"), f"{where}: answer_type"),
    }


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    return split_files(raws, splits, NAMED, WORDS, "…train2014_questions.json and the like")


def _questions(file: SplitFile) -> Iterator[tuple[str, Question]]:
    """(place, question)"""
    for at, row in enumerate(checked(file.read(), Questions, file.name)["questions"]):
        yield f"{file.name}: questions[{at}]", row


def _check_ids(row: Annotation, where: str) -> None:
    """Raises UserError for several answers that the official score doesn't tell apart."""
    seen = set[str]()
    for at, answer in enumerate(row["answers"] if len(row["answers"]) > 1 else ()):
        given = answer.get("answer_id")
        if given is None or str(given) in seen:
            fault = "is missing" if given is None else f"{given} occurs twice"
            raise UserError(
                f"{where}: answers[{at}]: answer_id: {fault} (question {row['question_id']}); number the answers of a "
                f"question 1 to 10, as the official files do"
            )
        seen.add(str(given))


def _annotations(raws: Mapping[str, RawFiles]) -> dict[str, tuple[str, Annotation]]:
    """question_id → (place, annotation)"""
    found: dict[str, tuple[str, Annotation]] = {}
    for raw in raws.values():
        for name in raw.members():
            if name.endswith(ANNOTATIONS):
                for at, row in enumerate(checked(raw.read(name), Annotations, name)["annotations"]):
                    place, number = f"{name}: annotations[{at}]", str(row["question_id"])
                    if not row["answers"]:
                        raise UserError(f"{place}: answers: there is none")
                    _check_ids(row, place)
                    if number in found:
                        raise UserError(f"{place}: a second annotation of question {number}, as {found[number][0]}")
                    found[number] = place, row
    return found
