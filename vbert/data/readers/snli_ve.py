"""SNLI-VE (Xie et al. 2019): whether a photo entails a hypothesis, is neutral to it, or contradicts it.

Either `snli_1.0_{train,dev,test}.jsonl` beside `flickr30k_train_val.lst` and `flickr30k_test.lst`, or the finished
`snli_ve_{train,dev,test}.jsonl`; photos `ID.jpg` in any folder. From SNLI's files (`vet/tools/snli_ve_generator.py` of
necla-ml/SNLI-VE): rows with a gold label and a pairID without `vg_`, the photo being the pairID up to `.jpg`; its split
by the photo's list, the last 1,000 of train_val being the split val.

- The text is the hypothesis alone. `sentence1`, a caption of the photo, is not read: it would stand in for the photo.
- Labels are entailment, neutral and contradiction; a photo's id is its name without the ending.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from vbert.data.names import count_of
from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems, split_files
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import lines
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".jsonl", ".lst", ".txt", ".md")

NAMED = re.compile(r"(?:.*/)?(?:snli_1\.0|snli_ve)_(train|dev|test)\.jsonl")
WORDS = {"train": "train", "dev": "val", "test": "test"}
HELD_OUT = 1000  # photos at the end of flickr30k_train_val.lst that are the split val
LABELS = ("entailment", "neutral", "contradiction")
NO_LABEL = "-"  # where SNLI's annotators disagree


class Row(TypedDict):
    """Without `sentence1`: what the type doesn't name is not kept."""

    gold_label: str
    pairID: str
    sentence2: str


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow]:
    """Every photo with a hypothesis."""
    photos, seen = PhotoStems(raws), set[str]()
    for where, row, split in _rows(raws, []):
        if (image_id := _photo(row)) not in seen:
            seen.add(image_id)
            source, member = photos.find(image_id, f"{where}: pairID")
            yield {"image_id": image_id, "path": member, "source": source, "split": split}


def examples(raws: Mapping[str, RawFiles], image_ids: Collection[str]) -> Iterator[dict[str, object] | ReaderNote]:
    """One hypothesis an example."""
    odd, unsettled = Odd(), list[str]()
    for where, row, split in _rows(raws, unsettled):
        label = odd.label(row["gold_label"], f"{where}: gold_label")
        if label not in LABELS:
            raise UserError(f"{where}: gold_label: must be one of {', '.join(LABELS)}, not {label!r:.80}")
        if (image_id := _photo(row)) in image_ids:
            yield {
                "example_id": row["pairID"],
                "kind": "sentiment",
                "image_ids": [image_id],
                "split": split,
                "text": row["sentence2"].strip(),
                "label": label,
            }
    yield from odd.notes()
    if unsettled:
        said = f"{count_of(unsettled, 'row')} without a gold label, left out; the first: {unsettled[0]}"
        yield ReaderNote("no_gold_label", len(unsettled), said, left_out=True)


def _photo(row: Row) -> str:
    return row["pairID"].partition(".jpg")[0]


def _rows(raws: Mapping[str, RawFiles], unsettled: list[str]) -> Iterator[tuple[str, Row, str]]:
    """(place, row, split); the places of rows without a label are added to `unsettled`. Those of Visual Genome's
    captions belong to no photo here."""
    files = split_files(raws, None, NAMED, WORDS, "snli_1.0_train.jsonl or snli_ve_train.jsonl")
    parted = _split_of_photos(raws) if any("snli_1.0_" in file.name for file in files) else None
    for file in files:
        for where, row in lines(file.raw, file.name, Row):
            if row["pairID"].startswith("vg_"):
                continue
            if row["gold_label"] == NO_LABEL:
                unsettled.append(where)
                continue
            yield where, row, file.split if parted is None else _split(row, parted, where)


def _split(row: Row, parted: Mapping[str, str], where: str) -> str:
    if (split := parted.get(_photo(row))) is None:
        raise UserError(f"{where}: pairID: the photo {_photo(row)!r:.80} is in neither of Flickr30k's lists")
    return split


def _split_of_photos(raws: Mapping[str, RawFiles]) -> dict[str, str]:
    """Photo → split, by the two lists. Raises UserError where one is missing."""
    known: dict[str, str] = {}
    for name, last in (("flickr30k_train_val.lst", "val"), ("flickr30k_test.lst", "test")):
        found = [
            (raw, member) for raw in raws.values() for member in raw.members() if f"/{member}".endswith(f"/{name}")
        ]
        if len(found) != 1:
            raise UserError(f"{', '.join(raws)}: {len(found)} files are called {name}; SNLI's files need it once")
        ((raw, member),) = found
        photos = [
            line.split()[0].partition(".")[0]
            for line in raw.read(member).decode("utf-8", "replace").splitlines()
            if line.strip()
        ]
        held_out = len(photos) if last == "test" else HELD_OUT
        known |= dict.fromkeys(photos[: len(photos) - held_out], "train")
        known |= dict.fromkeys(photos[len(photos) - held_out :], last)
    return known
