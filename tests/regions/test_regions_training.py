from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from regions.regions_tiny import collection, encoded, scenes, small_spec
from torchvision.models.detection.roi_heads import fastrcnn_loss

from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Machine
from vbert.data.decode import BadImage
from vbert.data.images import Images
from vbert.errors import BuildError, UserError
from vbert.regions import training as detection
from vbert.regions.backends.faster_rcnn import StableRpn
from vbert.regions.detector import DetectorTraining, DetectorWeights
from vbert.regions.training import BoxDataset, DetectionTraining, UnreadableImages, train_detector
from vbert.training.ranks import Ranks

TRAINING = DetectorTraining(data="tiny", steps=6, batch_size=4, validate_every=3)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return scenes(tmp_path_factory.mktemp("scenes"))


def trained(directory: Path, images: Images, **machine: Any) -> DetectorWeights:
    for part in ("made", "scratch"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    job = Job(directory / "made", directory / "scratch", Machine(device="cpu", **machine))
    train_detector(job, images, small_spec(), TRAINING, Numerics(), 0)
    return DetectorWeights.at(directory / "made")


def test_a_killed_training_goes_on_to_the_same_bytes(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with another number of loader workers."""
    whole = trained(tmp_path / "whole", images, loader_workers=0, checkpoint_steps=100)
    original, calls = DetectionTraining.loss, []

    def dying(self: DetectionTraining, batch: Any, model: Any) -> Any:
        calls.append(batch)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, batch, model)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionTraining, "loss", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", images, loader_workers=1, checkpoint_steps=4)
    assert not (tmp_path / "killed" / "made" / "weights.safetensors").exists()
    resumed = trained(tmp_path / "killed", images, loader_workers=1, checkpoint_steps=4)
    assert whole.names() == resumed.names()
    for name in whole.names():
        assert whole.file(name).read_bytes() == resumed.file(name).read_bytes(), name


def test_it_leaves_weights_curves_and_a_look_at_held_out_images(tmp_path: Path, images: Images) -> None:
    weights = trained(tmp_path, images, loader_workers=0)
    assert weights.classes() == ["circle", "square"]
    rows = weights.curves()
    assert rows[-1]["step"] == 6
    assert {"loss", "classes", "boxes", "attributes", "objectness", "rpn_boxes", "map50"} <= rows[-1].keys()
    assert [row["step"] for row in rows if "map50" in row] == [3, 6]
    seen = weights.detections()
    held_out = BoxDataset(images, "test")
    assert [row["image_id"] for row in seen] == held_out.ids[: detection.SHOWN]
    for row in seen:
        assert len(row["boxes"]) == len(row["scores"]) == len(row["classes"]) == len(row["attributes"])
        assert row["truth"]["classes"][0] in weights.classes()
        assert (row["width"], row["height"]) == images.open(row["image_id"]).size
    assert json.loads(weights.file("evaluation.json").read_text()).keys() >= {"map", "map50"}
    assert weights.load("cpu").classes == ["circle", "square"]


def test_flips_move_the_boxes_with_the_pixels(images: Images) -> None:
    flipped = DetectionTraining(images, small_spec(), TRAINING.model_copy(update={"flip": 1.0}), 0)
    plain = DetectionTraining(images, small_spec(), TRAINING.model_copy(update={"flip": 0.0}), 0)
    mirrored, straight = (task.collate([(i, 0) for i in range(6)]) for task in (flipped, plain))
    for at, (height, width) in enumerate(straight.shapes):
        a, b = mirrored.pixels[at], straight.pixels[at]
        mine, theirs = mirrored.targets[at], straight.targets[at]
        assert torch.equal(a[:, :height, :width].flip(2), b[:, :height, :width])
        x1, y1, x2, y2 = theirs["boxes"].T
        assert torch.equal(mine["boxes"], torch.stack([width - x2, y1, width - x1, y2], 1))


def test_attributes_are_taught_as_distributions(tmp_path: Path) -> None:
    images = scenes(tmp_path, 4, attributes=["red", "blue", "small"])
    batch = DetectionTraining(images, small_spec(), TRAINING, 0).collate([(0, 0)])
    assert batch.targets[0]["attributes"].tolist() == [[0.5, 0.5]]
    images = scenes(tmp_path / "none", 4, attributes=["small"])
    task = DetectionTraining(images, small_spec(), TRAINING, 0)
    batch = task.collate([(0, 0)])
    assert batch.targets[0]["attributes"].tolist() == [[0.0, 0.0]]
    assert task.loss(batch, task.model.train())["attributes"].item() == 0.0


def test_images_without_boxes_are_background(tmp_path: Path) -> None:
    files = {name: encoded(Image.new("RGB", (32, 32), "grey")) for name in ("00", "01", "02", "03", "04", "05")}
    box = {"image_id": "02", "x1": 4, "y1": 4, "x2": 20, "y2": 20, "class": "circle", "attributes": ["red"]}
    task = DetectionTraining(collection(tmp_path, files, [box]), small_spec(), TRAINING, 0)
    assert task.train.ids == ["02", "03"]
    for items in ([(0, 0), (1, 0)], [(1, 0)]):
        losses = task.loss(task.collate(items), task.model.train())
        sum(losses.values()).backward()
        assert all(torch.isfinite(value) for value in losses.values())


def test_losses_are_torchvisions_where_images_have_equally_many_samples(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what they are divided by: images; of attributes, those that have any."""
    task = DetectionTraining(images, small_spec(), TRAINING, 0)
    heads, seen = task.model.roi_heads, []
    select = heads.select_training_samples

    def as_many(*arguments: Any) -> Any:
        proposals, matched, labels, regression = select(*arguments)
        seen.extend([torch.cat([each[:12] for each in labels]), torch.cat([each[:12] for each in regression])])
        return tuple([each[:12] for each in part] for part in (proposals, matched, labels, regression))

    monkeypatch.setattr(heads, "select_training_samples", as_many)
    predicted: list[Any] = []
    heads.box_predictor.register_forward_hook(lambda *call: predicted.extend(call[2]))
    batch = task.collate([(i, 0) for i in range(4)])
    losses = task.loss(batch, task.model.train())
    rows = len(seen[0])
    assert rows == 48
    classes, boxes = fastrcnn_loss(predicted[0][:rows], predicted[1][:rows], [seen[0]], [seen[1]])
    assert losses["classes"].item() / 4 == pytest.approx(classes.item(), rel=1e-5)
    assert losses["boxes"].item() / 4 == pytest.approx(boxes.item(), rel=1e-5)
    rpn = task.model.rpn
    inputs = [torch.randn(400, 1), torch.randn(400, 4), [torch.tensor([0.0, 1.0] * 100)] * 2, [torch.randn(200, 4)] * 2]
    ours, theirs = [], []
    for compute, out in ((rpn.compute_loss, ours), (super(StableRpn, rpn).compute_loss, theirs)):
        torch.manual_seed(0)
        out.extend(value.item() for value in compute(*inputs))
    assert [value / 2 for value in ours] == pytest.approx(theirs, rel=1e-5)
    counts = {"objectness": 4, "rpn_boxes": 4, "classes": 4, "boxes": 4, "attributes": 4}
    assert (task.counts(batch), task.weights) == (counts, {"attributes": 0.5})
    batch.targets[0]["attributes"].zero_()
    assert task.counts(batch) == counts | {"attributes": 3}


def test_without_official_splits_a_hash_decides(images: Images) -> None:
    class Unsplit:
        title = "images"
        boxes = staticmethod(images.boxes)

        @staticmethod
        def table() -> Any:
            import pyarrow as pa

            table = images.table()
            at = table.schema.get_field_index("split")
            return table.set_column(at, "split", pa.nulls(table.num_rows, pa.string()))

    ids = [set(BoxDataset(Unsplit(), split).ids) for split in ("train", "val", "test")]
    assert sum(map(len, ids)) == len(set().union(*ids)) == 24
    assert len(ids[0]) > 12


def test_faulty_collections_are_named(tmp_path: Path, images: Images) -> None:
    bare = collection(tmp_path / "bare", {"a": encoded(Image.new("RGB", (8, 8)))})
    with pytest.raises(UserError, match="has no boxes"):
        DetectionTraining(bare, small_spec(), TRAINING, 0)
    with pytest.raises(UserError, match="'circle', which detector small doesn't have; did you mean 'circles'"):
        DetectionTraining(images, small_spec(classes=("circles", "square")), TRAINING, 0)


def damaged(images: Images, *ids: str) -> Any:
    """The same images, of which some can't be decoded although the index has their sizes."""

    class Some:
        title, table, boxes = images.title, images.table, images.boxes

        @staticmethod
        def open(image_id: str) -> Image.Image:
            if image_id in ids:
                raise BadImage("damaged", "cut short")
            return images.open(image_id)

    return Some()


def test_in_place_of_an_image_that_can_not_be_decoded_comes_the_next(tmp_path: Path, images: Images) -> None:
    """A batch of one is a batch still."""
    unreadable = UnreadableImages(tmp_path / "unreadable")
    task = DetectionTraining(images, small_spec(), TRAINING, 0, unreadable=unreadable)
    first, second, *rest = task.train.ids
    whole = task.collate([(1, 0)])
    task.images = damaged(images, first, task.val.ids[0])
    left = task.collate([(0, 0)])
    assert torch.equal(left.pixels, whole.pixels)
    assert left.targets[0]["boxes"].equal(whole.targets[0]["boxes"])
    assert unreadable.ids() == {first}
    found = detection.detections(task.detector(), task.spec, task.images, task.train.ids, None, unreadable)
    assert list(found) == [second, *rest]
    task.images = damaged(images, *task.train.ids)
    with pytest.raises(BuildError, match=f"no image can be decoded from {second} on; mend the files"):
        task.collate([(1, 0)])


def test_what_can_not_be_decoded_is_counted_alike_with_and_without_a_kill(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = TRAINING.model_copy(update={"batch_size": 1, "steps": 20, "validate_every": 0})
    ids = [*BoxDataset(images, "train").ids[:2], *BoxDataset(images, "val").ids[:1]]
    files = {row["image_id"]: encoded(images.open(row["image_id"])) for row in images.table().to_pylist()}
    boxes = images.boxes()
    assert boxes is not None
    bad = collection(tmp_path / "bad", files | {i: files[i][:-40] for i in ids} | {"none": b"x"}, boxes.to_pylist())

    def figures(at: str) -> dict[str, Any]:
        for part in ("made", "scratch"):
            (tmp_path / at / part).mkdir(parents=True, exist_ok=True)
        machine = Machine(device="cpu", loader_workers=0, checkpoint_steps=3)
        return train_detector(
            Job(tmp_path / at / "made", tmp_path / at / "scratch", machine), bad, small_spec(), one, Numerics(), 0
        )

    whole = figures("whole")
    assert whole["unreadable"] == 4
    with monkeypatch.context() as patch:
        original, calls = DetectionTraining.loss, []

        def dying(self: DetectionTraining, batch: Any, model: Any) -> Any:
            calls.append(batch)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return original(self, batch, model)

        patch.setattr(DetectionTraining, "loss", dying)
        with pytest.raises(KeyboardInterrupt):
            figures("killed")
    assert figures("killed") == whole


class Together:
    """Two ranks in one process: what each gathers is kept, and both parts given to rank 0."""

    def __init__(self, rank: int, parts: list[Any], job: Job) -> None:
        self.rank, self.world, self.parts, self.job = rank, 2, parts, job

    def gather(self, value: Any) -> list[Any]:
        self.parts.append(value)
        return self.parts


def test_ranks_share_the_images_of_a_validation(tmp_path: Path) -> None:
    images = scenes(tmp_path / "s", 60)
    task = DetectionTraining(images, small_spec(), TRAINING, 0)
    job = Job(tmp_path, tmp_path, Machine(device="cpu"))
    alone = task.validate(Ranks(job))
    parts: list[Any] = []
    assert task.validate(Together(1, parts, job)) is None  # type: ignore[arg-type]
    assert task.validate(Together(0, parts, job)) == alone  # type: ignore[arg-type]
    assert sorted(len(part) for part in parts) == [len(task.val.ids) // 2, -(-len(task.val.ids) // 2)]


def test_batches_travel_to_a_device(images: Images) -> None:
    batch = DetectionTraining(images, small_spec(), TRAINING, 0).collate([(0, 0), (1, 0)]).to("meta", non_blocking=True)
    assert batch.pixels.device.type == "meta"
    assert all(t.device.type == "meta" for target in batch.targets for t in target.values())
    assert batch.shapes == [(32, 32), (32, 40)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shapes_are_learnt(tmp_path: Path) -> None:
    """Acceptance: box mAP@0.5 ≥ 0.90 and colour ≥ 0.99 on held-out scenes, at the demo's settings."""
    from tasks.detector import detector
    from tasks.generate import generate
    from tasks.images import images as index
    from vbert.artifacts.making.engine import build_here
    from vbert.data import readers
    from vbert.data.shapes.scenes import ShapesSettings
    from vbert.regions.detector import detector_file

    photos = index({"generated": generate(ShapesSettings())}, readers.reader("shapes"))
    numerics = Numerics(processes=2)
    spec = detector_file("shapes_cnn").spec()
    (made,) = build_here([detector(photos, spec, DetectorTraining(data="shapes"), numerics, 0)], tmp_path / "store")
    assert made.figures["map50"] >= 0.90
    assert made.figures["attribute_accuracy"] >= 0.99
