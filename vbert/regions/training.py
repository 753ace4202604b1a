"""Training a detector on a collection with boxes: batches, losses, held-out figures."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vbert.artifacts.steps.stage import Stopped
from vbert.artifacts.store import durable
from vbert.data.decode import BadImage
from vbert.data.majority import majority
from vbert.errors import BuildError, UserError, nearest
from vbert.metrics.detection import Boxes, attribute_accuracy, average_precision
from vbert.regions.boxes import Adaptive, select
from vbert.regions.contract import Preprocessing
from vbert.regions.detector import (
    Detector,
    DetectorSpec,
    DetectorTraining,
    PretrainedDetector,
    load_backend,
    write_weights,
)
from vbert.regions.pixels import prepare
from vbert.training.sampler import derive, generator

if TYPE_CHECKING:
    from vbert.artifacts.steps.settings import Numerics
    from vbert.artifacts.steps.stage import Job
    from vbert.data.images import Images
    from vbert.regions.detector import DetectorInput
    from vbert.training.ranks import Ranks

log = logging.getLogger("vbert.detection")

# COCO's usual cut for evaluation.
EVALUATED = Adaptive(minimum=0, maximum=100, score=0.05)
SHOWN = 12  # held-out images whose detections are kept for the report
TRIES = 100  # images in a row that can't be decoded, before training ends
HELD_OUT = 20  # where a collection has no official splits: one image of so many is val, another test


@dataclass
class DetectionBatch:
    """A batch: pixels float32 [B, 3, H, W], zeros below and to the right of each image's (h, w); targets as
    torchvision's, with `attributes` float32 [n, A], each row a distribution or zeros."""

    pixels: Tensor
    shapes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DetectionBatch:
        targets = [{k: t.to(device, non_blocking=non_blocking) for k, t in one.items()} for one in self.targets]
        return DetectionBatch(self.pixels.to(device, non_blocking=non_blocking), self.shapes, targets)


class UnreadableImages:
    """Ids of images whose header the index could read but whose pixels can't be decoded. Each process that meets one
    records it in a folder of the scratch, so that loader workers and a resumed training share the record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, image_id: str) -> None:
        durable.make_directories(self._folder)
        with suppress(FileExistsError):
            durable.write_file(self._folder / f"{derive(image_id):x}", image_id.encode())

    def ids(self) -> set[str]:
        return {path.read_text() for path in self._folder.glob("*")}


class BoxDataset:
    """The true boxes of the images of one split, by image id."""

    def __init__(self, images: Images, split: str) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.split = split
        rows = images.table().select(["image_id", "split", "width"]).to_pylist()
        self.ids: list[str] = [
            row["image_id"]
            for row in rows
            if row["width"] and (row["split"] or _hashed_split(row["image_id"])) == split
        ]
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.ids}
        boxes = images.boxes()
        if boxes is None:
            raise UserError(f"{images.title}: has no boxes to train a detector on; choose a data set with boxes")
        for row in boxes.filter(pc.is_in(boxes.column("image_id"), pa.array(self.ids, pa.string()))).to_pylist():
            self.rows[row["image_id"]].append(row)

    def __bool__(self) -> bool:
        """Whether any image has boxes."""
        return any(self.rows.values())

    def known(self, classes: Sequence[str]) -> list[str]:
        """`classes`, and behind them others that occur here: the detector can't find them, so they count as missed."""
        return [*classes, *sorted({row["class"] for rows in self.rows.values() for row in rows} - set(classes))]

    def truth(self, name: str, classes: Sequence[str]) -> Boxes:
        rows = self.rows[name]
        return Boxes(
            np.array([[r["x1"], r["y1"], r["x2"], r["y2"]] for r in rows], np.float32).reshape(-1, 4),
            np.array([classes.index(r["class"]) for r in rows], np.int64),
            [r["attributes"] for r in rows],
        )


def held_out_of(images: Images) -> BoxDataset:
    """The split that a finished detector is evaluated on: test, or val where test has no boxes."""
    return BoxDataset(images, "test") or BoxDataset(images, "val")


def commonest_attribute(images: Images, held_out: BoxDataset, known: Sequence[str]) -> tuple[str, float] | None:
    """The commonest attribute of training boxes, of those that are `known`, and the share of held-out boxes with a
    known one that have it: the accuracy of always predicting it. None where no box has any."""
    kept = set(known)
    training = [r["attributes"] for rows in BoxDataset(images, "train").rows.values() for r in rows]
    counts = Counter(name for names in training for name in kept.intersection(names))
    boxes = [names for rows in held_out.rows.values() for r in rows if (names := kept.intersection(r["attributes"]))]
    if not counts or not boxes:
        return None
    name = majority(counts)
    return name, sum(name in names for names in boxes) / len(boxes)


def _hashed_split(image_id: str) -> str:
    return {0: "val", 1: "test"}.get(derive("split", image_id) % HELD_OUT, "train")


