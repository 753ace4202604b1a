"""Your own images: a folder (or archive) of them, and examples one JSON object a line. A spec of it:

    name: mine
    title: My photos with questions
    licence: private
    sources:
      photos: {path: ~/photos}                 # a folder, a .zip, a .tar; or url: … with sha256: …
      texts: {path: ~/photos/examples.jsonl}
    images: {reader: jsonl, sources: [photos]}
    examples: {reader: jsonl, sources: [texts]}
    validation: {of: train, share: 0.1}        # unless your lines say `"split": "val"`

An image's id is its name in the folder: `cats/1.jpg`; lines may write it with `\\`, with a leading `./`, or in another
case or with another ending where only one can be meant. A line of examples has the columns of EXAMPLES_SCHEMA; `image`
may stand for `image_ids`, `answer` for a single one of `answers`. Unless given, `example_id` is `file:line`, `split`
that of the image, and `kind` is `question` with answers, `choice` with choices and `caption` otherwise:

    {"image": "cats/1.jpg", "text": "a cat on a mat"}
    {"image": "cats/2.jpg", "text": "how many cats?", "answer": "two", "split": "test"}
    {"image_ids": ["a.png", "b.png"], "kind": "pair", "text": "both show a dog", "label": "true"}
    {"image": "cats/1.jpg", "text": "where is it?", "choices": [{"text": "here"}, {"text": "there"}], "label": "0"}

`answers` are `{"answer": "two", "score": 0.6}` each, or texts, of which each is right. Ten texts, or ten of VQA's own
objects (`{"answer": "two", "answer_confidence": "yes", "answer_id": 1}`), are answers of ten people, kept as
`given`: n equal ones make the score min(0.3 · n, 1), as in VQA v2. `label` of a choice is the number of the right one
of its `choices`, from 0. Examples of one `group` count together.

Boxes, for training a detector: a `boxes.jsonl` among the images, `{"image": "cats/1.jpg", "box": [x1, y1, x2, y2],
"class": "cat", "attributes": ["black"]}` a line, in pixels of the image as shown, x2 and y2 exclusive. Splits of
images: `images: {…, options: {splits: {train: train/, test: test/}}}` by how their names begin (where several fit, the
longest counts); else all are `train`. For unusable boxes see `vbert/data/boxes.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from vbert.data.names import FileNames, count_of, is_image
from vbert.data.readers import BoxRow, ImageRow, ReaderNote
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import ExampleRow, check_matched, lines, named_by_split
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 3
OWN = (".jsonl",)

PEOPLE = 10  # people that VQA asks for each question
SINGLE = {"image": "image_ids", "answer": "answers"}  # accepted spellings of one answer


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class ExampleLine(ExampleRow, total=False):
    """A line of examples."""

    image: str | None
    answer: str | None


# `class` is a keyword, so this one is written as a call.
_BoxFields = TypedDict(
    "_BoxFields",
    {"image": str | None, "box": list[Any] | None, "class": str | None, "attributes": list[str] | None},
    total=False,
)


@with_config(ConfigDict(extra="forbid", strict=True))
class BoxLine(_BoxFields, total=False):
    """A line of boxes."""


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, str] | None = None) -> Iterator[ImageRow]:
    """Every file whose name ends as an image's does. `splits`: split → beginning of the names."""
    given = named_by_split(splits)
    files = [(source, name) for source, raw in raws.items() for name in raw.members() if is_image(name)]
    if given is not None:
        check_matched(given, (name for _, name in files), ends=False, what="image's name")
    starts = sorted((given or {"train": ""}).items(), key=lambda item: -len(item[1]))
    for source, name in files:
        mine = [split for split, start in starts if name.startswith(start)]
        yield {"image_id": name, "path": name, "source": source, "split": mine[0] if mine else None}


def boxes(raws: Mapping[str, RawFiles], splits: Mapping[str, str] | None = None) -> Iterator[BoxRow]:
    """The lines of every `boxes.jsonl`."""
    names = FileNames(dict.fromkeys(name for raw in raws.values() for name in raw.members() if is_image(name)))
    for where, row in _lines(raws, "boxes.jsonl", BoxLine):
        box = row.get("box")
        if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
            raise UserError(f"{where}: box: must be [x1, y1, x2, y2] in pixels, not {box!r:.80}")
        if row.get("image") is None or row.get("class") is None:
            raise UserError(f"{where}: a box needs `image` and `class`")
        try:
            x1, y1, x2, y2 = map(float, box)
        except OverflowError:  # whole numbers of hundreds of digits
            x1 = y1 = x2 = y2 = float("inf")
        yield {
            "image_id": names.find(row["image"], where, "image"),
            "x1": x1,
            "y1": y1,
            "x2": x2,
            "y2": y2,
            "class": row["class"],
            "attributes": row.get("attributes") or [],
            "where": where,
        }


