"""A tiny collection of pictures and an untrained detector, for the tests of regions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vbert.data.images import Images, write_images
from vbert.data.raw import RawFiles, RawWriter
from vbert.regions.architectures import PlainCnn
from vbert.regions.detector import DetectorSpec, DetectorWeights, detector_file, load_backend, write_weights

CLASSES = ("circle", "square")
SMALL = PlainCnn(channels=(8, 16, 16), depth=(1, 1), hidden=32, pooled=3, proposals=12, before_nms=40)


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise with a bright rectangle in it."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = BytesIO()
    image.save(out, kind)
    return out.getvalue()


def collection(directory: Path, files: Mapping[str, bytes], boxes: list[dict[str, object]] | None = None) -> Images:
    """A loose index over `files` (image_id → bytes)."""
    (directory / "raw").mkdir(parents=True)
    (directory / "index").mkdir()
    rows = []
    with RawWriter(directory / "raw") as raw:
        for number, (image_id, data) in enumerate(files.items()):
            raw.add(f"{number}.png", data)
            try:
                width, height = Image.open(BytesIO(data)).size
            except Exception:
                width, height = 0, 0
            split = {0: "val", 1: "test"}.get(number % 4, "train")
            row = {"image_id": image_id, "path": f"raw/{number}.png", "sha256": hashlib.sha256(data).hexdigest()}
            rows.append(row | {"width": width, "height": height, "split": split})
    write_images(directory / "index", rows, boxes)
    return Images.at(directory / "index").over({"raw": RawFiles.at(directory / "raw")})


def small_spec(**changes: object) -> DetectorSpec:
    spec = detector_file("shapes_cnn").spec()
    fixed = {"name": "small", "architecture": SMALL, "dim": 32, "attributes": ("red", "blue")}
    return spec.model_copy(update=fixed | changes)


def untrained(directory: Path, spec: DetectorSpec) -> DetectorWeights:
    """Weights drawn at random, the classifier's scaled so that scores differ."""
    directory.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load_backend(spec.backend.name).network(spec, len(CLASSES))
    tensors = network.state_dict()
    tensors["roi_heads.box_predictor.cls_score.weight"] *= 300
    tensors["roi_heads.box_predictor.bbox_pred.weight"] *= 20
    write_weights(directory, spec, CLASSES, tensors)
    return DetectorWeights.at(directory)
