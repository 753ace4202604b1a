"""Writes the generator's files: images/000123.png, scenes.jsonl, texts.jsonl, oracles.json in one `RawFiles`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vbert.data.raw import RawWriter
from vbert.data.shapes import oracles as oracle
from vbert.data.shapes.captions import captions
from vbert.data.shapes.draw import png
from vbert.data.shapes.elsewhere import add_false_of
from vbert.data.shapes.language import SceneFacts, SplitScenes, facts
from vbert.data.shapes.pairs import choices, pairs, phrases, sentiments
from vbert.data.shapes.questions import questions
from vbert.data.shapes.scene import Scene
from vbert.data.shapes.scenes import ShapesSettings, scene

Row = dict[str, Any]
REPORT_EVERY = 200  # scenes between two reports of progress
SPLITS = ("train", "val", "test")


def write(directory: Path, settings: ShapesSettings, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Make all scenes and texts of `settings` and write them into `directory`; returns the figures worth a line."""
    scenes = []
    with RawWriter(directory) as raw:
        for number in range(settings.images):
            made = scene(settings, number)
            scenes.append(made)
            raw.add(f"images/{made.image_id}.png", png(made))
            if number % REPORT_EVERY == 0:
                progress(number, settings.images)
        rows, oracles = texts(settings, [facts(made) for made in scenes])
        raw.add("scenes.jsonl", _lines(scene_row(made) for made in scenes))
        raw.add("texts.jsonl", _lines(rows))
        raw.add("oracles.json", json.dumps(oracles, indent=1, sort_keys=True).encode())
    progress(settings.images, settings.images)
    kinds = Counter(row["kind"] for row in rows)
    return {"images": len(scenes), "boxes": sum(len(made.objects) for made in scenes)} | dict(sorted(kinds.items()))


def texts(settings: ShapesSettings, scenes: Sequence[SceneFacts]) -> tuple[list[Row], dict[str, Any]]:
    """All examples of `scenes`, and the oracles."""
    rows: list[Row] = []
    retrieval, captioning = {}, {}
    for name in SPLITS:
        members = [scene for scene in scenes if scene.split == name]
        split = SplitScenes(members)
        captioned = list(captions(settings, split))
        add_false_of(settings, split, captioned)
        rows += [row for _, _, row in captioned]
        rows += questions(settings, members)
        rows += pairs(settings, members)
        rows += sentiments(settings, members)
        rows += phrases(settings, members)
        rows += choices(settings, (row for _, _, row in captioned))
        if name != "train" and members:
            retrieval[name] = oracle.retrieval(
                split, [(p, row["question_type"], meaning) for p, meaning, row in captioned]
            )
            captioning[name] = oracle.caption_scores([row for _, _, row in captioned])
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    figures = {
        "question": oracle.answers(by_kind.get("question", [])),
        "sentiment": oracle.sentiments(by_kind.get("sentiment", [])),
        "pair": oracle.pairs(by_kind.get("pair", [])),
        "phrases": oracle.phrases(by_kind.get("phrases", []), {s.image_id: len(s.things) for s in scenes}),
        "retrieval": retrieval,
        "captioning": captioning,
    }
    if chosen := by_kind.get("choice"):
        figures["choice"] = oracle.choices(chosen)
    return rows, figures


def scene_row(made: Scene) -> dict[str, Any]:
    """The scene graph as it is published; boxes are x1, y1, x2, y2 of the visible pixels."""
    return {
        "image_id": made.image_id,
        "split": made.split,
        "width": made.size,
        "height": made.size,
        "background": made.background[0],
        "ground": list(made.background[1]),
        "smooth": made.smooth,
        "objects": [
            {"shape": o.shape, "color": o.colour, "size": o.size, "box": list(o.box), "rgb": list(o.rgb)}
            for o in made.objects
        ],
    }


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
