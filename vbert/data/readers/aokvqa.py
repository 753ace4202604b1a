"""A-OKVQA's JSON (Schwenk et al. 2022): questions on COCO 2017 photos, with ten people's answers and four choices.

`aokvqa_v1p0_{train,val,test}.json` are lists of rows: image_id, question_id (text), question, choices,
correct_choice_idx, direct_answers, difficult_direct_answer; test has neither answers nor the right choice. Other names:
`options: {splits: {train: FILE}}`, by their endings.

- Direct answers: `question_id` is the example's id, `given` the people's answers, `answers` the same with the official
  score min(n / 3, 1) of equal strings (`evaluation/eval_predictions.py`), nothing normalised. Questions that are
  `difficult_direct_answer` don't count in it, and have neither here.
- Multiple choice: a second example, `question_id/choice`; `options: {forms: [question]}` or `[choice]` takes one form.
- Photos are those of `images: {from: coco_2017_all}`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.readers import ReaderNote
from vbert.data.readers._files import split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import check_choice, checked
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json",)

NAMED = re.compile(r"(?:.*[/_])?(train|val|test)\.json")
WORDS = {"train": "train", "val": "val", "test": "test"}
FORMS = ("question", "choice")


class Row(TypedDict):
    image_id: int | str
    question_id: str
    question: str
    choices: list[str]
    correct_choice_idx: NotRequired[int | None]
    direct_answers: NotRequired[list[str] | None]
    difficult_direct_answer: NotRequired[bool | None]


def examples(
    raws: Mapping[str, RawFiles],
    image_ids: Collection[str],
    splits: Mapping[str, Any] | None = None,
    forms: Sequence[str] = FORMS,
) -> Iterator[dict[str, Any] | ReaderNote]:
    """Two examples a question: its direct answer, and its choices."""
    for form in forms:
        check_choice(form, FORMS, "forms")
    odd = Odd()
    for file in split_files(raws, splits, NAMED, WORDS, "aokvqa_v1p0_train.json and the like"):
        for at, row in enumerate(checked(file.read(), list[Row], file.name)):
            where = f"{file.name}[{at}]"
            text = row["question"].strip()
            if not text:
                odd.add("empty_questions", where)
                continue
            common = {"image_ids": [str(row["image_id"])], "split": file.split, "text": text}
            if "question" in forms:
                yield common | {"example_id": row["question_id"], "kind": "question", **_answered(row, where, odd)}
            if "choice" in forms:
                yield common | {"example_id": f"{row['question_id']}/choice", "kind": "choice", **_chosen(row, where)}
    yield from odd.notes()


def _answered(row: Row, where: str, odd: Odd) -> dict[str, Any]:
    given = row.get("direct_answers")
    if given is None:
        odd.add("unlabelled", where)
        return {}
    if row.get("difficult_direct_answer"):
        odd.add("difficult_answers", where)
        return {}
    for _ in range(sum(not answer.strip() for answer in given)):
        odd.add("empty_answers", where)
    scores = {answer: min(n / 3, 1.0) for answer, n in Counter(given).items() if answer.strip()}
    return {"given": given, "answers": [{"answer": answer, "score": score} for answer, score in scores.items()]}


def _chosen(row: Row, where: str) -> dict[str, Any]:
    right, count = row.get("correct_choice_idx"), len(row["choices"])
    if right is not None and not 0 <= right < count:
        raise UserError(f"{where}: correct_choice_idx: must be from 0 to {count - 1}, not {right}")
    if count < 2 or not all(choice.strip() for choice in row["choices"]):
        raise UserError(f"{where}: choices: must be two or more texts, none of them empty")
    return {"choices": [{"text": choice} for choice in row["choices"]], "label": None if right is None else str(right)}
