"""Your own images and a table about them: a CSV, TSV or JSON-lines file with one row an example.

The images are a folder or archive. `vbert init --table data.csv --images photos --label sentiment` writes a spec:

    sources: {photos: {path: photos}, table: {path: data.csv}}
    images: {reader: table, options: {image: file, label: sentiment, text: tweet}}
    examples: {reader: table, options: {image: file, label: sentiment, text: tweet}}

Options, the same for both, name columns:

    image, image_2      the image's name in the folder (with or without folders and ending), and a second image
    text                the text; by default the column `text`, where there is one
    answer | label | caption    what is learnt: the answer to `text`; the label of images and text; a caption, in place
                        of `text`. A row without answer or label, or a file of test without that column, is predicted
                        only. The label 1.0 is 1; labels that differ in letter case alone are counted
    split               train, val (or valid, validation, dev) or test
    id                  of the example, in predictions too; by default `file:line`. One that an earlier file has too
                        gets the file's name before it: `dev_unseen/7`; two of one file are refused

and `splits: {train: train.csv, val: [a.csv, b.csv]}` names files of each split by their endings, in place of a column;
with neither, all rows are `train`, and `validation` of the spec takes a share. `kind` says what an example is, where
that isn't `question` with an answer, `pair` with two images, `sentiment` with a label, `caption` otherwise. Files are
UTF-8, with or without a byte order mark; cells in quotes may hold line ends; `quotes: false` takes quotes as they are.

A row without image, or with one that the folder lacks, is left out and counted; more than half of the rows is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbert.data.names import FileNames, is_image
from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers import _tables as tables
from vbert.data.readers._files import SplitFile, ended_files
from vbert.data.readers._odd import Odd
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2
OWN = tables.ENDINGS

VALIDATION = "val"
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION)
WHOLE = re.compile(r"-?[0-9]+\.0+")
LEARNT = {"answer": "question", "label": "sentiment", "caption": "caption"}  # and the kind of its examples


class Pictures:
    """Images by the names that cells give them: with or without folders and ending."""

    def __init__(self, image_ids: Collection[str]) -> None:
        self._whole = FileNames(image_ids)
        self._by_last: dict[str, list[str]] = {}
        for image_id in image_ids:
            self._by_last.setdefault(image_id.rpartition("/")[2], []).append(image_id)
        self._last = FileNames(self._by_last)

    def find(self, name: str | None, where: str) -> str | None:
        """The image that `name` stands for; None for no match. Raises UserError for several."""
        rest, found = (name or "").replace("\\", "/"), list[str]()
        while rest and not found:  # leading folders that the images don't have count for nothing
            found = self._whole.matches(rest)
            rest = rest.partition("/")[2]
        if name and not found:
            found = [i for last in self._last.matches(name.rpartition("/")[2]) for i in self._by_last[last]]
        if len(found) > 1:
            raise UserError(f"{where}: the image {name!r:.80} may be {' or '.join(map(repr, sorted(found)[:2]))}")
        return found[0] if found else None


@dataclass(frozen=True)
class Columns:
    """The options that name columns."""

    image: str
    image_2: str | None
    text: str | None
    answer: str | None
    label: str | None
    caption: str | None
    split: str | None
    id: str | None

    def __post_init__(self) -> None:
        for option, column in vars(self).items():
            if column is not None and not isinstance(column, str):
                raise UserError(f"options.{option}: must be the name of a column, not {column!r:.80}")
        if len(self.learnt()) > 1:
            raise UserError(f"options: {' and '.join(self.learnt())} are given; give one: what is learnt")
        if self.caption is not None and self.text is not None:
            raise UserError("options: text and caption are given; a caption is the text")

    def learnt(self) -> list[str]:
        return [option for option in LEARNT if getattr(self, option) is not None]

    def kind(self) -> str:
        """The kind of the examples, as the columns say it."""
        if self.image_2 is not None:
            return "pair"
        return next((LEARNT[option] for option in self.learnt()), "caption")

    def of(self, file: SplitFile, files: Sequence[SplitFile]) -> dict[str, str]:
        """Option → column; of the text, `text` where the file has such a column. A file of test may lack the column of
        answers or labels, where another file has it."""
        given = {option: column for option, column in vars(self).items() if column is not None}
        for option in {"answer", "label"} & given.keys() if file.split == "test" and len(files) > 1 else ():
            if not tables.has_column(file.raw, file.name, given[option]):
                del given[option]
        if "text" not in given and self.caption is None and "text" in tables.columns_of(file.raw, file.name):
            given["text"] = "text"
        return given


def images(
    raws: Mapping[str, RawFiles],
    splits: Mapping[str, Any] | None = None,
    image: str = "image",
    image_2: str | None = None,
    text: str | None = None,
    answer: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    split: str | None = None,
    id: str | None = None,
    kind: str | None = None,
    quotes: bool = True,
) -> Iterator[ImageRow]:
    """Every file whose name ends as an image's does, in the split of its rows; one with rows in several has none."""
    columns = Columns(image, image_2, text, answer, label, caption, split, id)
    files = [(source, name) for source, raw in raws.items() for name in raw.members() if is_image(name)]
    pictures, of = Pictures(dict.fromkeys(name for _, name in files)), dict[str, set[str]]()
    of_splits = _files(raws, splits)
    for file in of_splits:
        for where, row in tables.rows(file.raw, file.name, columns.of(file, of_splits), quotes):
            for option in ("image", "image_2"):
                if (found := pictures.find(_cell(row, columns, option), where)) is not None:
                    of.setdefault(found, set()).add(_split(row, columns, file, where))
    for source, name in files:
        mine = of.get(name, set())
        yield {"image_id": name, "path": name, "source": source, "split": min(mine) if len(mine) == 1 else None}


