"""Referring expressions on COCO 2014 (Yu et al. 2016; Mao et al. 2016): `refs(SPLITBY).p` beside `instances.json`.

For RefCOCO and RefCOCO+ (`split_by: unc`, the default, or `google`) and RefCOCOg (`umd`, or `google`). An expression is
an example of kind `phrases` with its sent_id as id: one phrase over the whole text, with the box of the object meant.

- `boxes` are those of all objects of the image, as COCO's annotators drew them, without crowds (`iscrowd`), unless one
  is meant; the "given" boxes of published figures.
- testA (people) and testB (other things) are parts of the split test.
- Photos are known by COCO's number, as those of `coco_2014`: `images: {from: coco_2014}`.
- `google` divides objects, not photos: its evaluation splits share photos with train. That is counted, with a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from vbert.data.boxes import Corners
from vbert.data.names import count_of
from vbert.data.readers import ReaderNote
from vbert.data.readers._odd import Odd
from vbert.data.readers._rows import check_choice, checked, flag
from vbert.data.refs import Ref, read_refs
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".json", ".p")

SPLITS = ("train", "val", "test", "testA", "testB")
SPLITS_BY = ("unc", "umd", "google")
OBJECTS = "instances.json"
MOST_BYTES = 1 << 28  # of a pickle


class ObjectRow(TypedDict):
    id: int
    image_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: NotRequired[Any]


class Instances(TypedDict):
    annotations: list[ObjectRow]


def examples(
    raws: Mapping[str, RawFiles], image_ids: Collection[str], split_by: str = "unc"
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One expression an example."""
    check_choice(split_by, SPLITS_BY, "split_by")
    raw, name = _file(raws, f"refs({split_by}).p")
    refs = read_refs(raw.read(name, MOST_BYTES), name)
    objects = _objects(*_file(raws, OBJECTS))
    odd, known = Odd(), dict[int, str]()
    for at, ref in enumerate(refs):
        where, image, split = f"{name}: [{at}]", ref["image_id"], ref["split"]
        if split not in SPLITS:
            raise UserError(f"{where}: split: must be one of {', '.join(SPLITS)}, not {split!r:.80}")
        part = split if split in ("testA", "testB") else None
        around = objects.get(image, {})
        if ref["ann_id"] not in around:
            raise UserError(f"{where}: ann_id: {OBJECTS} has no object {ref['ann_id']} of image {image}")
        meant = around[ref["ann_id"]][0]
        boxes = [list(box) for number, (box, crowd) in around.items() if not crowd or number == ref["ann_id"]]
        for k, expression in enumerate(ref["sentences"]):
            place, text, number = f"{where}: sentences[{k}]", expression["sent"].strip(), expression["sent_id"]
            if (other := known.setdefault(number, place)) != place:
                raise UserError(f"{place}: sent_id: {number} occurs before, at {other}")
            if not text:
                odd.add("empty_expressions", place)
                continue
            yield {
                "example_id": str(number),
                "kind": "phrases",
                "image_ids": [str(image)],
                "split": "test" if part else split,
                "part": part,
                "text": text,
                "phrases": [{"start": 0, "end": len(text), "boxes": [list(meant)]}],
                "boxes": boxes,
            }
    yield from odd.notes()
    yield from _shared(refs)


def _shared(refs: Sequence[Ref]) -> Iterator[ReaderNote]:
    """A warning of evaluation splits whose photos are in train."""
    trained = {ref["image_id"] for ref in refs if ref["split"] == "train"}
    for split in ("val", "test"):
        evaluated = {ref["image_id"] for ref in refs if ref["split"].startswith(split)}
        if shared := evaluated & trained:
            said = (
                f"{len(shared):,} of the {count_of(evaluated, 'photo')} of {split} are in train too, with other "
                f"objects: the figures of {split} are not those of new photos (RefCOCOg has `split_by: umd`)"
            )
            yield ReaderNote(f"shared_photos_{split}", len(shared), said)


def _objects(raw: RawFiles, name: str) -> dict[int, dict[int, tuple[Corners, bool]]]:
    """image_id → ann_id → (box as x1, y1, x2, y2, whether it is a crowd's)"""
    found: dict[int, dict[int, tuple[Corners, bool]]] = {}
    for at, row in enumerate(checked(raw.read(name), Instances, name)["annotations"]):
        where = f"{name}: annotations[{at}]"
        x, y, width, height = row["bbox"]
        of = found.setdefault(row["image_id"], {})
        if row["id"] in of:
            raise UserError(f"{where}: id: {row['id']} occurs before")
        of[row["id"]] = (x, y, x + width, y + height), flag(row.get("iscrowd"), f"{where}: iscrowd")
    return found


def _file(raws: Mapping[str, RawFiles], wanted: str) -> tuple[RawFiles, str]:
    """The one file of that name. Raises UserError for none and for several."""
    every = [(raw, name) for raw in raws.values() for name in raw.members()]
    found = [(raw, name) for raw, name in every if f"/{name}".endswith(f"/{wanted}")]
    if len(found) != 1:
        hint = f"; {near(wanted, [name for _, name in every]):.200}" if not found else ""
        raise UserError(f"{', '.join(raws)}: {count_of(found, 'file')} are called {wanted}, not one{hint}")
    return found[0]
