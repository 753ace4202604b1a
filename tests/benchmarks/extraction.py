"""Region features, images/s from JPEG to file: our extraction against the loop that people write around the detector.

    python tests/benchmarks/extraction.py PHOTOS [--case detectron2 torchvision bottom_up] [--precision fp32]
        [--device cpu] [--images 16] [--peer-images 16] [--rounds 3] [--children 2] [--batch 1] [--loaders 1]

PHOTOS: a folder of real photos. Both sides have the same weights, drawn at random (the classifier's scaled, so that
classes score apart), and read the same files.

- `detectron2`: R50-FPN at short side 800. Peer: detectron2's own predictor as its users extract features with it: one
  image at a time, fp32, all threads; features of the kept proposals from its box head, saved as `.npy`.
- `torchvision`: the same with torchvision's `fasterrcnn_resnet50_fpn`, for where detectron2 is not installed. Peer: the
  model as torchvision builds it, in the same loop; features of the boxes it finds, from its own pooling and box head.
- `bottom_up`: ResNet-101 C4 at short side 600, 300 proposals, 1,600 classes and 400 attributes. Peer: the same network
  one image at a time, fp32, all threads, normalisation apart, NMS class by class (torchvision's), saved as `.npy`.

Ours: the stage `regions` into a store, on `--children` processes that have the detector loaded (the peer's is loaded
too), shards written, hashed and synced. Limit: our detector's forward on ready tensors, one after another, all threads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, print_result, result
from PIL import Image
from torch import Tensor

from flows.cli_preprocess import folder_recipe
from flows.graph import cut
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.stage import Machine
from vbert.regions.detector import DetectorSpec, detector_file, load_backend, write_weights

SPECS = {
    "detectron2": "detectron2_faster_rcnn_R_50_FPN_3x",
    "torchvision": "torchvision_fasterrcnn_resnet50_fpn",
    "bottom_up": "bottom_up_attention_36",
}
CLASSIFIERS = {
    "detectron2": "roi_heads.box_predictor.cls_score.weight",
    "torchvision": "roi_heads.box_predictor.cls_score.weight",
    "bottom_up": "head.classes.weight",
}
PEER_NAMES = {
    "detectron2": "detectron2's predictor loop",
    "torchvision": "a loop around torchvision's model",
    "bottom_up": "a loop with NMS class by class",
}


def random_weights(spec: DetectorSpec, classes: int) -> dict[str, Tensor]:
    """The network's own initialisation; the classifier scaled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = load_backend(spec.backend.name).network(spec, classes).state_dict()
    tensors[CLASSIFIERS[spec.backend.name]] *= 100
    return {name: tensor for name, tensor in tensors.items() if "pixel_" not in name}


def peer_detectron2(spec: DetectorSpec, tensors: dict[str, Tensor], device: str) -> Callable[[Path, Path], None]:
    """As detectron2's DefaultPredictor runs a model, with its box head's features of what it keeps."""
    from detectron2.data import transforms
    from detectron2.modeling import build_model

    from vbert.regions.backends.detectron2 import configuration

    config = configuration(spec, len(spec.classes or ()))
    config.MODEL.DEVICE = device
    model = build_model(config).eval()
    model.load_state_dict(tensors, strict=False)
    resize = transforms.ResizeShortestEdge([800, 800], 1333)

    @torch.no_grad()
    def extract(file: Path, target: Path) -> None:
        image = np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1]
        height, width = image.shape[:2]
        pixels = torch.as_tensor(resize.get_transform(image).apply_image(image).astype("float32").transpose(2, 0, 1))
        images = model.preprocess_image([{"image": pixels, "height": height, "width": width}])
        maps = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, maps, None)
        heads = model.roi_heads
        features = heads.box_head(
            heads.box_pooler([maps[f] for f in heads.in_features], [p.proposal_boxes for p in proposals])
        )
        _, kept = heads.box_predictor.inference(heads.box_predictor(features), proposals)
        np.save(target / f"{file.stem}.npy", features[kept[0]].half().cpu().numpy())

    return extract


def peer_bottom_up(spec: DetectorSpec, tensors: dict[str, Tensor], device: str) -> Callable[[Path, Path], None]:
    from torchvision.ops import nms

    from vbert.regions.backends.bottom_up import BottomUpDetector, network

    whole = network(spec, 1600)
    whole.load_state_dict(tensors)
    detector = BottomUpDetector(spec, [str(i) for i in range(1600)], whole, device)
    detector.network.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def extract(file: Path, target: Path) -> None:
        prepared = detector.prepare(Image.open(file).convert("RGB"))
        (found,) = detector.detect(detector.backbone([prepared]))
        best = torch.zeros(len(found.boxes), device=device)
        for column in found.scores.unbind(1):
            kept = nms(found.boxes, column, 0.3)
            best[kept] = torch.maximum(best[kept], column[kept])
        np.save(target / f"{file.stem}.npy", found.features[best.topk(36).indices].half().cpu().numpy())

    return extract


