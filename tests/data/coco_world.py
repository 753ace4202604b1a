"""Files in COCO's form, and how they are read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from data.data_steps import built, described
from PIL import Image

from vbert.artifacts.store.store import Store
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec


def own(folder: Path, **options: Any) -> DatasetSpec:
    return DatasetSpec(
        name="own",
        title="Own",
        licence="private",
        sources={"files": Source(path=str(folder))},
        images={"reader": "coco", "options": options},
        examples={"reader": "coco", "options": {k: v for k, v in options.items() if k in ("splits", "ids")}},
    )


def read(
    folder: Path, store: Path, accepted: float = 0.05, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of images and of boxes."""
    spec = own(folder, **options)
    spec = spec.model_copy(update={"images": spec.images.model_copy(update={"unusable_boxes": accepted})})
    (images,) = built(Store(store), described(spec)[0])
    boxes = images.boxes()
    return images.table().to_pylist(), boxes.to_pylist() if boxes else []


def photo(
    width: int, height: int, orientation: int | None = None, mark: tuple[int, int, int, int] | None = None
) -> bytes:
    """A black JPEG with a white rectangle, and an EXIF orientation."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if mark:
        pixels[mark[1] : mark[3], mark[0] : mark[2]] = 255
    out, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def written(
    folder: Path, name: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]], **more: Any
) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cat"}]}
    path.write_text(json.dumps(content))