def class_names(spec: DetectorSpec, train: BoxDataset, title: str) -> list[str]:
    """The detector's classes: its spec's, else those of the training boxes, sorted."""
    names = {row["class"] for rows in train.rows.values() for row in rows}
    if spec.classes is None:
        if not names:
            raise UserError(f"{title}: its training split has no boxes; choose a data set with boxes")
        return sorted(names)
    if unknown := sorted(names - set(spec.classes)):
        hint = nearest(unknown[0], spec.classes)
        raise UserError(f"{title}: boxes of class {unknown[0]!r}, which detector {spec.name} doesn't have; {hint}")
    return list(spec.classes)


def train_detector(
    job: Job,
    images: Images,
    spec: DetectorSpec | PretrainedDetector,
    training: DetectorTraining,
    numerics: Numerics,
    seed: int,
) -> dict[str, Any]:
    """Train, evaluate on the test split, and write all files of DetectorWeights (rank 0). Returns the figures."""
    from vbert.data.raw import copy_only
    from vbert.training.loop import run_training

    start_file: Path | None = None
    if isinstance(spec, PretrainedDetector):
        start_file = copy_only(spec.weights, job.scratch / f"start-{job.rank}", f"what {spec.spec.name} starts from")
        spec = spec.spec
    unreadable = UnreadableImages(job.scratch / "unreadable")
    trainable = DetectionTraining(images, spec, training, seed, start_file, unreadable)
    curves = run_training(job, trainable, training, numerics, seed)
    if job.rank:
        return {}
    write_weights(job.directory, spec, trainable.classes, trainable.model.state_dict())
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in curves)
    (job.directory / "curves.jsonl").write_text(lines, encoding="utf-8")
    figures: dict[str, Any] = write_evaluation(job.directory, trainable.detector(), spec, images, job, unreadable)
    bad = unreadable.ids()
    if bad:
        log.warning("%s: %d images can't be decoded, %s the first", images.title, len(bad), min(bad))
    bad |= {row["image_id"] for row in images.table().select(["image_id", "width"]).to_pylist() if not row["width"]}
    return figures | ({"unreadable": len(bad)} if bad else {})


class DetectionTraining:
    """A detector's training, as a `Trainable` of the training loop."""

    def __init__(
        self,
        images: Images,
        spec: DetectorSpec,
        training: DetectorTraining,
        seed: int,
        start_file: Path | None = None,
        unreadable: UnreadableImages | None = None,
    ) -> None:
        """`start_file`: weights to start from (None: from scratch). `unreadable`: records broken images."""
        self.images, self.spec, self.training, self.seed = images, spec, training, seed
        self.weights = {"attributes": training.attribute_weight}
        self.unreadable = unreadable
        self.train, self.val = BoxDataset(images, "train"), BoxDataset(images, "val")
        self.classes = class_names(spec, self.train, images.title)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "detector"))
            self.model: nn.Module = load_backend(spec.backend.name).network(spec, len(self.classes))
        if start_file is not None:
            fresh = self.model.state_dict()
            self.model.load_state_dict(load_backend(spec.backend.name).read_start(spec, fresh, start_file))

    def size(self) -> int:
        return len(self.train.ids)

    def collate(self, items: Sequence[tuple[int, int]]) -> DetectionBatch:
        pixels, targets = zip(*(self._scene(i, epoch) for i, epoch in items), strict=True)
        shapes = [(p.shape[1], p.shape[2]) for p in pixels]
        batch = torch.zeros(len(pixels), 3, max(h for h, _ in shapes), max(w for _, w in shapes))
        for one, p in zip(batch, pixels, strict=True):
            one[:, : p.shape[1], : p.shape[2]] = p
        return DetectionBatch(batch, shapes, list(targets))

    def _readable(self, index: int, epoch: int) -> tuple[str, DetectorInput]:
        """(id, image); in place of an image that can't be decoded, the next one that can, so that no batch is empty.
        Raises BuildError after TRIES of them."""
        ids = self.train.ids
        for image_id in (ids[(index + k) % len(ids)] for k in range(min(TRIES, len(ids)))):
            try:
                return image_id, prepare(self.images.open(image_id), self._preprocessing(image_id, epoch))
            except BadImage:
                if self.unreadable is not None:
                    self.unreadable.note(image_id)
        raise BuildError(f"{self.images.title}: no image can be decoded from {ids[index]} on; mend the files")

    def _scene(self, index: int, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels and targets."""
        image_id, prepared = self._readable(index, epoch)
        true = self.train.truth(image_id, self.classes)
        boxes = torch.from_numpy(true.boxes) * torch.tensor(prepared.scale * 2)
        pixels = prepared.pixels
        if generator(self.seed, "flip", epoch, image_id).random() < self.training.flip:
            pixels = pixels.flip(2)
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([pixels.shape[2] - x2, y1, pixels.shape[2] - x1, y2], 1)
        attributes = torch.tensor(
            [[float(name in names) for name in self.spec.attributes] for names in true.attributes]
        ).reshape(len(boxes), len(self.spec.attributes))
        attributes = attributes / attributes.sum(1, keepdim=True).clamp(min=1)
        return pixels, {"boxes": boxes, "labels": torch.from_numpy(true.classes) + 1, "attributes": attributes}

    def _preprocessing(self, image_id: str, epoch: int) -> Preprocessing:
        """The spec's preprocessing, its short side replaced by one drawn from `short_sides`."""
        rule, sides = self.spec.preprocessing, self.training.short_sides
        if not sides:
            return rule
        drawn = int(generator(self.seed, "scale", epoch, image_id).random() * len(sides))
        return rule.model_copy(update={"short_side": sides[drawn]})

    def counts(self, batch: DetectionBatch) -> dict[str, int]:
        """The number of images, since each image's loss is a mean over its boxes; for attributes, of images that have
        any."""
        images, named = len(batch.targets), sum(bool(target["attributes"].any()) for target in batch.targets)
        counts = dict.fromkeys(("objectness", "rpn_boxes", "classes", "boxes"), images)
        return {**counts, "attributes": named} if self.spec.attributes else counts

    def loss(self, batch: DetectionBatch, model: nn.Module) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch.pixels, batch.shapes, batch.targets)
        return losses

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        """Each rank evaluates its share of the images."""
        if not self.val.ids:
            return None
        detector, mine = self.detector(), self.val.ids[ranks.rank :: ranks.world]
        with torch.autocast(next(self.model.parameters()).device.type, enabled=False):
            boxes = detections(detector, self.spec, self.images, mine, ranks.job, self.unreadable)
        parts = ranks.gather(boxes)
        if ranks.rank:
            return None
        return scored(detector, self.val, {name: boxes for part in parts for name, boxes in part.items()})

    def detector(self) -> Detector:
        device = str(next(self.model.parameters()).device)
        return load_backend(self.spec.backend.name).detector(self.spec, self.classes, self.model.state_dict(), device)


