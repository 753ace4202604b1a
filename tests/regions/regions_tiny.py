"""A tiny collection of pictures and an untrained detector, for the tests of regions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.steps.stage import Job, Machine
from vbert.data.images import Images, write_images
from vbert.data.raw import RawFiles, RawWriter
from vbert.regions.architectures import PlainCnn
from vbert.regions.boxes import Adaptive, Nms
from vbert.regions.contract import Contract, Preprocessing
from vbert.regions.detector import (
    DetectorSpec,
    DetectorWeights,
    ExtractionNumerics,
    RegionSettings,
    detector_file,
    load_backend,
    write_weights,
)
from vbert.regions.extract import extract_shard, gather, shard_plan
from vbert.regions.shards import Shards

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


COLOURS = ("red", "blue")


def scenes(directory: Path, count: int = 24, side: int = 0, **box: object) -> Images:
    """One bright square or circle on grey an image; of two widths of image where no `side` is given."""
    files, boxes = {}, []
    for i in range(count):
        image = Image.new("RGB", (side or (32, 40)[i % 2], 32), "lightgrey")
        x, y, kind, colour = 2 + (5 * i) % 11, 2 + (7 * i) % 13, i % 2, COLOURS[i // 2 % 2]
        place = (x, y, x + 13, y + 13)
        (ImageDraw.Draw(image).rectangle if kind else ImageDraw.Draw(image).ellipse)(place, fill=colour)
        files[f"{i:02d}"] = encoded(image)
        row: dict[str, Any] = {"image_id": f"{i:02d}", "x1": x, "y1": y, "x2": x + 14, "y2": y + 14}
        boxes.append(row | {"class": ("circle", "square")[kind], "attributes": [colour, "small"]} | box)
    return collection(directory, files, boxes)


CONTRACT = Contract(
    detector="shapes_cnn",
    backend=Plugin(name="torchvision", version=1),
    weights="ab" * 32,
    layer="fc7",
    dim=256,
    boxes=Adaptive(minimum=1, maximum=10, score=0.1),
    nms=Nms(),
    features_of="proposals",
    preprocessing=Preprocessing(),
)


SETTINGS = RegionSettings(boxes=Adaptive(minimum=1, maximum=5, score=0.6), nms=Nms(), images_per_shard=7)
CPU = Machine(device="cpu")


def extracted(
    directory: Path, images: Images, weights: DetectorWeights, settings: RegionSettings = SETTINGS, **changes: Any
) -> Shards:
    """All shards, made in this process."""
    directory.mkdir()
    plan = changes.get("plan") or shard_plan(images.table(), settings.images_per_shard)
    numerics = changes.get("numerics") or ExtractionNumerics()
    job = Job(directory, directory, CPU)
    units = [extract_shard(images, weights, settings, numerics, (), job, unit) for _, unit in plan]
    gather(directory, units, weights, settings)
    return Shards.at(directory)


def all_bits(shards: Shards) -> dict[str, tuple[bytes, bytes, bytes]]:
    read = {image_id: shards.read(image_id) for image_id in shards.image_ids()}
    return {name: (one.features.tobytes(), one.boxes.tobytes(), one.json) for name, one in read.items()}
