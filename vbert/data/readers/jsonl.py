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

An image's id is its name in the folder: `cats/1.jpg`. A line of examples has the columns of EXAMPLES_SCHEMA; `image`
may stand for `image_ids`, `answer` for a single one of `answers`. Unless given, `example_id` is `file:line`, `split`
that of the image, and `kind` is `question` with answers and `caption` without:

    {"image": "cats/1.jpg", "text": "a cat on a mat"}
    {"image": "cats/2.jpg", "text": "how many cats?", "answer": "two", "split": "test"}
    {"image_ids": ["a.png", "b.png"], "kind": "pair", "text": "both show a dog", "label": "true"}

Boxes, for training a detector: a `boxes.jsonl` among the images, `{"image": "cats/1.jpg", "box": [x1, y1, x2, y2],
"class": "cat", "attributes": ["black"]}` a line, in pixels of the image as shown, x2 and y2 exclusive. Splits of
images: `images: {…, options: {splits: {train: train/, test: test/}}}` by how their names begin; else all are `train`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vbert.artifacts.errors import UserError, nearest
from vbert.data.readers import BoxRow, ImageRow

if TYPE_CHECKING:
    from vbert.data.raw import Raw

VERSION = 1

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
FIELDS = {
    "example_id": str,
    "kind": str,
    "image_ids": list,
    "image": str,
    "split": str,
    "text": str,
    "text_b": str,
    "answers": list,
    "answer": str,
    "label": str,
    "question_type": str,
    "phrases": list,
    "negatives": list,
    "unique": bool,
}
BOX_FIELDS = {"image": str, "box": list, "class": str, "attributes": list}


def images(raws: Mapping[str, Raw], splits: Mapping[str, str] | None = None) -> Iterator[ImageRow]:
    """Every file whose name ends as an image's does. `splits`: split → beginning of the names."""
    for source, raw in raws.items():
        for name in raw.members():
            if name.lower().endswith(ENDINGS):
                found = [split for split, start in (splits or {"train": ""}).items() if name.startswith(start)]
                yield {"image_id": name, "path": name, "source": source, "split": found[0] if found else None}


def boxes(raws: Mapping[str, Raw], splits: Mapping[str, str] | None = None) -> Iterator[BoxRow]:
    """The lines of every `boxes.jsonl`."""
    for where, row in _lines(raws, "boxes.jsonl", BOX_FIELDS):
        box = row.get("box")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
            raise UserError(f"{where}: box: must be [x1, y1, x2, y2] in pixels, not {box!r:.80}")
        if "image" not in row or "class" not in row:
            raise UserError(f"{where}: a box needs `image` and `class`")
        x1, y1, x2, y2 = map(float, box)
        if not (x1 < x2 and y1 < y2):
            raise UserError(f"{where}: box: x2 and y2 must be beyond x1 and y1, not {box!r:.80}")
        yield {
            "image_id": row["image"],
            "x1": x1,
            "y1": y1,
            "x2": x2,
            "y2": y2,
            "class": row["class"],
            "attributes": row.get("attributes", []),
        }


def examples(raws: Mapping[str, Raw], image_ids: Collection[str]) -> Iterator[dict[str, Any]]:
    """The lines of every `.jsonl` but `boxes.jsonl`. Raises UserError as `file:line: field: what`."""
    for where, row in _lines(raws, ".jsonl", FIELDS):
        if "image" in row:
            row["image_ids"] = [row.pop("image")]
        if "answer" in row:
            row["answers"] = [{"answer": row.pop("answer"), "score": 1.0}]
        for field in ("image_ids", "text"):
            if not row.get(field):
                raise UserError(f"{where}: {field}: is missing" + (" (or `image`)" if field == "image_ids" else ""))
        for image_id in row["image_ids"]:
            if image_id not in image_ids:
                hint = nearest(str(image_id), [i for i in image_ids if i[:1] == str(image_id)[:1]][:2000])
                raise UserError(f"{where}: there is no image {image_id!r}; {hint:.200}")
        row.setdefault("example_id", where)
        row.setdefault("kind", "question" if "answers" in row else "caption")
        yield row


def _lines(raws: Mapping[str, Raw], ending: str, fields: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line of the files with that ending, the types of its fields checked."""
    for raw in raws.values():
        for name in raw.members():
            if not name.endswith(ending) or (fields is FIELDS and name.endswith("boxes.jsonl")):
                continue
            with raw.open(name) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{name}:{number}", _checked(line, f"{name}:{number}", fields)


def _checked(line: bytes, where: str, fields: Mapping[str, type]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a line must be an object {{…}}, not {line[:40]!r}")
    for field, value in row.items():
        if field not in fields:
            raise UserError(f"{where}: there is no field {field!r}; {nearest(field, fields)}")
        if not isinstance(value, fields[field]):
            raise UserError(f"{where}: {field}: must be a {fields[field].__name__}, not {value!r:.80}")
    return row