def examples(
    raws: Mapping[str, RawFiles],
    image_ids: Collection[str],
    splits: Mapping[str, Any] | None = None,
    image: str = "image",
    image_2: str | None = None,
    text: str | None = None,
    answer: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    split: str | None = None,
    id: str | None = None,
    kind: str | None = None,
    quotes: bool = True,
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One row an example."""
    columns = Columns(image, image_2, text, answer, label, caption, split, id)
    kind = columns.kind() if kind is None else kind
    pictures, odd, count, files = Pictures(image_ids), Odd(), 0, _files(raws, splits)
    several = {file.split for file in files if sum(file.split == other.split for other in files) > 1}
    missing, places = "", dict[str, tuple[str, str]]()
    for file in files:
        given = columns.of(file, files)
        if kind == "question" and "text" not in given:
            raise UserError(
                f"{file.name}: text: an answer needs its question; name its column by `options: {{text: …}}`"
            )
        for where, row in tables.rows(file.raw, file.name, given, quotes):
            count += 1
            cells = {option: row[column] for option, column in given.items()}
            wanted = [cells.get(option) for option in ("image", "image_2") if option in given]
            found = [pictures.find(name, where) for name in wanted]
            if None in found:
                name = wanted[found.index(None)]
                missing = missing or f"{where}: image: there is no {name!r:.80}; {near(name or '', image_ids):.200}"
                odd.add("texts_without_image", where)
                continue
            said = (cells.get("caption" if "caption" in given else "text") or "").strip()
            if not said:
                odd.add("empty_questions" if kind == "question" else "empty_texts", where)
                if kind in ("question", "caption"):
                    continue
            right, name = (cells.get("answer") or "").strip(), (cells.get("id") or "").strip()
            if name and places.get(name, (file.name,))[0] != file.name:
                odd.add("ids_in_two_files", where)
                name = f"{file.word}/{name}"
            if name and (earlier := places.setdefault(name, (file.name, where))[1]) != where:
                raise UserError(f"{where}: id: {name!r:.80} is that of {earlier} too; give each row an id of its own")
            label = _flag(_whole(odd.label(cells.get("label"), f"{where}: label")), kind)
            odd.spelling(label, f"{where}: label")
            yield {
                "example_id": name or where,
                "kind": kind,
                "image_ids": found,
                "split": _split(row, columns, file, where),
                "part": file.word if file.split in several else None,
                "text": said,
                "answers": [{"answer": right, "score": 1.0}] if right else None,
                "label": label,
            }
    if missing and 2 * odd.count("texts_without_image") > count:
        raise UserError(f"{missing}, and so it is with {odd.count('texts_without_image'):,} of {count:,} rows")
    yield from odd.notes()


def _whole(label: str | None) -> str | None:
    """The label; 1.0 as 1, since tables write whole numbers as fractions where a cell of their column is empty."""
    return label if label is None or WHOLE.fullmatch(label) is None else label.partition(".")[0]


def _flag(label: str | None, kind: str) -> str | None:
    """The label; of pairs true and false in any case, as spreadsheets write TRUE."""
    return label.lower() if kind == "pair" and label is not None and label.lower() in ("true", "false") else label


def _cell(row: tables.Cells, columns: Columns, option: str) -> str | None:
    column = getattr(columns, option)
    return None if column is None else row[column]


def _split(row: tables.Cells, columns: Columns, file: SplitFile, where: str) -> str:
    if columns.split is None:
        return file.split
    word = (row[columns.split] or "").strip()
    if word.lower() not in SPLITS:
        raise UserError(f"{where}: {columns.split}: {word!r:.80} is no split; valid: {', '.join(SPLITS)}")
    return SPLITS[word.lower()]


def _files(raws: Mapping[str, RawFiles], splits: Mapping[str, Any] | None) -> list[SplitFile]:
    every = {name: raw for raw in raws.values() for name in raw.members() if name.lower().endswith(OWN)}
    if splits is not None:
        return ended_files(raws, splits)
    if len(every) != 1:
        said = f"hold {len(every)} tables" if every else f"hold no table ({' '.join(OWN)})"
        raise UserError(f"{', '.join(raws)} {said}; name them by `options: {{splits: {{train: FILE}}}}`")
    return [SplitFile(raw, name, "train", "") for name, raw in every.items()]
