"""torchvision's detectors trained on real photos with boxes: the start, the jitter, the resume, and the learning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from regions.fpn_world import REAL, needs_photos
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from flows.graph import graph
from flows.recipe import resolve
from tasks.detector import detector
from tasks.download import download
from tasks.images import images
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Machine
from vbert.artifacts.steps.step_json import artifact_from_json, steps_as_json
from vbert.data import readers
from vbert.data.images import Images
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.data.spec import ReaderOptions
from vbert.errors import UserError
from vbert.regions.boxes import Adaptive, select
from vbert.regions.detector import DetectorSpec, DetectorTraining, DetectorWeights, PretrainedDetector, detector_file
from vbert.regions.training import BoxDataset, DetectionTraining, evaluate, train_detector

pytestmark = needs_photos
TRAINING = DetectorTraining(data="coco", steps=3, batch_size=2, learning_rate=1e-3, short_sides=(48, 64), warmup=0.0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def photos(store: Path) -> Images:
    """Ten photos of train2017 and ten of val2017, with their boxes."""
    raws = {"files": download(Source(path=str(REAL)).pinned())}
    (index,) = build_here([images(raws, readers.reader("coco"), 10, ReaderOptions())], store)
    return index


@pytest.fixture(scope="module")
def classifier(store: Path) -> RawFiles:
    """A classifier's file in torchvision's format."""
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(get_model("mobilenet_v3_large", weights=None).state_dict(), store.parent / "own.pth")
    (raw,) = build_here([download(Source(path=str(store.parent / "own.pth")).pinned())], store)
    return raw


def small(name: str = "fasterrcnn_mobilenet_v3_large_fpn", **changes: Any) -> DetectorSpec:
    spec = detector_file(name).spec()
    few = {"proposals": 30, "before_nms": 60, "rows": 30, "taught": 64} | changes
    architecture = spec.architecture.model_copy(update=few)
    sizes = spec.preprocessing.model_copy(update={"short_side": 64, "long_side": 96})
    return spec.model_copy(update={"architecture": architecture, "preprocessing": sizes})


def trained(
    directory: Path, photos: Images, spec: DetectorSpec | PretrainedDetector, **machine: Any
) -> DetectorWeights:
    for part in ("made", "scratch"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    job = Job(directory / "made", directory / "scratch", Machine(device="cpu", loader_workers=0, **machine))
    train_detector(job, photos, spec, TRAINING, Numerics(), 0)
    return DetectorWeights.at(directory / "made")


@pytest.mark.slow  # test_regions_training.py kills a small one
def test_a_killed_training_from_a_classifier_goes_on_to_the_same_bytes(
    tmp_path: Path, photos: Images, classifier: RawFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PretrainedDetector(small(), classifier)
    whole = trained(tmp_path / "whole", photos, spec, checkpoint_steps=100)
    original, calls = DetectionTraining.loss, []

    def dying(self: DetectionTraining, batch: Any, model: Any) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batch, model)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionTraining, "loss", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", photos, spec, checkpoint_steps=2)
    resumed = trained(tmp_path / "killed", photos, spec, checkpoint_steps=2)
    assert whole.names() == resumed.names()
    for name in whole.names():
        assert whole.file(name).read_bytes() == resumed.file(name).read_bytes(), name
    assert whole.classes() == sorted(set(photos.boxes().column("class").to_pylist()) & set(whole.classes()))
    assert {"map", "map50"} <= whole.curves()[-1].keys()
    assert [row["image_id"] for row in whole.detections()] == BoxDataset(photos, "val").ids  # test has no photos
    ready = whole.load()
    (found,) = ready.detect(ready.backbone([ready.prepare(photos.open(whole.detections()[0]["image_id"]))]))
    assert torch.isfinite(found.features).all()


def test_the_stage_takes_a_start_and_its_step_is_data(store: Path, photos: Images, classifier: RawFiles) -> None:
    one = TRAINING.model_copy(update={"steps": 1})
    begun, bare = (
        detector(photos, spec, one, Numerics(), 0) for spec in (PretrainedDetector(small(), classifier), small())
    )
    assert begun.fingerprint != bare.fingerprint
    for made in (begun, bare):
        assert artifact_from_json(json.loads(json.dumps(steps_as_json(made)))).fingerprint == made.fingerprint
    (built,) = build_here([begun], store)
    assert built.figures.keys() == {"map", "map50"}
    theirs = torch.load(Path(classifier.input("source").path), weights_only=True)["features.0.0.weight"]
    assert torch.equal(load_file(built.file("weights.safetensors"))["backbone.body.0.0.weight"], theirs)


def test_a_recipe_starts_from_the_specs_source_or_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(b"weights")
    spec = "fasterrcnn_mobilenet_v3_large_fpn"
    entry = f"detector: {{spec: {spec}, train: {{data: coco}}}}"
    (tmp_path / "own.yaml").write_text(f"data: {{coco: {{spec: coco_2017}}}}\n{entry}\n")
    made = {}
    for name, changes in {"the spec's": {}, "own": {"detector.start": str(tmp_path / "own.pth")}}.items():
        steps = walk(graph(resolve(str(tmp_path / "own.yaml"), changes)))
        (made[name],) = [artifact for artifact in steps if artifact.stage_name == "detector"]
    assert made["the spec's"].input("spec").weights.input("source").url.endswith("mobilenet_v3_large-8738ca79.pth")
    assert made["own"].input("spec").weights.input("source").path == str(tmp_path / "own.pth")
    with pytest.raises(UserError, match="start is for train"):
        resolve(str(tmp_path / "own.yaml"), {"detector": {"spec": spec, "start": "own.pth"}})


def test_stages_that_are_not_trained_stay_as_the_classifier_has_them(photos: Images, classifier: RawFiles) -> None:
    path = Path(classifier.input("source").path)
    task = DetectionTraining(photos, small(), TRAINING, 0, path)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    body = torch.load(path, weights_only=True)
    assert torch.equal(before["backbone.body.0.0.weight"], body["features.0.0.weight"])
    optimizer = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], 0.1)
    torch.manual_seed(0)
    sum(task.loss(task.collate([(0, 0), (1, 0)]), task.model.train()).values()).backward()
    optimizer.step()
    after = task.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("backbone.fpn") for name in changed)
    assert any(name.startswith("backbone.body.13") for name in changed)
    assert not any(name.startswith(("backbone.body.0.", "backbone.body.1.")) or "running" in name for name in changed)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn_scratch", "torchvision_fasterrcnn_resnet50_fpn_v2"])
def test_other_architectures_give_losses_and_gradients(photos: Images, name: str) -> None:
    """From scratch every stage and norm learns; the second one's box head has norms of its own."""
    spec = small(name, norm="batch", trained=5).model_copy(update={"classes": None})
    task = DetectionTraining(photos, spec, TRAINING, 0)
    losses = task.loss(task.collate([(0, 0), (1, 0)]), task.model.train())
    sum(losses.values()).backward()
    assert {"objectness", "rpn_boxes", "classes", "boxes"} <= losses.keys()
    assert all(torch.isfinite(value) for value in losses.values())
    without = [name for name, parameter in task.model.named_parameters() if parameter.grad is None]
    assert without == []
    assert int(task.model.state_dict()["backbone.body.bn1.num_batches_tracked"]) == 1
    tensors = task.model.state_dict()
    assert task.detector().classes == task.classes
    assert tensors.keys() == task.model.state_dict().keys()


