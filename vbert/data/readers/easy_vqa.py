"""easy-VQA (V. Zhou, 2019): 64×64 drawings of one shape, questions with one of 13 answers.

Files: `easy_vqa/data/{train,test}/questions.json`, a list of [question, answer, image number], and
`easy_vqa/data/{train,test}/images/<number>.png`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vbert.data.readers import ImageRow, only
from vbert.data.readers._rows import checked
from vbert.errors import BuildError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1

IMAGE = re.compile(r"easy_vqa/data/(train|test)/images/([0-9]+)\.png")
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow]:
    """Rows `train/17`, `test/3`."""
    for name in only(raws, "the package easy-vqa").members():
        if match := IMAGE.fullmatch(name):
            split, number = match.groups()
            yield {"image_id": f"{split}/{number}", "path": name, "split": split}


def examples(raws: Mapping[str, RawFiles], image_ids: Collection[str]) -> Iterator[dict[str, Any]]:
    """One question an example; ids by position, since nothing forbids the same question twice of one image."""
    raw = only(raws, "the package easy-vqa")
    for split in ("train", "test"):
        path = f"easy_vqa/data/{split}/questions.json"
        for position, (question, answer, number) in enumerate(
            checked(raw.read(path), list[tuple[str, str, int]], path)
        ):
            yield {
                "example_id": f"{split}/{position:05d}",
                "kind": "question",
                "image_ids": [f"{split}/{number}"],
                "split": split,
                "text": question,
                "answers": [{"answer": answer, "score": 1.0}],
                "question_type": question_type(question, path),
            }


def question_type(question: str, where: str = "") -> str:
    """The type of a question, by its words; the data set names no types.

    `shape`, `color`: the answer is one. `yes/no shape`, `yes/no color`, and the same with ` negated`: is there (not)
    one of that shape or colour? Raises BuildError for wordings that the generator doesn't have.
    """
    words = question.lower().rstrip("?").split()
    if words[:1] == ["what"]:
        return "color" if "color" in words[:4] else "shape"
    asked = "shape" if set(words) & set(SHAPES) else "color" if set(words) & set(COLORS) else None
    if asked is None or words[0] not in ("is", "does"):
        raise BuildError(f"{where}: {question!r} is no question of easy-VQA; is it another version of the data set?")
    return f"yes/no {asked}" + (" negated" if set(words) & {"not", "no"} else "")
