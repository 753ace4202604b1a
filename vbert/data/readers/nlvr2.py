"""NLVR2's JSON lines (Suhr et al. 2019): a statement about two photos, true or false.

Files: `train.json`, `dev.json` (the split val), `test1.json`, `test2.json` (both test, as parts of these names), one
object a line: sentence, identifier `split-set-pair-sentence`, label "True" or "False" (test files may lack it) and,
in train, `directory`. Other names of files: `options: {splits: {train: FILE, test: [FILE, FILE]}}`, by their endings.
Photos `split-set-pair-img0.png` and `-img1.png`, in any folders.

- A photo's id is its name without the ending; the left one, img0, is the first of an example.
- The pairs of one sentence are a group: right together, they count for consistency. It is the identifier without its
  third field (`eval/metrics.py` of lil-lab/nlvr).
- Photos of a `directory` (a bucket of sets of alike photos) are held out together, by `validation` of the spec.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems, SplitFile, split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import lines, stated
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json", ".txt", ".md", ".csv")

NAMED = re.compile(r"(?:.*/)?(train|dev|test1|test2)\.json")
WORDS = {"train": "train", "dev": "val", "test1": "test", "test2": "test"}
IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-([0-9]+)-([0-9]+)-([0-9]+)")


class StatementLine(TypedDict):
    identifier: str
    sentence: str
    label: NotRequired[str | None]
    directory: NotRequired[str | int | None]


def images(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None = None) -> Iterator[ImageRow]:
    """Both photos of every pair. Raises UserError for a pair in two splits."""
    photos, seen = PhotoStems(raws), dict[str, str]()
    for file in _files(raws, splits):
        for where, row, pair in _lines(file):
            if pair in seen:
                if seen[pair] != file.split:
                    raise UserError(f"{where}: the photos of {pair} are in {file.split} and in {seen[pair]}; part them")
                continue
            seen[pair] = file.split
            directory = row.get("directory")
            cluster = pair.rpartition("-")[0] if directory is None else f"directory {directory}"
            for image_id in _photos(pair):
                source, member = photos.find(image_id, where)
                yield {
                    "image_id": image_id,
                    "path": member,
                    "source": source,
                    "split": file.split,
                    "cluster": cluster,
                }


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], splits: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One pair with one sentence an example, in the split of its photos."""
    odd, files = Odd(), _files(raws, splits)
    several = {file.split for file in files if sum(file.split == other.split for other in files) > 1}
    for file in files:
        for where, row, pair in _lines(file):
            of, number, _, sentence = row["identifier"].split("-")
            yield {
                "example_id": row["identifier"],
                "kind": "pair",
                "image_ids": _photos(pair),
                "text": stated(row["sentence"], where),
                "label": odd.truth(row.get("label"), where),
                "group": f"{of}-{number}-{sentence}",
                "part": file.word if file.split in several else None,
            }
    yield from odd.notes()


def _photos(pair: str) -> list[str]:
    return [f"{pair}-img0", f"{pair}-img1"]


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    return split_files(raws, splits, NAMED, WORDS, "train.json, dev.json, test1.json")


def _lines(file: SplitFile) -> Iterator[tuple[str, StatementLine, str]]:
    """(place, row, the photos' names without `-img0`)"""
    for where, row in lines(file.raw, file.name, StatementLine):
        if not IDENTIFIER.fullmatch(row["identifier"]):
            raise UserError(f"{where}: identifier: must be split-set-pair-sentence, not {row['identifier']!r:.80}")
        yield where, row, row["identifier"].rpartition("-")[0]
