"""Miniatures of other systems' files, written as those systems write them, and the real features of ../shared/data."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_features = pytest.mark.skipif(
    not (SHARED / "region_features").is_dir(), reason="the real region features (../shared/data) are not here"
)


@dataclass
class Image:
    """One image's detections, boxes in pixels of the original image."""

    name: str
    width: int
    height: int
    features: np.ndarray
    boxes: np.ndarray
    conf: np.ndarray
    objects: np.ndarray
    attrs: np.ndarray
    attrs_conf: np.ndarray
    probabilities: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """x1/W y1/H x2/W y2/H w/W h/H."""
        over = self.boxes / np.float32([self.width, self.height] * 2)
        return np.concatenate([over, over[:, 2:] - over[:, :2]], 1).astype(np.float32)


def images(count: int = 5, dim: int = 16, classes: int = 7) -> list[Image]:
    """Names of COCO's shape in no order; between 3 and 6 regions each."""
    out = []
    for number in range(count):
        rng = np.random.default_rng(number)
        n, width, height = 3 + number % 4, 640 - 7 * number, 427 + number
        corner = rng.random((n, 2)) * [width * 0.6, height * 0.6]
        side = 5 + rng.random((n, 2)) * [width * 0.35, height * 0.35]
        boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
        features = np.maximum(rng.normal(size=(n, dim)), 0).astype(np.float32)
        logits = np.exp(3 * rng.normal(size=(n, classes)))
        probabilities = (logits / logits.sum(1, keepdims=True)).astype(np.float32)
        objects = probabilities.argmax(1)
        attrs, attrs_conf = rng.integers(0, 4, n), rng.random(n).astype(np.float32)
        name = f"COCO_val2014_{(number * 7919 + 13) % 600000:012d}"
        conf = probabilities.max(1)
        out.append(Image(name, width, height, features, boxes, conf, objects, attrs, attrs_conf, probabilities))
    return out[::-1]


def b64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype)).decode()


def lxmert_tsv(path: Path, given: list[Image], wrapped: bool = False) -> Path:
    """airsplay/lxmert: a csv.DictWriter with tabs (`wrapped`: what Python 3 makes of Python 2's script)."""
    fields = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"]
    fields += ["num_boxes", "boxes", "features"]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, fields, delimiter="\t")
        for one in given:
            row: dict[str, object] = {
                "img_id": one.name,
                "img_h": one.height,
                "img_w": one.width,
                "objects_id": b64(one.objects, "<i8"),
                "objects_conf": b64(one.conf, "<f4"),
                "attrs_id": b64(one.attrs, "<i8"),
                "attrs_conf": b64(one.attrs_conf, "<f4"),
                "num_boxes": len(one.boxes),
                "boxes": b64(one.boxes, "<f4"),
                "features": b64(one.features, "<f4"),
            }
            arrays = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
            writer.writerow(row | ({name: str(row[name].encode()) for name in arrays} if wrapped else {}))
    return path


def bottom_up_tsv(path: Path, given: list[Image]) -> Path:
    """peteanderson80/bottom-up-attention: ids are COCO's numbers; width before height."""
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, fields, delimiter="\t")
        for one in given:
            row: dict[str, object] = {
                "image_id": int(one.name.rpartition("_")[2]),
                "image_w": one.width,
                "image_h": one.height,
                "num_boxes": len(one.boxes),
                "boxes": b64(one.boxes, "<f4"),
                "features": b64(one.features, "<f4"),
            }
            writer.writerow(row)
    return path


def oscar_tsv(
    path: Path, given: list[Image], lineidx: bool = True, boxes: bool = True, pretraining: bool = False
) -> Path:
    """microsoft/Oscar: id and JSON (captioning), or id, count and features (pre-training); n × 2054 with boxes."""
    offsets, at = [], 0
    with path.open("w") as out:
        for one in given:
            values = np.concatenate([one.features, one.shares], 1) if boxes else one.features
            text = b64(values, "<f4")
            row = [one.name, json.dumps({"num_boxes": len(values), "features": text})]
            if pretraining:
                row = [one.name, str(len(values)), text]
            line = "\t".join(row) + "\n"
            offsets.append(at)
            at += len(line)
            out.write(line)
    if lineidx:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    return path


