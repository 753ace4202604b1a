"""Published bottom-up-attention weights: miniatures in each layout's own names, and other files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from regions.bottom_up_tiny import ATTRIBUTES, CLASSES, random_weights, small_spec
from regions.regions_tiny import picture
from torch import Tensor

from tasks.weights import make_weights
from vbert.artifacts.steps.stage import Job, Machine
from vbert.data.raw import RawFiles, RawWriter
from vbert.errors import UserError
from vbert.regions.backends.bottom_up import detector, read_published
from vbert.regions.backends.bottom_up_network import cell_anchors
from vbert.regions.boxes import Fixed, ProposalNms
from vbert.regions.detector import DetectorWeights, RegionSettings

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = {
    "head.res5": "roi_heads.res5",
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "head.classes": "roi_heads.box_predictor.cls_score",
    "head.boxes": "roi_heads.box_predictor.bbox_pred",
}
PYBUA = HEADS | {
    "head.embedding": "roi_heads.box_predictor.cls_embedding",
    "head.hidden": "roi_heads.box_predictor.fc_attr",
    "head.attributes": "roi_heads.box_predictor.attr_score",
}
MILVLG = HEADS | {
    "head.embedding": "roi_heads.box_predictor.cls_embed",
    "head.hidden": "roi_heads.box_predictor.attr_linear1",
    "head.attributes": "roi_heads.box_predictor.attr_linear2",
}
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def renamed(tensors: dict[str, Tensor], theirs: dict[str, str]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in tensors.items():
        module = next((module for module in theirs if name.startswith(f"{module}.")), None)
        out[name if module is None else theirs[module] + name.removeprefix(module)] = tensor.clone()
    return out


def detectron2_anchors() -> Tensor:
    """As detectron2's DefaultAnchorGenerator lists them: side by side, each with its three ratios."""
    sides = [(s * r**-0.5, s * r**0.5) for s in (64, 128, 256, 512) for r in (0.5, 1.0, 2.0)]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


def pybua(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Background last; anchors by side, then ratio (ours: by ratio, then side); regression ×(10, 10, 5, 5)."""
    out = renamed(tensors, PYBUA)
    for name in (PYBUA["head.classes"] + ".weight", PYBUA["head.classes"] + ".bias"):
        out[name] = torch.cat([out[name][1:], out[name][:1]])
    for name in ("cls_embedding.weight", "attr_score.weight", "attr_score.bias"):
        name = f"roi_heads.box_predictor.{name}"
        out[name] = torch.cat([out[name][1:], out[name][:1]])
    for part in ("weight", "bias"):
        name = f"{PYBUA['head.boxes']}.{part}"
        out[name] = torch.stack([row * (10, 10, 5, 5)[i % 4] for i, row in enumerate(out[name])])
        order = [4 * ratio + side for side in range(4) for ratio in range(3)]
        name = f"{PYBUA['rpn.objectness']}.{part}"
        out[name] = torch.stack([out[name][i] for i in order])
        name = f"{PYBUA['rpn.deltas']}.{part}"
        out[name] = torch.cat([out[name][4 * i : 4 * i + 4] for i in order])
    return out


def milvlg(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Twelve backgrounds, then twelve objects; the background has boxes of its own."""
    out = renamed(tensors, MILVLG)
    generator = torch.Generator().manual_seed(7)
    for part in ("weight", "bias"):
        name = f"{MILVLG['rpn.objectness']}.{part}"
        background = torch.randn(out[name].shape, generator=generator)
        out[name] = torch.cat([background, background + out[name]])
        name = f"{MILVLG['head.boxes']}.{part}"
        out[name] = torch.cat([torch.randn(4, *out[name].shape[1:], generator=generator), out[name]])
    for norm in ("backbone.res4.0.conv1.norm", "roi_heads.res5.0.conv1.norm"):
        out[f"{norm}.num_batches_tracked"] = torch.tensor(320000)
    return out


def as_pkl(path: Path, tensors: dict[str, Tensor]) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in pybua(tensors).items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "airsplay"}, protocol=2))
    return path


def as_bin(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(pybua(tensors) | {ANCHORS: detectron2_anchors()}, path)
    return path


def as_pth(path: Path, tensors: dict[str, Tensor], **how: Any) -> Path:
    torch.save({"model": milvlg(tensors) | {ANCHORS: cell_anchors("caffe")}, "iteration": 5}, path, **how)
    return path


def as_old_pth(path: Path, tensors: dict[str, Tensor]) -> Path:
    return as_pth(path, tensors, _use_new_zipfile_serialization=False)


@pytest.fixture
def vocabulary(tmp_path: Path) -> dict[str, Path]:
    classes, attributes = tmp_path / "objects_vocab.txt", tmp_path / "attributes_vocab.txt"
    classes.write_text("\n".join(f"{name.title()},{name}s" for name in CLASSES))
    attributes.write_text("\n".join(ATTRIBUTES) + "\n")
    return {"classes": classes, "attributes": attributes}


LAYOUTS = {"pkl": as_pkl, "bin": as_bin, "pth": as_pth, "old.pth": as_old_pth}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_layout_is_the_same_detector(tmp_path: Path, vocabulary: dict[str, Path], kind: str) -> None:
    if kind == "pkl":
        pytest.importorskip("vbert.data.pickles", reason="the reader of pickles is not there")
    spec = small_spec(attributes=())
    tensors = random_weights(small_spec())
    path = LAYOUTS[kind](tmp_path / f"weights.{kind}", tensors)
    found = read_published(spec, {"weights": path, **vocabulary})
    assert tuple(found.classes) == CLASSES
    assert tuple(found.attributes) == ATTRIBUTES
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == torch.float32
        assert torch.allclose(found.tensors[name], tensor, atol=1e-5), name
    one, other = (detector(small_spec(), CLASSES, each, "cpu") for each in (tensors, dict(found.tensors)))
    image = picture(0, 64, 64)
    ours, theirs = (d.detect(d.backbone([d.prepare(image)]))[0] for d in (one, other))
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-2)
    assert torch.allclose(ours.scores, theirs.scores, atol=1e-4)
    assert ours.attributes is not None
    assert torch.allclose(ours.attributes, theirs.attributes, atol=1e-4)


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        tensors = milvlg(random_weights(small_spec())) | {ANCHORS: cell_anchors("caffe")}
        change(tensors)
        torch.save(tensors, path)
        return path

    return write


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["backbone.res3.0.conv9.weight"] = tensors.pop("backbone.res3.0.conv1.weight")