def evaluate(
    detector: Detector, spec: DetectorSpec, images: Images, held_out: BoxDataset
) -> tuple[dict[str, float], dict[str, Boxes]]:
    """map50, map and attribute accuracy on `held_out`, and the detections of each of its images that can be decoded."""
    boxes = detections(detector, spec, images, held_out.ids)
    return scored(detector, held_out, boxes), boxes


def detections(
    detector: Detector,
    spec: DetectorSpec,
    images: Images,
    ids: Sequence[str],
    job: Job | None = None,
    unreadable: UnreadableImages | None = None,
) -> dict[str, Boxes]:
    """The detections of each image that can be decoded, up to a SIGTERM to `job`."""
    boxes = {}
    for name in ids:
        if job is not None and job.stopping:
            break
        try:
            boxes[name] = detected_boxes(detector, spec, images, name)
        except BadImage:
            if unreadable is not None:
                unreadable.note(name)
    return boxes


def scored(detector: Detector, held_out: BoxDataset, detected: dict[str, Boxes]) -> dict[str, float]:
    """map50, map and attribute accuracy over the images of `detected`, whatever their order."""
    classes = held_out.known(detector.classes)
    names = sorted(detected)
    truth, boxes = [held_out.truth(name, classes) for name in names], [detected[name] for name in names]
    figures = average_precision(truth, boxes)
    accuracy = attribute_accuracy(truth, boxes, detector.attributes)
    if accuracy is not None:
        figures["attribute_accuracy"] = accuracy
    return figures


def detected_boxes(detector: Detector, spec: DetectorSpec, images: Images, image_id: str) -> Boxes:
    (candidates,) = detector.detect(detector.backbone([detector.prepare(images.open(image_id))]))
    kept = select(candidates, EVALUATED, spec.nms)
    attributes: list[list[str]] = [[] for _ in kept.scores]
    if candidates.attributes is not None:
        best = candidates.attributes[kept.proposals].argmax(1).tolist()
        attributes = [[detector.attributes[i]] for i in best]
    return Boxes(kept.boxes.cpu().numpy(), kept.classes.cpu().numpy(), attributes, kept.scores.cpu().numpy())


def write_evaluation(
    directory: Path, detector: Detector, spec: DetectorSpec, images: Images, job: Job, unreadable: UnreadableImages
) -> dict[str, float]:
    """Evaluate on the `held_out` images; write `evaluation.json` and some `detections.jsonl`."""
    held_out = held_out_of(images)
    classes = held_out.known(detector.classes)
    boxes = detections(detector, spec, images, held_out.ids, job, unreadable)
    if job.stopping:
        raise Stopped("stopped during the evaluation; training is kept")
    figures = scored(detector, held_out, boxes)
    (directory / "evaluation.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with open(directory / "detections.jsonl", "w", encoding="utf-8") as out:
        for name, one in list(boxes.items())[:SHOWN]:
            width, height = images.open(name).size
            true = held_out.truth(name, classes)
            row = {"image_id": name, "width": width, "height": height, **_described(one, detector.classes)}
            row["truth"] = _described(true, classes)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return figures


def _described(boxes: Boxes, classes: Sequence[str]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "boxes": [[round(v, 2) for v in box] for box in boxes.boxes.astype(float).tolist()],
        "classes": [classes[i] for i in boxes.classes],
        "attributes": [list(names) for names in boxes.attributes],
    }
    if boxes.scores is not None:
        columns["scores"] = [round(float(s), 4) for s in boxes.scores]
    return columns