def mmf_npy(folder: Path, given: list[Image], info: bool = True, padding: int = 2) -> Path:
    """facebookresearch/mmf: features beside a dict by np.save; rows beyond num_boxes are padding."""
    folder.mkdir(parents=True)
    for one in given:
        np.save(folder / f"{one.name}.npy", np.pad(one.features, ((0, padding if info else 0), (0, 0))))
        if info:
            np.save(folder / f"{one.name}_info.npy", mmf_info(one, padding))
    return folder


def mmf_info(one: Image, padding: int) -> dict[str, object]:
    return {
        "bbox": np.pad(one.boxes, ((0, padding), (0, 0))),
        "num_boxes": len(one.boxes),
        "objects": np.pad(one.objects, (0, padding)),
        "cls_prob": np.pad(one.probabilities, ((0, padding), (0, 0))),
        "image_width": one.width,
        "image_height": one.height,
    }


def mmf_lmdb(folder: Path, given: list[Image], subfolder: str = "train2014/") -> Path:
    """facebookresearch/mmf's lmdb_conversion: pickled dicts, and `keys` with their pickled names."""
    import lmdb

    with lmdb.open(str(folder), map_size=2**28) as env, env.begin(write=True) as txn:
        keys = []
        for one in given:
            key = f"{subfolder}{one.name}".encode()
            keys.append(key)
            features = np.pad(one.features, ((0, 2), (0, 0)))
            txn.put(key, pickle.dumps({"feature_path": key.decode(), "features": features} | mmf_info(one, 2)))
        txn.put(b"keys", pickle.dumps(keys))
    return folder


def vilbert_lmdb(folder: Path, given: list[Image], volta: bool = False, arrays: bool = False) -> Path:
    """facebookresearch/vilbert-multi-task's and e-bug/volta's: base64 in pickled dicts, numbers as text."""
    import lmdb

    with lmdb.open(str(folder), map_size=2**28) as env, env.begin(write=True) as txn:
        for one in given:
            size = {"img_h": one.height, "img_w": one.width} if volta else {"image_h": str(one.height)}
            held: dict[str, object] = {"image_id": one.name, "num_boxes": str(len(one.boxes)), **size}
            held |= {} if volta else {"image_w": str(one.width), "cls_prob": b64(one.probabilities, "<f4")}
            for name, value in (("features", one.features), ("boxes", one.boxes)):
                held[name] = value if arrays else b64(value, "<f4").encode()
            if volta:
                held |= {"objects_id": b64(one.objects, "<i8"), "objects_conf": b64(one.conf, "<f4")}
                held |= {"attrs_id": b64(one.attrs, "<i8"), "attrs_conf": b64(one.attrs_conf, "<f4")}
            txn.put(one.name.encode(), pickle.dumps(held))
        txn.put(b"keys", pickle.dumps([one.name.encode() for one in given]))
    return folder


def mcan_npz(folder: Path, given: list[Image], by_rows: bool = False) -> Path:
    """MILVLG/mcan-vqa (features by columns) and MILVLG/bottom-up-attention.pytorch (by rows, with `info`)."""
    folder.mkdir(parents=True)
    for one in given:
        about = {"bbox": one.boxes, "num_bbox": len(one.boxes), "image_h": one.height, "image_w": one.width}
        if by_rows:
            info = {"image_id": one.name, "objects_id": one.objects, "objects_conf": one.conf}
            info |= {"attrs_id": one.attrs, "attrs_conf": one.attrs_conf}
            np.savez_compressed(folder / f"{one.name}.jpg.npz", x=one.features, **about, info=np.array(info, object))
        else:
            np.savez_compressed(folder / f"{one.name}.jpg.npz", x=one.features.T, **about)
    return folder


