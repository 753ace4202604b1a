"""`vbert init --data`: writes a first data set of the user's own: a spec, five examples, their images, and a recipe."""

from __future__ import annotations

from pathlib import Path

from vbert.errors import UserError

SPEC = """\
# A data set of your own. Every field: `vbert show --fields datasets`. Paths are relative to this file.
name: my_data
title: My photos with questions
licence: private
tasks: [vqa]
sources:
  photos: {path: photos}            # a folder, a .zip or a .tar; or url: … with sha256: …
  texts: {path: examples.jsonl}
images: {reader: jsonl, sources: [photos]}
examples: {reader: jsonl, sources: [texts]}
"""
EXAMPLES = """\
{"image": "red.png", "text": "which colour is it?", "answer": "red", "split": "train"}
{"image": "blue.png", "text": "which colour is it?", "answer": "blue", "split": "train"}
{"image": "red.png", "text": "is it blue?", "answer": "no", "split": "train"}
{"image": "green.png", "text": "is it blue?", "answer": "no", "split": "val"}
{"image": "yellow.png", "text": "is it blue?", "answer": "no", "split": "test"}
"""
RECIPE = """\
# about a minute on two cores; a first run of my_data.yaml, too small to learn anything
data:
  shapes: {spec: shapes, images: 60}
  mine: {spec: my_data.yaml}
detector: {spec: shapes_cnn, train: {data: shapes, steps: 20, batch_size: 4}}
regions: {boxes: {rule: adaptive, minimum: 1, maximum: 4, score: 0.1}}
vocabulary: {size: 200}
model: {layers: 1, hidden_size: 32, heads: 2}
downstream:
  vqa: {data: mine, start: none, steps: 20, batch_size: 4, learning_rate: 1.0e-3}
"""
COLOURS = {"red": (200, 40, 40), "blue": (40, 70, 200), "green": (40, 150, 70), "yellow": (220, 200, 40)}
SIDE = 64


def start_data(folder: Path) -> list[Path]:
    """Write the files into a new or empty `folder`. Returns them. Raises UserError where it holds something."""
    from PIL import Image, ImageDraw

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; give another folder with --to")
    (folder / "photos").mkdir(parents=True)
    texts = {"my_data.yaml": SPEC, "examples.jsonl": EXAMPLES, "recipe.yaml": RECIPE}
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (SIDE, SIDE), (245, 245, 240))
        ImageDraw.Draw(image).ellipse((12, 12, SIDE - 12, SIDE - 12), fill=colour)
        image.save(folder / "photos" / f"{name}.png")
    return [folder / name for name in texts]
