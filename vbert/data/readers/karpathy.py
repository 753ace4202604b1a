"""Karpathy's splits of COCO 2014, Flickr30k and Flickr8k (Karpathy and Fei-Fei 2015): captions of photos.

`dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json` hold `images`: filename, split, sentences (of
raw and sentid) and, of COCO's, filepath and cocoid. Where several are given, `options: {of: flickr8k}` says which.

- `restval`, the rest of COCO's val, joins train.
- A photo's id is its number in COCO (cocoid), as in `coco_2014`: `images: {from: coco_2014}`; elsewhere its name
  without the ending. Photos `FILENAME` may be in any folders. `options: {unlisted: keep}` of the images keeps those
  beside, which are in no split, for other texts about them.
- A caption's id is PLACE/K/SENTID: place of the photo in the file and of the sentence in the photo, in as many digits
  as sort in the file's order, which the folds of retrieval and the first five captions go by.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.names import count_of, ending, is_image
from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import check_choice, checked
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json", ".txt", ".md")

DATA_SETS = ("coco", "flickr30k", "flickr8k")
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class SentenceRow(TypedDict):
    raw: str
    sentid: int


class PhotoRow(TypedDict):
    filename: str
    split: str
    sentences: list[SentenceRow]
    cocoid: NotRequired[int | None]


class Dataset(TypedDict):
    images: list[PhotoRow]


def images(raws: Mapping[str, RawFiles], of: str | None = None, unlisted: str = "skip") -> Iterator[ImageRow]:
    """Every photo that the file lists; `unlisted: keep`: and those beside them."""
    check_choice(unlisted, ("skip", "keep"), "unlisted")
    photos, listed = PhotoStems(raws), set[tuple[str, str]]()
    for where, row, split, image_id in _photos(raws, of):
        source, member = photos.find(_stem(row["filename"]), where)
        listed.add((source, member))
        yield {"image_id": image_id, "path": member, "source": source, "split": split}
    for source, raw in raws.items() if unlisted == "keep" else ():
        for member in raw.members():
            if is_image(member) and (source, member) not in listed:
                yield {"image_id": _stem(member), "path": member, "source": source, "split": None}


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], of: str | None = None
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One caption an example."""
    odd, photos = Odd(), list(_photos(raws, of))
    digits = max(6, len(str(len(photos))))
    for place, (where, row, split, image_id) in enumerate(photos):
        for k, sentence in enumerate(row["sentences"]):
            text = sentence["raw"].strip()
            if not text:
                odd.add("empty_captions", f"{where}: sentences[{k}]")
                continue
            yield {
                "example_id": f"{place:0{digits}}/{k:03}/{sentence['sentid']}",
                "kind": "caption",
                "image_ids": [image_id],
                "split": split,
                "text": text,
            }
    yield from odd.notes()


def _photos(raws: Mapping[str, RawFiles], of: str | None) -> Iterator[tuple[str, PhotoRow, str, str]]:
    """(place, row, split, the photo's id) of every photo."""
    if of is not None:
        check_choice(of, DATA_SETS, "of")
    wanted = {f"dataset_{name}.json" for name in DATA_SETS if of in (None, name)}
    found = [(raw, name) for raw in raws.values() for name in raw.members() if name.rpartition("/")[2] in wanted]
    if len(found) != 1:
        raise UserError(
            f"{', '.join(raws)} hold {count_of(found, 'file')} called {' or '.join(sorted(wanted))}; give one, or say "
            f"which by `options: {{of: {' | '.join(DATA_SETS)}}}`"
        )
    ((raw, name),) = found
    seen: dict[str, str] = {}
    for at, row in enumerate(checked(raw.read(name), Dataset, name)["images"]):
        where = f"{name}: images[{at}]"
        if row["split"] not in SPLITS:
            raise UserError(f"{where}: split: must be one of {', '.join(SPLITS)}, not {row['split']!r:.80}")
        number = row.get("cocoid")
        image_id = _stem(row["filename"]) if number is None else str(number)
        if (other := seen.setdefault(image_id, where)) != where:
            raise UserError(f"{where}: the photo {image_id!r:.80} is listed before, at {other}")
        yield where, row, SPLITS[row["split"]], image_id


def _stem(name: str) -> str:
    last = name.rpartition("/")[2]
    return last.removesuffix(ending(last))