def uniter_lmdb(parent: Path, given: list[Image], compressed: bool = True, counts: bool = True) -> Path:
    """ChenRocks/UNITER's convert_imgdir: npz bytes with a stray `allow_pickle`, or msgpack by msgpack_numpy."""
    import lmdb
    import msgpack

    folder = parent / ("feat_th0.2_max100_min10" + ("_compressed" if compressed else ""))
    parent.mkdir(exist_ok=True)
    with lmdb.open(str(folder), map_size=2**28) as env, env.begin(write=True) as txn:
        names = {}
        for one in given:
            key = f"coco_{one.name.removeprefix('COCO_')}.npz"
            names[key] = len(one.boxes) - 1
            dump = {
                "norm_bb": one.shares.astype(np.float16),
                "features": one.features.astype(np.float16),
                "conf": one.conf.astype(np.float16),
                "soft_labels": one.probabilities.astype(np.float16),
            }
            if compressed:
                out = io.BytesIO()
                np.savez_compressed(out, **dump, allow_pickle=True)
                value = out.getvalue()
            else:
                packed = {
                    name: {
                        b"nd": True,
                        b"type": array.dtype.str,
                        b"kind": b"",
                        b"shape": array.shape,
                        b"data": array.tobytes(),
                    }
                    for name, array in dump.items()
                }
                value = msgpack.dumps(packed, use_bin_type=True)
            txn.put(key.encode(), value)
        txn.put(b"__keys__", json.dumps(list(names)).encode())
    if counts:
        (parent / "nbb_th0.2_max100_min10.json").write_text(json.dumps(names))
    return folder


def ban_hdf5(path: Path, given: list[Image], fixed: bool = False) -> Path:
    """jnhwkim/ban-vqa: all images one after another (or 36 each), and {image id: place} as a pickle."""
    import h5py

    def joined(name: str) -> np.ndarray:
        parts = [getattr(one, name) for one in given]
        return np.stack(parts) if fixed else np.concatenate(parts)

    with h5py.File(path, "w") as out:
        for name, field in (("image_features", "features"), ("image_bb", "boxes"), ("spatial_features", "shares")):
            values = joined(field)
            out.create_dataset(name, values.shape, "f")[:] = values
        if not fixed:
            ends = np.cumsum([len(one.boxes) for one in given])
            starts = np.r_[0, ends[:-1]]
            out.create_dataset("pos_boxes", (len(given), 2), dtype="int32")[:] = np.stack([starts, ends], 1)
    places = {int(one.name.rpartition("_")[2]): at for at, one in enumerate(given)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(places))
    return path


def visualbert_th(path: Path, given: list[Image], legacy: bool = False, numpy: bool = False) -> Path:
    """uclanlp/visualbert's one_giant_file: torch.save of {file name: (features, boxes, confidences)}."""
    import torch

    make = np.asarray if numpy else torch.Tensor
    held = {
        f"{one.name}.png" + (".npz" if at % 2 else ""): (make(one.features), make(one.boxes), make(one.conf))
        for at, one in enumerate(given)
    }
    torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    return path


def arrow(folder: Path, given: list[Image]) -> Path:
    """Hugging Face datasets' save_to_disk: an Arrow stream, and two files of JSON beside it."""
    import pyarrow as pa

    folder.mkdir()
    rows = [
        {
            "image_id": one.name,
            "width": one.width,
            "height": one.height,
            "features": one.features.tolist(),
            "boxes": one.boxes.tolist(),
            "scores": one.conf.tolist(),
            "classes": [str(number) for number in one.objects],
            "distributions": one.probabilities.tolist(),
        }
        for one in given
    ]
    lists = pa.list_(pa.list_(pa.float32()))
    fields = {"image_id": pa.string(), "width": pa.int32(), "height": pa.int32(), "features": lists, "boxes": lists}
    fields |= {"scores": pa.list_(pa.float32()), "classes": pa.list_(pa.string()), "distributions": lists}
    table = pa.Table.from_pylist(rows, pa.schema(fields))
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("{}")
    return folder


def detected(resized: bool = False) -> list[Image]:
    """The real features of 13 images whose photos are here (3 with boxes in pixels of the resized image)."""
    from PIL import Image as Picture

    held = np.load(SHARED / "region_features" / "region_features_13.npz", allow_pickle=False)
    out = []
    for folder in ("vqa_v2/images", "flickr30k_entities/images"):
        for path in sorted((SHARED / folder).glob("*.jpg")):
            if f"{path.name}|boxes" not in held:
                continue
            features, boxes = held[f"{path.name}|features"], held[f"{path.name}|boxes"]
            width, height = Picture.open(path).size
            if not resized:
                boxes = boxes / np.float32(min(800 / min(width, height), 1333 / max(width, height)))
            n = len(boxes)
            blank = np.zeros(n, np.int64)
            conf = np.linspace(1, 0.5, n, dtype=np.float32)
            out.append(Image(path.stem, width, height, features, boxes, conf, blank, blank, conf, np.ones((n, 1))))
    return out
