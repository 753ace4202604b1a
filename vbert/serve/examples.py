"""Examples to click: scenes that the generator of `shapes` draws at the start, with texts that the model can read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from vbert.serve.data_address import data_address

if TYPE_CHECKING:
    from vbert.inference.visualbert import VisualBert

MOST = 6  # of a task
OF_ONE_THING = ("color", "exists", "shape")  # types of questions of a model that knows no numbers
SCENES = 24
SEED = 1_000_003  # not that of any shipped recipe: scenes that no model was trained on

Row = Mapping[str, Any]
# Of each task the kind of row whose text it asks about, and the arguments that a row gives.
ASKED: Mapping[str, tuple[str, Callable[[Row], Iterator[dict[str, Any]]]]] = {
    "answer": ("question", lambda row: iter([{"question": row["text"]}])),
    "classify": ("sentiment", lambda row: iter([{"text": row["text"]}])),
    "sentiment": ("sentiment", lambda row: iter([{"text": row["text"]}])),
    "true": ("pair", lambda row: iter([{"statement": row["text"]}])),
    "choose": ("choice", lambda row: iter([{"question": "", "choices": [one["text"] for one in row["choices"]]}])),
    "ground": ("phrases", lambda row: _phrases(row)),
    "match": ("caption", lambda row: iter([{"text": text} for text in (row["text"], *row["negatives"][:1])])),
    "caption": ("caption", lambda row: iter([{}])),
    "fill": ("caption", lambda row: iter([{"text": _masked(row["text"])}])),
    "search": ("caption", lambda row: iter([{"text": row["text"]}])),
}


def examples(model: VisualBert, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of `Example`, of each task some, all of whose words the vocabulary has. A model that answers questions
    without numbers gets scenes of one thing, as easy-VQA's are."""
    from PIL import Image

    from vbert.data.shapes.draw import png
    from vbert.data.shapes.language import facts
    from vbert.data.shapes.scenes import ShapesSettings, scene
    from vbert.data.shapes.write import texts

    labels = set(model.head.get("labels", ()))
    alone = "answer" in tasks and "2" not in labels
    settings = ShapesSettings(seed=SEED, images=SCENES, choices=1, **({"objects_max": 1} if alone else {}))
    scenes = [scene(settings, number) for number in range(SCENES)]
    pictures = {made.image_id: data_address(Image.open(BytesIO(png(made)))) for made in scenes}
    rows, _ = texts(settings, [facts(made) for made in scenes])
    return [
        {
            "pictures": [] if task == "search" else [pictures[image_id] for image_id in row["image_ids"]],
            "task": task,
            "fields": fields,
            "title": _words(fields) or "a scene",
        }
        for task in tasks
        if task in ASKED
        for row, fields in _chosen(model, task, rows)
    ]


def _chosen(model: VisualBert, task: str, rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Up to MOST rows with what is asked of each, no scene and no text twice, of all types of text in turn."""
    kind, arguments = ASKED[task]
    labels = set(model.head.get("labels", ()))
    types = OF_ONE_THING if task == "answer" and "2" not in labels else None
    by_type: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] != kind or (task == "answer" and not {one["answer"] for one in row["answers"]} <= labels):
            continue
        if types is None or row["question_type"] in types:
            by_type.setdefault(row.get("question_type") or "", []).append(row)
    scenes, asked = set[tuple[str, ...]](), set[str]()
    waiting = [iter(its) for _, its in sorted(by_type.items())]
    while waiting and len(scenes) < MOST:
        mine = waiting.pop(0)
        for row in mine:
            fields = next((f for f in arguments(row) if not f or _fresh(model, f, asked)), None)
            if fields is None or tuple(row["image_ids"]) in scenes:
                continue
            scenes.add(tuple(row["image_ids"]))
            asked.add(_words(fields))
            yield row, fields
            waiting.append(mine)
            break


def _fresh(model: VisualBert, fields: Mapping[str, Any], asked: Container[str]) -> bool:
    return _words(fields) not in asked and _readable(model, fields)


def _phrases(row: Row) -> Iterator[dict[str, Any]]:
    for phrase in row["phrases"]:
        yield {"text": row["text"], "phrase": row["text"][phrase["start"] : phrase["end"]]}


def _masked(text: str) -> str:
    """The text without its last word."""
    return f"{text.rpartition(' ')[0]} [MASK]"


def _words(fields: Mapping[str, Any]) -> str:
    """A line of what an example asks."""
    choices = fields.get("choices", ())
    said = [str(value) for name, value in fields.items() if name != "choices" and value]
    return " · ".join([*said, *([" / ".join(choices)] if choices else [])])


def _readable(model: VisualBert, fields: Mapping[str, Any]) -> bool:
    lines = [line for value in fields.values() for line in ([value] if isinstance(value, str) else value)]
    return all(model.encoder.unk not in model.encoder(line.replace("[MASK]", "")).ids for line in lines)
