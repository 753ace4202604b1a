"""The photos and captions of a list of links, as the stage `fetch_links` keeps them: for specs with `links`.

`links-UNIT.jsonl` say of every link its number, caption and split, and the photo that came of it, if any. The number,
nine digits of it, is the id of the photo and of its caption.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import lines
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1


class LinkRow(TypedDict):
    number: int
    caption: str
    split: str
    photo: str | None


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow | ReaderNote]:
    """Every photo that came."""
    dead = 0
    for source, _, row in _rows(raws):
        if row["photo"] is None:
            dead += 1
        else:
            yield {"image_id": _id(row), "path": row["photo"], "source": source, "split": row["split"]}
    if dead:
        yield ReaderNote("dead_links", dead, f"{dead:,} links without a photo, left out", left_out=True)


def examples(raws: Mapping[str, RawFiles], image_ids: Collection[str]) -> Iterator[dict[str, Any] | ReaderNote]:
    """The caption of every photo that came."""
    odd = Odd()
    for _, where, row in _rows(raws):
        if row["photo"] is None:
            continue
        if not row["caption"].strip():
            odd.add("empty_captions", where)
            continue
        yield {
            "example_id": _id(row),
            "kind": "caption",
            "image_ids": [_id(row)],
            "text": row["caption"].strip(),
        }
    yield from odd.notes()


def _id(row: LinkRow) -> str:
    return f"{row['number']:09}"


def _rows(raws: Mapping[str, RawFiles]) -> Iterator[tuple[str, str, LinkRow]]:
    """(source, place, row) of every link."""
    names = [
        (source, raw, name)
        for source, raw in raws.items()
        for name in raw.members()
        if name.startswith("links-") and name.endswith(".jsonl")
    ]
    if not names:
        raise UserError(f"{', '.join(raws)} hold no links-….jsonl; does the spec say `links`?")
    for source, raw, name in names:
        for where, row in lines(raw, name, LinkRow):
            yield source, where, row
