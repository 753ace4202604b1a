"""The generator's files: images/000123.png, scenes.jsonl, texts.jsonl, oracles.json in one Raw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vbert.data.raw import RawWriter
from vbert.data.shapes import Scene, ShapesSettings, scene
from vbert.data.shapes_draw import png

REPORT_EVERY = 200  # scenes between two reports of progress


def write(directory: Path, settings: ShapesSettings, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Make all scenes and texts of `settings` and write them into `directory`; returns the figures worth a line."""
    scenes = []
    with RawWriter(directory) as raw:
        for index in range(settings.images):
            made = scene(settings, index)
            scenes.append(made)
            raw.add(f"images/{made.image_id}.png", png(made))
            if index % REPORT_EVERY == 0:
                progress(index, settings.images)
        raw.add("scenes.jsonl", _lines(scene_row(made) for made in scenes))
    progress(settings.images, settings.images)
    return {"images": len(scenes), "boxes": sum(len(made.objects) for made in scenes)}


def scene_row(made: Scene) -> dict[str, Any]:
    """The scene graph as it is published; boxes are x1, y1, x2, y2 of the visible pixels."""
    return {
        "image_id": made.image_id,
        "split": made.split,
        "width": made.size,
        "height": made.size,
        "background": made.background[0],
        "smooth": made.smooth,
        "objects": [
            {"shape": o.shape, "color": o.colour, "size": o.size, "box": list(o.box), "rgb": list(o.rgb)}
            for o in made.objects
        ],
    }


def _lines(rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