def examples(raws: Mapping[str, RawFiles], image_ids: Collection[str]) -> Iterator[dict[str, Any] | ReaderNote]:
    """The lines of every `.jsonl` but `boxes.jsonl`. Raises UserError as `file:line: field: what`."""
    names = FileNames(image_ids)
    misread, odd = [], Odd()
    for where, line in _lines(raws, ".jsonl", ExampleLine):
        row = {field: value for field, value in line.items() if value is not None}
        for one, many in SINGLE.items():
            if one in row and many in row:
                raise UserError(f"{where}: {one}: stands beside `{many}`; which of them is meant?")
        if "image" in row:
            row["image_ids"] = [row.pop("image")]
        if "answer" in row:
            if not row["answer"].strip():
                raise UserError(f"{where}: answer: is blank; leave the field out of a question that has none")
            row["answers"] = [{"answer": row.pop("answer"), "score": 1.0}]
        elif "answers" in row:
            row["answers"], people = _answers(row["answers"], where)
            if people and "given" not in row:
                row["given"] = people
        for field in ("image_ids", "text"):
            value = row.get(field)
            if not (value.strip() if isinstance(value, str) else value):
                raise UserError(f"{where}: {field}: is missing" + (" (or `image`)" if field == "image_ids" else ""))
        row["image_ids"] = [names.find(image_id, where, "image") for image_id in row["image_ids"]]
        if "label" in row and "answers" not in row and "choices" not in row and _asks(row):
            misread.append(f"{where}: answer: is missing, and a `label` ({row['label']!r:.80}) is none")
        odd.spelling(row.get("label"), f"{where}: label")
        row.setdefault("example_id", where)
        row.setdefault("kind", "question" if "answers" in row else "choice" if "choices" in row else "caption")
        yield row
    if misread:
        sentence = f"{count_of(misread, 'question')} with a label in place of an answer; the first: {misread[0]}"
        yield ReaderNote("labelled_questions", len(misread), sentence)
    yield from odd.notes()


def _asks(row: Mapping[str, Any]) -> bool:
    """Whether a line is a question, by its kind or, without one, by its question mark."""
    return bool(row.get("kind", "question") == "question" and ("kind" in row or row["text"].rstrip().endswith("?")))


def _lines(raws: Mapping[str, RawFiles], end: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """(place, row) of every line of the files whose names end so."""
    for raw in raws.values():
        for name in raw.members():
            if name.lower().endswith(end) and (end != ".jsonl" or not name.lower().endswith("boxes.jsonl")):
                yield from lines(raw, name, kind)


def _answers(answers: list[Any], where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Answers with their scores, from any accepted spelling, and those that ten people gave."""
    given, scored = [], []
    for at, item in enumerate(answers):
        answer = {"answer": item} if isinstance(item, str) else item
        place = f"{where}: answers[{at}]"
        if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
            raise UserError(f'{place}: must be text, or {{"answer": …, "score": …}}, not {item!r:.80}')
        given.append(answer["answer"])
        if "score" in answer:
            if type(answer["score"]) not in (int, float):
                raise UserError(f"{place}: score: must be a number from 0 to 1, not {answer['score']!r:.80}")
            if len(answer) > 2:
                raise UserError(f"{place}: has fields beside `answer` and `score`: {', '.join(map(repr, answer)):.80}")
            scored.append(answer)
        elif isinstance(item, dict) and len(answers) != PEOPLE:
            raise UserError(
                f"{place}: score: is missing (ten answers without are taken as VQA's, this line has {len(answers)})"
            )
    if scored and len(scored) < len(answers):
        raise UserError(f"{where}: answers: some have a score, some have none; give all of them one")
    if scored:
        return scored, []
    if len(given) != PEOPLE:
        return [{"answer": answer, "score": 1.0} for answer in dict.fromkeys(given)], []
    return [{"answer": answer, "score": min(0.3 * n, 1.0)} for answer, n in Counter(given).items()], given
