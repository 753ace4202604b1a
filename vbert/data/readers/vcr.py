"""VCR (Zellers et al. 2019): questions about a movie still, each with four answers and four reasons to choose from.

`train.jsonl`, `val.jsonl`, `test.jsonl` hold a question a line: annot_id, img_fn, metadata_fn, objects (their classes),
question, answer_choices, rationale_choices as lists of words and of lists of objects' numbers, answer_label and
rationale_label (test has none). Stills and a JSON of boxes beside each, as `vcr1images/FOLDER/NAME.jpg` and `.json`.

- A still's id is its `img_fn`. Its boxes are the whole still (class `image`), then the objects in the file's order, for
  `regions: {boxes: {rule: given}}`.
- Two kinds of choices: `annot_id/answer` (question_type answer) and `annot_id/rationale_K` (rationale), whose text is
  the question with answer K: the right one, and for the splits in `every_answer` (test) each of the four, as the
  leaderboard asks. The choices of a question are a group (Q→AR).
- An object's number becomes a word of its own, a phrase with the object's box: its class, or a person's name from the
  original's list (rowanz/r2c `vcr.py`), by the number of persons named so far. Names of the text hold in its choices.
  `names: distinct` goes on counting in a choice; `names: original` begins again, so that a person who is new in a
  choice is called Casey, as perhaps another in the text, and only the box tells who is meant.
- `boxes` of an example: the whole still, and the objects that question, answers or rationales name; all persons where
  `everyone` is said or nothing is named (`add_all_features` of the original's fine-tuning).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.boxes import StatedSize
from vbert.data.names import is_image
from vbert.data.readers import BoxRow, ImageRow
from vbert.data.readers._files import SplitFile, split_files
from vbert.data.readers._photos import PhotoFiles
from vbert.data.readers._rows import check_choice, checked, lines
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".jsonl", ".json", ".txt", ".md")

NAMED = re.compile(r"(?:.*/)?(train|val|test)\.jsonl")
WORDS = {"train": "train", "val": "val", "test": "test"}
PERSONS = (  # `GENDER_NEUTRAL_NAMES` of the original, where Peyton stands twice
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall"),
    *("Peyton", "Skyler", "Frankie", "Pat", "Quinn"),
)
DISTINCT = tuple(dict.fromkeys(PERSONS))
EVERYONE = ("everyone", "everyones")
WHOLE = "image"  # the class of the box around the whole still
CHOICES = 4

Words = list[str | list[int]]
Box = Sequence[float]


class Line(TypedDict):
    annot_id: str
    img_fn: str
    metadata_fn: str
    objects: list[str]
    question: Words
    answer_choices: list[Words]
    rationale_choices: list[Words]
    answer_label: NotRequired[int | None]
    rationale_label: NotRequired[int | None]


class Metadata(TypedDict):
    boxes: list[list[float]]  # x1, y1, x2, y2, score
    names: list[str]
    width: int
    height: int


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[ImageRow]:
    """Every still that is asked about."""
    photos, seen = PhotoFiles(raws), dict[str, str]()
    for file in _files(raws, splits):
        for where, row in _lines(file):
            name = row["img_fn"]
            if name not in seen:
                seen[name] = file.split
                source, member = photos.find(name, "", f"{where}: img_fn")
                yield {"image_id": name, "path": member, "source": source, "split": file.split}
            elif seen[name] != file.split:
                raise UserError(f"{where}: the still {name!r:.80} is in {file.split} and in {seen[name]}; part them")


def boxes(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[BoxRow]:
    """The whole of every still, then its objects."""
    metadata, seen = _Metadata(raws), set[str]()
    for file in _files(raws, splits):
        for where, row in _lines(file):
            if row["img_fn"] in seen:
                continue
            seen.add(row["img_fn"])
            name, found = metadata.of(row, where)
            stated = StatedSize(found["width"], found["height"], name, "stated", False)
            for at, (corners, kind) in enumerate(zip(_boxes(found), (WHOLE, *found["names"]), strict=True)):
                x1, y1, x2, y2 = corners
                yield {
                    "image_id": row["img_fn"],
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "class": kind,
                    "attributes": [],
                    "where": f"{name}: boxes[{at - 1}]" if at else name,
                    "stated": stated,
                }


def examples(
    raws: Mapping[str, RawFiles],
    image_ids: Collection[str],
    splits: Mapping[str, Any] | None = None,
    names: str = "distinct",
    every_answer: Sequence[str] = ("test",),
) -> Iterator[dict[str, Any]]:
    """The choices of every question: among answers, and among rationales."""
    check_choice(names, ("distinct", "original"), "names")
    for split in every_answer:
        check_choice(split, tuple(WORDS), "every_answer")
    metadata = _Metadata(raws)
    for file in _files(raws, splits):
        for where, row in _lines(file):
            corners = _boxes(metadata.of(row, where)[1])
            label, right = row.get("answer_label"), row.get("rationale_label")
            common = {
                "kind": "choice",
                "image_ids": [row["img_fn"]],
                "split": file.split,
                "group": row["annot_id"],
                "boxes": [corners[0], *(corners[at + 1] for at in _seen(row))],
            }
            yield common | {
                "example_id": f"{row['annot_id']}/answer",
                "question_type": "answer",
                "label": None if label is None else str(label),
                **_told(row, row["question"], row["answer_choices"], corners, names),
            }
            given = range(CHOICES) if file.split in every_answer or label is None else (label,)
            for answer in given:
                context = [*row["question"], *row["answer_choices"][answer]]
                yield common | {
                    "example_id": f"{row['annot_id']}/rationale_{answer}",
                    "question_type": "rationale",
                    "label": None if right is None or answer != label else str(right),
                    **_told(row, context, row["rationale_choices"], corners, names),
                }


def _told(row: Line, context: Words, choices: Sequence[Words], corners: Sequence[Box], names: str) -> dict[str, Any]:
    """Text, phrases and choices, with the objects named."""
    known: dict[int, str] = {}
    text = _worded(row, context, corners, known, 0, names)
    persons = sum(row["objects"][at] == "person" for at in known)
    begin = persons if names == "distinct" else 0
    return {**text, "choices": [_worded(row, choice, corners, dict(known), begin, names) for choice in choices]}


def _worded(
    row: Line, words: Words, corners: Sequence[Box], known: dict[int, str], persons: int, names: str
) -> dict[str, Any]:
    """Words as a text whose phrases are objects; objects that are new are added to `known`, persons named by their
    number from `persons` on."""
    of = DISTINCT if names == "distinct" else PERSONS
    text, phrases = "", []
    for word in words:
        if isinstance(word, str):
            text += f" {word}" if text else word
            continue
        for at in word:
            if at not in known:
                known[at] = of[persons % len(of)] if row["objects"][at] == "person" else row["objects"][at]
                persons += row["objects"][at] == "person"
            text += f" {known[at]}" if text else known[at]
            phrases.append({"start": len(text) - len(known[at]), "end": len(text), "boxes": [corners[at + 1]]})
    return {"text": text, "phrases": phrases}


def _seen(row: Line) -> list[int]:
    """The objects that the question is about, in their order."""
    named: set[int] = set()
    persons = {at for at, kind in enumerate(row["objects"]) if kind == "person"}
    for words in (row["question"], *row["answer_choices"], *row["rationale_choices"]):
        for word in words:
            if isinstance(word, list):
                named.update(word)
            elif word.lower() in EVERYONE:
                named |= persons
    return sorted(named or persons)


def _boxes(metadata: Metadata) -> list[Box]:
    try:
        width, height = float(metadata["width"]), float(metadata["height"])
    except OverflowError:  # whole numbers of hundreds of digits
        width = height = float("inf")
    return [(0.0, 0.0, width, height), *(box[:4] for box in metadata["boxes"])]


class _Metadata:
    """The JSON of boxes beside each still, by the last two parts of its name."""

    def __init__(self, raws: Mapping[str, RawFiles]) -> None:
        self._places = {
            "/".join(name.split("/")[-2:]): (raw, name)
            for raw in raws.values()
            for name in raw.members()
            if name.endswith(".json") and not is_image(name)
        }
        self._read = lru_cache(maxsize=64)(self._parsed)

    def of(self, row: Line, where: str) -> tuple[str, Metadata]:
        """(name of the file, its content). Raises UserError where it is absent or has other objects than the line."""
        wanted = "/".join(row["metadata_fn"].split("/")[-2:])
        if wanted not in self._places:
            raise UserError(f"{where}: metadata_fn: there is no {wanted!r:.200}; {near(wanted, self._places):.200}")
        name, found = self._places[wanted][1], self._read(wanted)
        if found["names"] != row["objects"]:
            raise UserError(f"{where}: objects: are not the names in {name}; are both of one version?")
        return name, found

    def _parsed(self, key: str) -> Metadata:
        raw, name = self._places[key]
        found: Metadata = checked(raw.read(name), Metadata, name)
        for at, box in enumerate(found["boxes"]):
            if len(box) not in (4, 5):
                raise UserError(f"{name}: boxes[{at}]: must be x1, y1, x2, y2 and a score, not {len(box)} numbers")
        if len(found["boxes"]) != len(found["names"]):
            raise UserError(f"{name}: there are {len(found['boxes'])} boxes and {len(found['names'])} names")
        return found


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    return split_files(raws, splits, NAMED, WORDS, "train.jsonl, val.jsonl, test.jsonl")


def _lines(file: SplitFile) -> Iterator[tuple[str, Line]]:
    for where, row in lines(file.raw, file.name, Line):
        for field in ("answer_choices", "rationale_choices"):
            if len(row[field]) != CHOICES:
                raise UserError(f"{where}: {field}: must be {CHOICES}, not {len(row[field])}")
            for at, words in enumerate((row["question"], *row[field])):
                if wrong := [k for word in words if isinstance(word, list) for k in word if not _is_object(k, row)]:
                    place = f"{field}[{at - 1}]" if at else "question"
                    raise UserError(f"{where}: {place}: there is no object {wrong[0]}, of {len(row['objects'])}")
        for field in ("answer_label", "rationale_label"):
            if (label := row.get(field)) is not None and not 0 <= label < CHOICES:
                raise UserError(f"{where}: {field}: must be from 0 to {CHOICES - 1}, not {label}")
        yield where, row


def _is_object(number: int, row: Line) -> bool:
    return 0 <= number < len(row["objects"])