def reshape(tensors: dict[str, Tensor]) -> None:
    name = f"{MILVLG['head.classes']}.weight"
    tensors[name] = tensors[name][:-1]


def lose_all_norms(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".norm." in name]:
        del tensors[name]


def unordered(tensors: dict[str, Tensor]) -> None:
    tensors[ANCHORS] = tensors[ANCHORS].clone()
    tensors[ANCHORS][3] = tensors[ANCHORS][2]


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "renamed": (
        rename,
        r"not the weights of small, read as the layout `caffe`: missing: backbone\.res3\.0\.conv1\.weight; "
        r"unexpected: backbone\.res3\.0\.conv9\.weight\n",
    ),
    "reshaped": (
        reshape,
        r"of another shape: roi_heads\.box_predictor\.cls_score\.weight \(5, 64\) in place of \(6, 64\)",
    ),
    "without norms": (lose_all_norms, r"missing: backbone\.stem\.conv1\.norm\.weight, .* and \d+ more\n"),
    "no RPN": (
        lambda t: t.pop(f"{MILVLG['rpn.objectness']}.weight"),
        r"objectness_logits\.weight is missing, by which",
    ),
    "other anchors": (unordered, r"cell_anchors\.0 are not the 12 anchors of sides 64 to 512"),
    "text": (lambda t: t.update({"notes": "text"}), r"weights.pth: 'notes' is a str, no named tensor"),
    "empty": (lambda t: t.clear(), "holds a dict, not a state dict of named tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_files_are_refused_by_name(tmp_path: Path, vocabulary: dict[str, Path], fault: str) -> None:
    change, said = FAULTS[fault]
    with pytest.raises(UserError, match=said):
        read_published(small_spec(), {"weights": changed(change)(tmp_path / "weights.pth"), **vocabulary})


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_nothing_in_a_file_is_run(tmp_path: Path, vocabulary: dict[str, Path], kind: str) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if kind == "pickle":
        pytest.importorskip("vbert.data.pickles", reason="the reader of pickles is not there")
        path.write_bytes(pickle.dumps({"model": Hostile(trace)}))
    else:
        torch.save({"model": Hostile(trace)}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UserError):
        read_published(small_spec(), {"weights": path, **vocabulary})
    assert not trace.exists()


def test_weights_without_names_say_what_to_give(tmp_path: Path) -> None:
    path = as_pth(tmp_path / "w.pth", random_weights(small_spec()))
    with pytest.raises(
        UserError, match=r"detector small: the weights don't name their classes; give `weights.classes`"
    ):
        read_published(small_spec(), {"weights": path})
    assert read_published(small_spec(classes=CLASSES), {"weights": path}).classes == CLASSES


def test_the_stage_writes_a_detector_with_its_names(tmp_path: Path, vocabulary: dict[str, Path]) -> None:
    raws = {}
    for name, file in {"weights": as_pth(tmp_path / "bua.pth", random_weights(small_spec())), **vocabulary}.items():
        (tmp_path / name).mkdir()
        with RawWriter(tmp_path / name) as writer:
            writer.add(file.name, file.read_bytes())
        raws[name] = RawFiles.at(tmp_path / name)
    directory, scratch = tmp_path / "detector", tmp_path / "scratch"
    directory.mkdir()
    scratch.mkdir()
    figures = make_weights(Job(directory, scratch, Machine()), raws, small_spec(attributes=()))
    assert figures["classes"] == len(CLASSES)
    assert figures["attributes"] == len(ATTRIBUTES)
    assert not list(scratch.iterdir())
    made = DetectorWeights.at(directory)
    ready = made.load()
    assert list(ready.classes) == list(CLASSES)
    (found,) = ready.detect(ready.backbone([ready.prepare(picture(0, 64, 64))]))
    assert found.attributes is not None
    assert found.attributes.shape[1] == len(ATTRIBUTES)
    contract = made.contract(RegionSettings(boxes=Fixed(count=36), nms=ProposalNms(rule="proposals")))
    assert contract.features_of == "proposals"
    assert contract.layer == "res5_pool"