def peer_torchvision(spec: DetectorSpec, tensors: dict[str, Tensor], device: str) -> Callable[[Path, Path], None]:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.transforms.functional import to_tensor

    rows = len(tensors[CLASSIFIERS["torchvision"]])
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=rows).eval()
    unknown = model.load_state_dict(tensors, strict=False)
    assert not unknown.missing_keys, unknown.missing_keys
    model.to(device)

    @torch.no_grad()
    def extract(file: Path, target: Path) -> None:
        images, _ = model.transform([to_tensor(Image.open(file).convert("RGB")).to(device)])
        maps = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, maps)
        found, _ = model.roi_heads(maps, proposals, images.image_sizes)
        pooled = model.roi_heads.box_roi_pool(maps, [found[0]["boxes"]], images.image_sizes)
        np.save(target / f"{file.stem}.npy", model.roi_heads.box_head(pooled).half().cpu().numpy())

    return extract


PEERS = {"detectron2": peer_detectron2, "torchvision": peer_torchvision, "bottom_up": peer_bottom_up}


def loop(extract: Callable[[Path, Path], None], files: Sequence[Path], threads: int) -> float:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for file in files:
            extract(file, Path(folder))
        return len(files) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--case", choices=SPECS, default="detectron2")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--peer-images", type=int, help="of the images, those that the peer goes through; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--children", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loaders", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    spec = detector_file(SPECS[given.case]).spec()
    if spec.classes is None:
        names = [f"class {i}" for i in range(1600)]
        spec = spec.model_copy(update={"attributes": tuple(f"attribute {i}" for i in range(400))})
    else:
        names = list(spec.classes)
    with tempfile.TemporaryDirectory(prefix="vbert-extraction-") as folder:
        at = Path(folder)
        found = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for name, count in (("photos", given.images), ("few", given.children)):
            (at / name).mkdir()
            for number in range(count):
                shutil.copyfile(found[number % len(found)], at / name / f"{number:06d}.jpg")
        files = sorted((at / "photos").iterdir())
        (at / "weights").mkdir()
        tensors = random_weights(spec, len(names))
        write_weights(at / "weights", spec, names, tensors)
        machine = Machine(units_at_once=given.children, loader_workers=given.loaders, device=given.device)
        turn = iter(range(1 << 30))

        def ours(source: Path) -> float:
            """Images/s of the stage `regions`, in a fresh place; several shards, so that all children have work."""
            count = len(list(source.iterdir()))
            changes = [
                f"regions.images_per_shard={max(1, count // given.children)}",
                f"regions.batch={given.batch}",
                f"numerics.regions.precision={given.precision}",
            ]
            recipe = folder_recipe(source, SPECS[given.case], str(at / "weights"), None, changes)
            store = at / f"store{next(turn)}"
            (made,) = build_here(cut(recipe, ["regions"]), store, machine)
            seconds, images = made.seconds, made.figures["images"]
            assert images == count, made.figures
            shutil.rmtree(store, ignore_errors=True)
            return float(images / seconds)

        detector = load_backend(spec.backend.name).detector(spec, names, tensors, given.device)
        ready = [detector.prepare(Image.open(file).convert("RGB")) for file in files[: min(8, len(files))]]

        def limit() -> float:
            torch.set_num_threads(given.children if given.device == "cpu" else 1)
            low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(given.precision)
            began = time.perf_counter()
            with torch.autocast(given.device, low, enabled=low is not None):
                for prepared in ready:
                    detector.detect(detector.backbone([prepared]))
                    if given.device == "cuda":
                        torch.cuda.synchronize()
            return len(ready) / (time.perf_counter() - began)

        extract = PEERS[given.case](spec, tensors, given.device)
        ours(at / "few")  # children start and load the detector
        threads = torch.get_num_threads()
        peers = files[: given.peer_images]
        work = {"ours": lambda: ours(at / "photos"), "peer": lambda: loop(extract, peers, threads), "limit": limit}
        taken = alternate(work, given.rounds, warm_up=0 if given.device == "cpu" else 1)
    settings: dict[str, Any] = {name: value for name, value in vars(given).items() if name != "photos"}
    line = result(
        "extraction",
        ours=taken["ours"],
        peer=taken["peer"],
        peer_name=PEER_NAMES[given.case],
        limit=taken["limit"],
        unit="images/s",
        settings=settings | {"rates": {who: [round(r, 3) for r in rates] for who, rates in taken.items()}},
    )
    print_result(line)


if __name__ == "__main__":
    main()
