"""NLVR's JSON lines of 2017 (Suhr et al.): a statement about one drawing of three boxes, true or false.

Files: `train.json`, `dev.json` (the split val), `test.json`, `hidden.json` (both test, as parts of these names), one
object a line: sentence, identifier `n-m`, directory, label "true" or "false" (may be missing), structured_rep. Other
names of files: `options: {splits: {train: FILE, test: [FILE, FILE]}}`, by their endings. Each example is drawn six
times, its boxes in all orders: `SPLIT-n-m-0.png` to `-5.png` in any folders, SPLIT being the file's name (its letters).

- A drawing's id is its name without the ending. Each drawing is an example, with its whole name as id, as in the
  official submission.
- All drawings of one sentence, with the same `n`, are a group (`metrics_images.py` of lil-lab/nlvr).
- Drawings of a `directory` are held out together, by `validation` of the spec.
- Boxes: those of the objects, a square around each, of classes circle, square, triangle, with the attributes black,
  yellow or blue, and small, medium or large. The three boxes of a drawing begin at 0, 150 and 300 pixels; drawing k
  shows them in the k-th of the orders 012, 021, 102, 120, 201, 210.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import permutations
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from vbert.data.readers import BoxRow, ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems, SplitFile, split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import lines, stated
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json", ".txt", ".md", ".csv")

NAMED = re.compile(r"(?:.*/)?(train|dev|test|hidden)\.json")
WORDS = {"train": "train", "dev": "val", "test": "test", "hidden": "test"}
ORDERS = tuple(permutations(range(3)))
STRIDE = 150  # pixels from one box of a drawing to the next; each is 100 wide
COLOURS = {"#0099ff": "blue"}  # other colours are words
SIZES = {10: "small", 20: "medium", 30: "large"}  # pixels


Pixels = Annotated[int, Field(ge=0, le=1000)]


class Item(TypedDict):
    x_loc: Pixels
    y_loc: Pixels
    size: Pixels
    type: str
    color: str


class StatementLine(TypedDict):
    identifier: str
    sentence: str
    directory: NotRequired[str | int | None]
    label: NotRequired[str | None]
    structured_rep: NotRequired[list[list[Item]] | None]


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[ImageRow]:
    """Six drawings an example."""
    photos = PhotoStems(raws)
    for file in _files(raws, splits):
        for where, row in _lines(file):
            directory = row.get("directory")
            cluster = row["identifier"].partition("-")[0] if directory is None else f"directory {directory}"
            for drawing in _drawings(file, row):
                source, member = photos.find(drawing, where)
                yield {
                    "image_id": drawing,
                    "path": member,
                    "source": source,
                    "split": file.split,
                    "cluster": cluster,
                }


def boxes(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[BoxRow]:
    """Every object of every drawing."""
    for file in _files(raws, splits):
        for where, row in _lines(file):
            shown = row.get("structured_rep")
            if shown is None:
                continue
            if len(shown) != 3:
                raise UserError(f"{where}: structured_rep: must be three boxes, not {len(shown)}")
            for drawing, order in zip(_drawings(file, row), ORDERS, strict=True):
                for place, box in enumerate(order):
                    for item in shown[box]:
                        x, y, size = place * STRIDE + item["x_loc"], item["y_loc"], item["size"]
                        color = item["color"].lower()
                        yield {
                            "image_id": drawing,
                            "x1": x,
                            "y1": y,
                            "x2": x + size,
                            "y2": y + size,
                            "class": item["type"],
                            "attributes": [COLOURS.get(color, color), SIZES.get(size, str(size))],
                            "where": f"{where}: structured_rep[{box}]",
                        }


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], splits: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One drawing with its sentence an example, in the split of the drawing."""
    odd, files = Odd(), _files(raws, splits)
    several = {file.split for file in files if sum(file.split == other.split for other in files) > 1}
    for file in files:
        for where, row in _lines(file):
            label, text = odd.truth(row.get("label"), where), stated(row["sentence"], where)
            for drawing in _drawings(file, row):
                yield {
                    "example_id": f"{drawing}.png",
                    "kind": "pair",
                    "image_ids": [drawing],
                    "text": text,
                    "label": label,
                    "group": f"{_prefix(file)}-{row['identifier'].partition('-')[0]}",
                    "part": file.word if file.split in several else None,
                }
    yield from odd.notes()


def _drawings(file: SplitFile, row: StatementLine) -> list[str]:
    return [f"{_prefix(file)}-{row['identifier']}-{k}" for k in range(len(ORDERS))]


def _prefix(file: SplitFile) -> str:
    """The letters that the file's name begins with: `hidden` of hidden_final.json."""
    return re.split("[^A-Za-z]", file.word)[0]


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    return split_files(raws, splits, NAMED, WORDS, "train.json, dev.json, test.json")


def _lines(file: SplitFile) -> Iterator[tuple[str, StatementLine]]:
    for where, row in lines(file.raw, file.name, StatementLine):
        if not re.fullmatch("[0-9]+-[0-9]+", row["identifier"]):
            raise UserError(f"{where}: identifier: must be n-m, not {row['identifier']!r:.80}")
        yield where, row
