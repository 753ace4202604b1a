"""A detector trained from scratch by detectron2's own losses on the COCO miniatures. It takes minutes: it is kept."""

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

# Batch norms learn; a box head of fewer rows, a smaller RPN batch: what a few hundred steps on two cores allow.
TRAINING: dict[str, Any] = {
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
}


def scenes(spec: DetectorSpec) -> list[dict[str, Any]]:
    """The miniatures of train2017 with boxes, as inputs of detectron2's model in training."""
    from detectron2.structures import Boxes, Instances

    told = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    classes = {row["id"]: spec.classes.index(row["name"]) for row in told["categories"]}  # type: ignore[union-attr]
    out = []
    for row in sorted(told["images"], key=lambda row: row["id"]):
        boxes = [b for b in told["annotations"] if b["image_id"] == row["id"] and not b.get("iscrowd")]
        if not boxes:
            continue
        prepared = prepare(Image.open(COCO / "train2017" / row["file_name"]).convert("RGB"), spec.preprocessing)
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (b["bbox"] for b in boxes)], np.float32)
        truth = Instances(tuple(prepared.pixels.shape[1:]))
        truth.gt_boxes = Boxes(torch.from_numpy(corners) * torch.tensor(prepared.scale * 2))
        truth.gt_classes = torch.tensor([classes[b["category_id"]] for b in boxes])
        mean = torch.tensor(spec.preprocessing.mean).view(3, 1, 1)
        out.append({"image": prepared.pixels + mean, "instances": truth})
    return out


def train(spec: DetectorSpec, steps: int, batch: int = 4) -> dict[str, Tensor]:
    """Weights for `spec`, whose batch norms are frozen."""
    from detectron2.layers import FrozenBatchNorm2d
    from detectron2.utils.events import EventStorage

    assert spec.classes is not None
    changed = spec.architecture.model_copy(update={"changes": spec.architecture.changes | TRAINING})  # type: ignore[union-attr]
    torch.manual_seed(0)
    model: Any = backend.network(spec.model_copy(update={"architecture": changed}), len(spec.classes)).train()
    data = scenes(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
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


def trained(spec: DetectorSpec, steps: int, kept: Path) -> dict[str, Tensor]:
    """The same, from the file `kept` where it has been made before."""
    from safetensors.torch import load_file, save_file

    if not kept.exists():
        save_file({name: tensor.contiguous() for name, tensor in train(spec, steps).items()}, kept)
    return load_file(kept)
