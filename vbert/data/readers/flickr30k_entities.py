"""Flickr30k Entities (Plummer et al. 2015): captions of Flickr30k whose phrases have boxes.

`Sentences/ID.txt` and `Annotations/ID.xml` (see `vbert/data/entities.py`), the lists `train.txt`, `val.txt` and
`test.txt` of photos, and `UNRELATED_CAPTIONS`, where it is given. A sentence is an example of kind `phrases`; its id is
`ID/K`, K counted from 0 as in the official evaluation. A photo's id is its name without the ending.

- A phrase has all boxes of its chain, and its types. Those of a scene, of what is not to be boxed and of chain 0
  (`notvisual`) have none: they don't count.
- Boxes are counted from 1 in the files. `options: {origin: 0}` (default) takes them as they are, as MDETR and BAN do;
  `origin: 1` takes 1 from all four sides, as the authors' own reader in Python does.
- Captions listed as unrelated to their photos are counted; `options: {unrelated: skip}` leaves them out. Official
  figures have them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vbert.data.entities import annotation, sentences
from vbert.data.names import count_of
from vbert.data.readers import ReaderNote
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import check_choice
from vbert.data.xml import XML_BYTES
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".xml", ".txt", ".md", "UNRELATED_CAPTIONS")

LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}
UNRELATED = "UNRELATED_CAPTIONS"
TEXT_BYTES = 1 << 24


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], origin: int = 0, unrelated: str = "keep"
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One sentence an example, of every photo of the lists."""
    check_choice(str(origin), ("0", "1"), "origin")
    check_choice(unrelated, ("keep", "skip"), "unrelated")
    texts, objects = _by_stem(raws, "Sentences", ".txt"), _by_stem(raws, "Annotations", ".xml")
    splits, odd = _splits(raws), Odd()
    foreign, said = _unrelated(raws), 0
    for photo, (split, listed) in splits.items():
        for files, folder in ((texts, "Sentences"), (objects, "Annotations")):
            if photo not in files:
                raise UserError(f"{listed}: {photo!r:.80} has no file in {folder}; {near(photo, files):.200}")
        raw, name = objects[photo]
        known = annotation(raw.read(name, XML_BYTES), name)
        boxes = {chain: [[side - origin for side in box] for box in its] for chain, its in known.boxes.items()}
        raw, name = texts[photo]
        for k, sentence in enumerate(sentences(_decoded(raw, name, odd), name)):
            if (photo, k + 1) in foreign:
                said += 1
                if unrelated == "skip":
                    continue
            yield {
                "example_id": f"{photo}/{k}",
                "kind": "phrases",
                "image_ids": [photo],
                "split": split,
                "text": sentence.text,
                "phrases": [
                    {"start": p.start, "end": p.end, "boxes": boxes.get(p.chain, []), "types": list(p.types)}
                    for p in sentence.phrases
                ],
            }
    yield from odd.notes()
    if said:
        left_out = unrelated == "skip"
        told = f"{said:,} captions listed as unrelated to their photos{', left out' if left_out else ''}"
        yield ReaderNote("unrelated_captions", said, told, left_out)
    if unlisted := texts.keys() - splits.keys():
        told = f"{count_of(unlisted, 'photo')} with sentences in no list, left out; one of them: {min(unlisted)}"
        yield ReaderNote("unlisted_photos", len(unlisted), told)


def _by_stem(raws: Mapping[str, RawFiles], folder: str, end: str) -> dict[str, tuple[RawFiles, str]]:
    """photo → its file in the folder of that name. Raises UserError for none, or two of one photo."""
    found: dict[str, tuple[RawFiles, str]] = {}
    for raw in raws.values():
        for name in raw.members():
            within, _, last = name.rpartition("/")
            if f"/{within}".endswith(f"/{folder}") and last.endswith(end):
                if last.removesuffix(end) in found:
                    raise UserError(f"{name}: a second {folder}/{last}; give one of them")
                found[last.removesuffix(end)] = raw, name
    if not found:
        raise UserError(f"{', '.join(raws)} hold no {folder}/ID{end}; are they the right files?")
    return found


def _splits(raws: Mapping[str, RawFiles]) -> dict[str, tuple[str, str]]:
    """photo → (split, the line that says so). Raises UserError for no list, and for a photo in two."""
    splits: dict[str, tuple[str, str]] = {}
    for raw in raws.values():
        for name in raw.members():
            folder, _, last = name.rpartition("/")
            if last not in LISTS or f"/{folder}".endswith("/Sentences"):
                continue
            for number, line in enumerate(_text(raw, name).splitlines(), 1):
                if photo := line.strip().removesuffix(".jpg"):
                    where = f"{name}:{number}"
                    if splits.setdefault(photo, (LISTS[last], where)) != (LISTS[last], where):
                        raise UserError(f"{where}: {photo!r:.80} is listed before, at {splits[photo][1]}")
    if not splits:
        raise UserError(f"{', '.join(raws)} hold no train.txt, val.txt or test.txt that names a photo")
    return splits


def _unrelated(raws: Mapping[str, RawFiles]) -> set[tuple[str, int]]:
    """(photo, number of the sentence from 1) of every line `ID NUMBER`."""
    found = set()
    for raw in raws.values():
        for name in raw.members():
            if name.rpartition("/")[2] == UNRELATED:
                for number, line in enumerate(_text(raw, name).splitlines(), 1):
                    if (line := line.strip()) and not line.startswith("#"):
                        if not (match := re.fullmatch(r"(\S+)\s+([0-9]{1,3})", line)):
                            raise UserError(
                                f"{name}:{number}: must be a photo and a sentence's number, not {line!r:.80}"
                            )
                        found.add((match[1], int(match[2])))
    return found


def _text(raw: RawFiles, name: str) -> str:
    return raw.read(name, TEXT_BYTES).decode("utf-8", "replace")


def _decoded(raw: RawFiles, name: str, odd: Odd) -> str:
    data = raw.read(name, TEXT_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        odd.add("texts_not_utf8", name)
        return data.decode("cp1252", "replace")
