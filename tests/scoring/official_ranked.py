"""Small files of Flickr30k Entities, COCO retrieval and RefCOCO, drawn from a seed, as their evaluators read them.

`python tests/scoring/official_ranked.py DIR` writes them; `official_ranked.json` says what the evaluators made of them,
and how they were run.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from scoring.official_inputs import Draws, digest
from scoring.score_world import OBJECT, XML

TYPES = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
IMAGES = 40  # of retrieval, with five texts each


def write(folder: Path) -> None:
    """grounding/, retrieval/ and refcoco/."""
    for make in (grounding, retrieval, refcoco):
        (folder / make.__name__).mkdir(parents=True)
        make(folder / make.__name__, Draws(1))


def grounding(folder: Path, draw: Draws) -> None:
    """Chains of up to three boxes, some of two chains; predicted boxes are true ones moved a little, or others."""
    for part in ("Annotations", "Sentences"):
        (folder / part).mkdir()
    rows: list[dict[str, Any]] = []
    photos = [str(1000 + n) for n in range(30)]
    for photo in photos:
        chains: dict[str, list[list[int]]] = {}
        objects = []
        for n in range(1, draw.one((3, 4, 5, 6))):
            for _ in range(draw.one((0, 1, 1, 2, 3))):
                box = _box(draw)
                names = [str(n), *([str(n + 10)] if draw.chance(0.2) else [])]
                for name in names:
                    chains.setdefault(name, []).append(box)
                objects.append(OBJECT.format("".join(f"<name>{name}</name>" for name in names), *box))
        objects.append("<object><name>90</name><scene>1</scene><nobndbox>1</nobndbox></object>")
        (folder / "Annotations" / f"{photo}.xml").write_text(XML.format("".join(objects)))
        lines = []
        for k in range(5):
            words, boxes = ["Here"], []
            for _ in range(draw.one(range(4))):
                name = draw.one([*chains, "90", "0"])
                types = "/".join(dict.fromkeys(draw.one(TYPES) for _ in range(draw.one((1, 1, 1, 2)))))
                words.append(f"[/EN#{name}/{types} the thing] and")
                if name in chains:
                    boxes.append([_near(draw, chains[name]) for _ in range(draw.one((1, 3, 8, 12)))])
            lines.append(" ".join([*words, "more ."]))
            rows.append({"image_id": photo, "sentence_id": k, "boxes": boxes})
        (folder / "Sentences" / f"{photo}.txt").write_text("\n".join(lines) + "\n")
    (folder / "test.txt").write_text("\n".join(photos) + "\n")
    (folder / "p.json").write_text(json.dumps(rows))


def _box(draw: Draws) -> list[int]:
    x, y = draw.one(range(60)), draw.one(range(60))
    return [x, y, x + draw.one(range(5, 40)), y + draw.one(range(5, 40))]


def _near(draw: Draws, boxes: list[list[int]]) -> list[int]:
    if draw.chance(0.6):
        return _box(draw)
    x1, y1, x2, y2 = (side + draw.one(range(-4, 5)) for side in draw.one(boxes))
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


def retrieval(folder: Path, draw: Draws) -> None:
    """Scores that are all different, higher at an image's own texts."""
    texts = 5 * IMAGES
    drawn = [[draw.random() + 0.6 * (t // 5 == i) for t in range(texts)] for i in range(IMAGES)]
    np.savez(folder / "scores.npz", scores=np.array(drawn), image_ids=range(IMAGES), text_ids=range(texts))
    rows = [{"id": t, "image_id": t // 5, "caption": "a"} for t in range(texts)]
    content = {"images": [{"id": i} for i in range(IMAGES)], "annotations": rows}
    (folder / "captions.json").write_text(json.dumps(content))


def refcoco(folder: Path, draw: Draws) -> None:
    """Boxes with halves of pixels, near the true ones."""
    things, refs, found = [], [], []
    for n in range(150):
        x1, y1, x2, y2 = _box(draw)
        things.append({"id": n, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        sentences = [{"sent_id": 2 * n + k, "sent": "it", "raw": "it"} for k in range(2)]
        common = {"ref_id": n, "ann_id": n, "image_id": 1, "category_id": 1}
        refs.append({**common, "split": "testA", "sentences": sentences})
        for one in sentences:
            a, b, c, d = (side + draw.one(range(-12, 13)) / 2 for side in (x1, y1, x2 - x1, y2 - y1))
            found.append({"sent_id": one["sent_id"], "pred_box": [a, b, max(c, 1.0), max(d, 1.0)]})
    (folder / "instances.json").write_text(json.dumps({"annotations": things}))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "p.json").write_text(json.dumps(found))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(digest(Path(sys.argv[1])))
