"""A detector trained from scratch by detectron2's own losses on the COCO miniatures. It takes minutes: it is kept.

A few hundred steps on the photos of train2017 give, on those of val2017, a hundred boxes a photo that all score 0.05 to
0.1: enough to compare in fp32. Half precision flips such ties; thousands of steps on the photos that are compared give
scores and boxes as far apart as those of a full training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from regions.detectron2_reference import COCO
from torch import Tensor

from vbert.regions.backends import detectron2 as backend
from vbert.regions.detector import DetectorSpec
from vbert.regions.pixels import prepare

# Batch norms learn; fewer proposals, a box head of fewer rows: what two cores allow.
TRAINING: dict[str, Any] = {
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
}
BY_HEART: dict[str, Any] = TRAINING | {"MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5}


def scenes(spec: DetectorSpec, split: str, smallest: int) -> list[dict[str, Any]]:
    """The miniatures with boxes of `smallest` pixels of the input or more, as detectron2's model takes them in
    training."""
    from detectron2.structures import Boxes, Instances

    told = json.loads((COCO / "annotations" / f"instances_{split}.json").read_text())
    classes = {row["id"]: spec.classes.index(row["name"]) for row in told["categories"]}  # type: ignore[union-attr]
    out = []
    for row in sorted(told["images"], key=lambda row: row["id"]):
        boxes = [b for b in told["annotations"] if b["image_id"] == row["id"] and not b.get("iscrowd")]
        if not boxes:
            continue
        prepared = prepare(Image.open(COCO / split / row["file_name"]).convert("RGB"), spec.preprocessing)
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (b["bbox"] for b in boxes)], np.float32)
        truth = Instances(tuple(prepared.pixels.shape[1:]))
        truth.gt_boxes = Boxes(torch.from_numpy(corners) * torch.tensor(prepared.scale * 2))
        truth.gt_classes = torch.tensor([classes[b["category_id"]] for b in boxes])
        sides = truth.gt_boxes.tensor[:, 2:] - truth.gt_boxes.tensor[:, :2]
        truth = truth[(sides >= smallest).all(1)]
        if not len(truth):
            continue
        mean = torch.tensor(spec.preprocessing.mean).view(3, 1, 1)
        out.append({"image": prepared.pixels + mean, "instances": truth})
    return out


def train(spec: DetectorSpec, steps: int, by_heart: bool, batch: int = 4) -> dict[str, Tensor]:
    """Weights for `spec`, whose batch norms are frozen. `by_heart`: learnt on the photos of val2017 themselves."""
    from detectron2.layers import FrozenBatchNorm2d
    from detectron2.utils.events import EventStorage

    assert spec.classes is not None
    torch.set_num_threads(2)
    changes = spec.architecture.changes | (BY_HEART if by_heart else TRAINING)  # type: ignore[union-attr]
    changed = spec.architecture.model_copy(update={"changes": changes})
    torch.manual_seed(0)
    model: Any = backend.network(spec.model_copy(update={"architecture": changed}), len(spec.classes)).train()
    data = scenes(spec, "val2017", 8) if by_heart else scenes(spec, "train2017", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3 if by_heart else 1e-2)
    warmup = 0.1 if by_heart else 0.3
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=warmup)
    rng = np.random.default_rng(0)
    with EventStorage():
        for step in range(steps):
            losses = model([data[i] for i in rng.choice(len(data), batch, replace=False)])
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % 25 == 0:
                print(step, {name: round(float(value), 3) for name, value in losses.items()}, flush=True)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model.eval())
    return {name: tensor for name, tensor in frozen.state_dict().items() if not name.endswith("num_batches_tracked")}


def trained(spec: DetectorSpec, steps: int, by_heart: bool, folder: Path) -> dict[str, Tensor]:
    """The same, from `folder` where it has been made before."""
    from safetensors.torch import load_file, save_file

    kept = folder / f"narrow-{steps}{'-by-heart' if by_heart else ''}.safetensors"
    if not kept.exists():
        tensors = train(spec, steps, by_heart)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, kept)
    return load_file(kept)