def test_sizes_are_drawn_for_each_image_and_epoch(photos: Images) -> None:
    task = DetectionTraining(photos, small(), TRAINING.model_copy(update={"flip": 0.0}), 0)
    seen = [task.collate([(i, epoch)]) for epoch in range(6) for i in range(3)]
    shorts = [min(batch.shapes[0]) for batch in seen]
    assert {round(short / 16) for short in shorts} == {3, 4}
    assert shorts != shorts[:3] * 6
    again = DetectionTraining(photos, small(), TRAINING.model_copy(update={"flip": 0.0}), 0)
    assert [again.collate([(i, e)]).shapes for e in range(6) for i in range(3)] == [batch.shapes for batch in seen]
    shares = [batch.targets[0]["boxes"] / torch.tensor([*batch.shapes[0][::-1]] * 2) for batch in seen[::3]]
    assert all(torch.allclose(shares[0], each, atol=1e-4) for each in shares[1:])


def test_a_class_that_only_held_out_photos_have_counts_as_missed(photos: Images) -> None:
    task = DetectionTraining(photos, small(), TRAINING, 0)
    others = set(task.val.known(task.classes)) - set(task.classes)
    assert others
    task.val.ids = task.val.ids[:2]
    figures, found = evaluate(task.detector(), task.spec, photos, task.val)
    assert figures["map50"] < 1
    assert list(found) == task.val.ids


def test_a_start_that_does_not_fit_is_named(tmp_path: Path, photos: Images) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth to start detector .* from: \d+ tensors missing"):
        DetectionTraining(photos, small(), TRAINING, 0, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="plain_cnn starts from nothing"):
        DetectionTraining(photos, detector_file("shapes_cnn").spec(), TRAINING, 0, tmp_path / "odd.pth")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_photos_are_learnt(tmp_path: Path, photos: Images) -> None:
    """Ten photos by heart, from scratch: the loss falls, and boxes are found."""
    spec = small(norm="batch", trained=6, proposals=100, before_nms=300)
    sizes = spec.preprocessing.model_copy(update={"short_side": 128, "long_side": 192})
    spec = spec.model_copy(update={"preprocessing": sizes})
    training = DetectorTraining(data="coco", steps=250, batch_size=5, learning_rate=1e-3, flip=0.0)
    (tmp_path / "made").mkdir()
    (tmp_path / "scratch").mkdir()
    job = Job(tmp_path / "made", tmp_path / "scratch", Machine(device="cpu", loader_workers=1))
    train_detector(job, photos, spec, training, Numerics(threads=2), 0)
    weights = DetectorWeights.at(tmp_path / "made")
    losses = [row["loss"] for row in weights.curves()]
    assert losses[-1] < 0.5 * losses[0]
    learnt = weights.load()
    figures, _ = evaluate(learnt, spec, photos, BoxDataset(photos, "train"))
    assert figures["map50"] > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        coarse_figures, _ = evaluate(learnt, spec, photos, BoxDataset(photos, "train"))
    # Not box by box: of duplicates with nearly one score, another may be kept (4 of 44 boxes).
    assert abs(coarse_figures["map"] - figures["map"]) < 0.02
    cosines = []
    for image_id in BoxDataset(photos, "train").ids:
        prepared = learnt.prepare(photos.open(image_id))
        seen = learnt.backbone([prepared])
        kept = select(learnt.detect(seen)[0], Adaptive(minimum=0, maximum=36, score=0.3), spec.nms)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = learnt.backbone([prepared])
            features = learnt.roi_features(coarse, [kept.boxes])[0].features
        cosines.append(cosine_similarity(features, learnt.roi_features(seen, [kept.boxes])[0].features))
    print(figures, coarse_figures, losses[0], losses[-1], torch.cat(cosines).min())
    assert torch.cat(cosines).min() >= 0.99
