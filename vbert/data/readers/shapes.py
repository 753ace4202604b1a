"""The built-in generator's files: `scenes.jsonl` and `texts.jsonl` hold the tables' rows already.

A box's attributes are its colour and its size (small, medium, large), in this order. `question_type` of a caption
is its kind: list, description, relation, count or statement. Captions have the `scene`, for which a text is checked by
`vbert.data.shapes.checking`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from vbert.data.readers import ImageRow, only
from vbert.data.readers._rows import ExampleRow, lines

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2


class ObjectLine(TypedDict):
    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]


class SceneLine(TypedDict):
    image_id: str
    split: str
    width: int
    ground: tuple[int, int, int]
    objects: list[ObjectLine]


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class TextLine(ExampleRow, total=False):
    """A line of texts; columns that EXAMPLES_SCHEMA doesn't have are refused when the table is written."""


def images(raws: Mapping[str, RawFiles]) -> Iterator[ImageRow]:
    for scene in _rows(raws, "scenes.jsonl", SceneLine):
        image_id = scene["image_id"]
        yield {"image_id": image_id, "path": f"images/{image_id}.png", "split": scene["split"]}


def boxes(raws: Mapping[str, RawFiles]) -> Iterator[dict[str, Any]]:
    """Ground truth: tight around the visible pixels of each shape."""
    for scene in _rows(raws, "scenes.jsonl", SceneLine):
        for item in scene["objects"]:
            x1, y1, x2, y2 = item["box"]
            attributes = [item["color"], item["size"]]
            place = {"image_id": scene["image_id"], "x1": x1, "y1": y1, "x2": x2, "y2": y2}
            yield place | {"class": item["shape"], "attributes": attributes}


def examples(raws: Mapping[str, RawFiles], image_ids: set[str], group_pairs: bool = False) -> Iterable[dict[str, Any]]:
    """group_pairs: the four pairs of a statement are a group, by the id that they share."""
    scenes = {scene["image_id"]: _scene(scene) for scene in _rows(raws, "scenes.jsonl", SceneLine)}
    for row in _rows(raws, "texts.jsonl", TextLine):
        if image_ids.issuperset(row.get("image_ids") or ()):
            if row.get("kind") == "caption" and row.get("image_ids"):
                row = row | {"scene": scenes.get(row["image_ids"][0])}
            if group_pairs and row["kind"] == "pair":
                row = row | {"group": row["example_id"].rpartition("/")[0]}
            yield row


def _scene(scene: SceneLine) -> str:
    things = [[item["shape"], item["color"], item["size"], *item["box"]] for item in scene["objects"]]
    content = {"side": scene["width"], "ground": scene["ground"], "things": things}
    return json.dumps({"shapes": content}, separators=(",", ":"))


def _rows(raws: Mapping[str, RawFiles], name: str, kind: Any) -> Iterator[Any]:
    return (row for _, row in lines(only(raws, "the shapes generator"), name, kind))
