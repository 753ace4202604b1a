"""Miniatures of all that the shipped recipes read, in the official formats, and the settings that put them in place."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from regions import interop_files

WORDS = ["red", "blue", "green", "small", "old", "round", "open", "wet"]
THINGS = ["dog", "cat", "boat", "train", "house", "tree"]
SIZE = (24, 20)  # of photos, in pixels


def sentence(number: int) -> str:
    return f"the {WORDS[number % 8]} {THINGS[number % 6]} is beside the {WORDS[(number // 8) % 8]} {THINGS[number % 5]}"


def photo(path: Path) -> None:
    """A photo of one colour, another one for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = hashlib.sha256(path.name.encode()).digest()
    Image.new("RGB", SIZE, (colour[0], colour[1], colour[2])).save(path, "PNG")


def put(path: Path, data: bytes | str | list[Any] | dict[str, Any]) -> Path:
    """A file of these bytes, of this text, of JSON (a dict), or of one JSON object a line (a list)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, list):
        data = "".join(f"{json.dumps(row)}\n" for row in data)
    text = json.dumps(data) if isinstance(data, dict) else data
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def coco(folder: Path, year: int, **ids: range) -> dict[str, str]:
    """COCO of 2014 or 2017: split → ids of its photos; each has a box and three captions. The files by source."""
    places = {"annotations": folder / "annotations"}
    for split, numbers in ids.items():
        of = f"{split}{2015 if split == 'test' else year}"
        name = f"COCO_{of}_{{:012d}}.jpg" if year == 2014 else "{:012d}.jpg"
        key = of if year == 2014 else split
        places[key] = folder / key
        listed = [{"id": n, "file_name": name.format(n), "width": SIZE[0], "height": SIZE[1]} for n in numbers]
        for row in listed:
            photo(folder / key / row["file_name"])
        if split == "test":
            places["test_info"] = folder / "info"
            put(folder / "info" / "image_info_test2015.json", {"images": listed})
            continue
        boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [2, 2, 9 + n % 3, 8]} for n in numbers]
        captions = [
            {"id": 10 * n + k, "image_id": n, "caption": sentence(3 * n + 17 * k)} for n in numbers for k in range(3)
        ]
        kinds = [{"id": 1, "name": "dog"}, {"id": 2, "name": "boat"}]
        for kind, rows in (("instances", boxes), ("captions", captions)):
            content = {"images": listed, "annotations": rows, "categories": kinds}
            put(folder / "annotations" / f"{kind}_{split}{year}.json", content)
    return {source: str(place) for source, place in places.items()}


def vqa_v2(folder: Path, **ids: Sequence[int]) -> dict[str, str]:
    """Two questions a photo, with ten people's answers but to those of test; half of these are test-dev. The files by
    source."""
    for split, numbers in ids.items():
        year = 2015 if split == "test" else 2014
        questions = [
            {"image_id": n, "question": f"is {sentence(n + 5 * k)}?", "question_id": 10 * n + k}
            for n in numbers
            for k in range(2)
        ]
        name = "v2_OpenEnded_mscoco_{}_questions.json"
        put(folder / f"questions_{split}" / name.format(f"{split}{year}"), {"questions": questions})
        if split == "test":
            dev = questions[: len(questions) // 2]
            put(folder / f"questions_{split}" / name.format("test-dev2015"), {"questions": dev})
            continue
        annotations = [
            {
                "question_id": row["question_id"],
                "image_id": row["image_id"],
                "question_type": "is the",
                "answer_type": "yes/no",
                "answers": [
                    {"answer": "yes" if (k + row["question_id"]) % 3 else "no", "answer_id": k + 1} for k in range(10)
                ],
            }
            for row in questions
        ]
        put(folder / f"annotations_{split}" / f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})
    return {place.name: str(place) for place in folder.iterdir()}


def nlvr2(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Four sentences a split, each about two pairs of photos. The files by source, and the photos' names."""
    places = {"photos": str(folder / "photos")}
    photos = []
    for name in ("train", "dev", "test1", "test2"):
        rows: list[Any] = []
        for n in range(4):
            for pair in (0, 1):
                of = f"{name}-{n}-{pair}"
                rows.append({"identifier": f"{of}-0", "sentence": sentence(n), "label": str(pair == n % 2)})
                for side in (0, 1):
                    photos.append(f"{of}-img{side}.png")
                    photo(folder / "photos" / photos[-1])
        places[name] = str(put(folder / f"{name}.json", rows))
    return places, photos


def vcr(folder: Path) -> dict[str, str]:
    """Six questions a split, each about a still with two persons and a chair. The files by source."""
    for name in ("train", "val", "test"):
        rows: list[Any] = []
        for n in range(6):
            row = {
                "annot_id": f"{name}-{n}",
                "img_fn": f"film/{name}{n}@0.jpg",
                "metadata_fn": f"film/{name}{n}@0.json",
                "objects": ["person", "person", "chair"],
                "question": ["Why", "is", [n % 2], "near", [2], "?"],
                "answer_choices": [[[1], "likes", "the", word, [2], "."] for word in WORDS[n % 4 :][:4]],
                "rationale_choices": [["because", [0], "is", word, "."] for word in WORDS[n % 3 :][:4]],
            }
            rows.append(row if name == "test" else row | {"answer_label": n % 4, "rationale_label": (n + 1) % 4})
            photo(folder / "stills" / "vcr1images" / row["img_fn"])
            boxes = [[1.0, 2.0, 9.0, 12.0, 0.9], [8.0, 2.0, 18.0, 14.0, 0.8], [3.0, 9.0, 20.0, 19.0, 0.7]]
            beside = {"boxes": boxes, "segms": [[]] * 3, "names": row["objects"], "width": SIZE[0], "height": SIZE[1]}
            put((folder / "stills" / "vcr1images" / row["img_fn"]).with_suffix(".json"), beside)
        put(folder / "annotations" / f"{name}.jsonl", rows)
    return {source: str(folder / source) for source in ("annotations", "stills")}


def memes(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The five files, dev_unseen with half of dev_seen's memes. The files by source, and the photos' names."""
    counts = {"train": 16, "dev_seen": 6, "test_seen": 6, "test_unseen": 6}
    files: dict[str, list[dict[str, Any]]] = {}
    number = 1000
    for name, count in counts.items():
        files[name] = []
        for n in range(count):
            number += 1
            label = {} if name == "test_seen" else {"label": n % 2}
            files[name].append({"id": number, "img": f"img/{number:05d}.png", "text": sentence(n), **label})
            photo(folder / "img" / f"{number:05d}.png")
    files["dev_unseen"] = files["dev_seen"][:3]
    for name, rows in files.items():
        put(folder / f"{name}.jsonl", rows)
    return {"files": str(folder)}, [row["img"][4:-4] for rows in files.values() for row in rows]


def karpathy(folder: Path, name: str, **photos: Sequence[tuple[str, int | None]]) -> str:
    """Five captions of each photo of a split: (its file, its number in COCO). The folder."""
    rows: list[dict[str, Any]] = []
    for split, listed in photos.items():
        for file, number in listed:
            sentences = [{"raw": sentence(len(rows) + 7 * k), "sentid": 5 * len(rows) + k} for k in range(5)]
            row = {"filename": file, "split": split, "sentences": sentences}
            rows.append(row if number is None else row | {"cocoid": number})
    put(folder / f"dataset_{name}.json", {"images": rows})
    return str(folder)


FLICKR = {"train": range(1, 13), "val": range(13, 17), "test": range(17, 21)}


def flickr30k(folder: Path) -> dict[str, str]:
    """Photos and captions. The files by source."""
    for numbers in FLICKR.values():
        for n in numbers:
            photo(folder / "photos" / f"{n}.jpg")
    listed: dict[str, Any] = {split: [(f"{n}.jpg", None) for n in numbers] for split, numbers in FLICKR.items()}
    return {"photos": str(folder / "photos"), "captions": karpathy(folder / "captions", "flickr30k", **listed)}


def entities(folder: Path) -> dict[str, str]:
    """Two sentences of each photo of `flickr30k`, of two phrases, one with a box. The files by source."""
    places = {}
    for split, numbers in FLICKR.items():
        places[split] = str(put(folder / f"{split}.txt", "".join(f"{n}\n" for n in numbers)))
        for n in numbers:
            marked = (f"[/EN#{n}/people A {WORDS[k]} {THINGS[n % 6]}] in [/EN#0/notvisual it] .\n" for k in (0, 1))
            put(folder / "annotations" / "Sentences" / f"{n}.txt", "".join(marked))
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (1, 1, *SIZE), strict=True)
            box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
            size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
            content = f"<annotation>{size}<object><name>{n}</name><bndbox>{box}</bndbox></object></annotation>"
            put(folder / "annotations" / "Annotations" / f"{n}.xml", content)
    places["unrelated"] = str(put(folder / "UNRELATED_CAPTIONS", "# format: <imageID> <sentence number>\n1 2\n"))
    return places | {"annotations": str(folder / "annotations")}


def refcoco(folder: Path, **ids: Sequence[int]) -> str:
    """Two expressions for the one thing of each photo: split → COCO's numbers. The folder."""
    refs, objects = [], []
    for split, numbers in ids.items():
        for n in numbers:
            said = [{"sent_id": 2 * n + k, "sent": f"the {WORDS[k]} one", "raw": "", "tokens": []} for k in (0, 1)]
            row = {"ref_id": n, "ann_id": n, "image_id": n, "category_id": 1, "split": split, "sentences": said}
            refs.append(row)
            objects.append({"id": n, "image_id": n, "bbox": [0, 0, *SIZE], "iscrowd": 0})
    put(folder / "refs(unc).p", pickle.dumps(refs, 2))
    put(folder / "instances.json", {"annotations": objects})
    return str(folder)


def coco_captions(folder: Path) -> dict[str, str]:
    """COCO's photos of 2014 and captions in Karpathy's split. The files by source."""
    photos = coco(folder / "coco", 2014, train=range(1, 13), val=range(13, 21), test=range(21, 23))
    name = "COCO_{}2014_{:012d}.jpg"
    listed: dict[str, Any] = {"train": [(name.format("train", n), n) for n in range(1, 13)]}
    for split, numbers in (("restval", range(13, 15)), ("val", range(15, 18)), ("test", range(18, 21))):
        listed[split] = [(name.format("val", n), n) for n in numbers]
    return photos | {"captions": karpathy(folder / "captions", "coco", **listed)}


def regions(names: Sequence[str], dim: int) -> list[interop_files.Image]:
    """Three to six regions of each of the images."""
    some = interop_files.images(4, dim)
    return [replace(some[at % 4], name=name) for at, name in enumerate(dict.fromkeys(names))]


def pythia(folder: Path, **ids: range) -> str:
    """Pythia's features: one array an image."""
    for split, numbers in ids.items():
        of = f"{split}{2015 if split == 'test' else 2014}"
        interop_files.mmf_npy(
            folder / "fc6" / "vqa" / of, regions([f"COCO_{of}_{n:012d}" for n in numbers], 2048), info=False
        )
    return str(folder)


def detectron1(folder: Path, **names: Sequence[str]) -> str:
    """VisualBERT's features for NLVR2: file → the names of its images."""
    import torch

    folder.mkdir(parents=True)
    for file, given in names.items():
        held = {
            f"{one.name}.npz": tuple(map(torch.from_numpy, (one.features, one.boxes, one.conf.astype(np.float32))))
            for one in regions(given, 1024)
        }
        torch.save(held, folder / f"{file}.th")
    return str(folder)


SMALL = {"layers": 1, "hidden_size": 16, "heads": 2, "init": None}
SHORT = {"steps": 2, "batch_size": 4, "validate_every": 1, "validation_examples": 8}


def tiny(pretrained: Sequence[str], downstream: Sequence[str]) -> dict[str, Any]:
    """Small sizes and few steps. pretrained: the pre-trainings' places in the recipe."""
    changes = {f"model.{name}": value for name, value in SMALL.items()} | {"vocabulary.size": 300}
    for place in [*pretrained, *(f"downstream.{name}" for name in downstream)]:
        changes |= {f"{place}.{name}": value for name, value in SHORT.items()}
    return changes | {f"downstream.{name}.evaluate.resamples": 20 for name in downstream}


def vqa2_world(folder: Path) -> dict[str, Any]:
    ids = {"train": range(1, 41), "val": range(41, 61), "test": range(61, 65)}  # 51 and 55 are held out
    photos = coco(folder / "coco", 2014, **ids)
    features = pythia(folder / "features", **ids)
    answers = put(folder / "answers.txt", "<unk>\nyes\nno\nmaybe\n")
    return tiny(("pretrain.coco", "pretrain.task"), ("vqa",)) | {
        "data.coco.files": photos,
        "data.vqa.files": photos | vqa_v2(folder / "vqa", **ids),
        "data.coco.features.path": features,
        "data.vqa.features.path": features,
        "downstream.vqa.answers": str(answers),
    }


def nlvr2_world(folder: Path) -> dict[str, Any]:
    ids = {"train": range(1, 13), "val": range(13, 17)}
    files, photos = nlvr2(folder / "nlvr2")
    given = {f"coco_features_{split}_150": [f"COCO_{split}2014_{n:012d}.jpg" for n in ids[split]] for split in ids}
    of = {f"features_{name}_150": [p for p in photos if p.startswith(f"{name}-")] for name in ("train", "dev", "test1")}
    return tiny(("pretrain.coco", "pretrain.task"), ("nlvr2",)) | {
        "data.coco.files": coco(folder / "coco", 2017, **ids),
        "data.nlvr2.files": files,
        "data.coco.features.path": detectron1(folder / "coco_features", **given),
        "data.nlvr2.features.path": detectron1(folder / "nlvr2_features", **of),
    }


def vcr_world(folder: Path) -> dict[str, Any]:
    detector = {"spec": "shapes_cnn", "train": {"data": "coco", "steps": 1, "batch_size": 2}}
    return tiny(("pretrain.coco", "pretrain.task"), ("answer", "rationale")) | {
        "data.coco.files": coco(folder / "coco", 2017, train=range(1, 13), val=range(13, 17)),
        "data.vcr.files": vcr(folder / "vcr"),
        "detector": detector,
    }


def memes_world(folder: Path) -> dict[str, Any]:
    ids = {"train": range(1, 13), "val": range(13, 17)}
    files, photos = memes(folder / "memes")
    captioned = [f"COCO_train2014_{n:012d}" for numbers in ids.values() for n in numbers]
    for name in ("coco_features", "meme_features"):
        (folder / name).mkdir()
    return tiny(("pretrain",), ("memes",)) | {
        "data.coco.files": coco(folder / "coco", 2017, **ids),
        "data.memes.files": files,
        "downstream.memes.validation_examples": 16,
        "data.coco.features.path": str(
            interop_files.mmf_lmdb(folder / "coco_features", regions(captioned, 2048), subfolder="")
        ),
        "data.memes.features.path": str(
            interop_files.mmf_lmdb(folder / "meme_features", regions(photos, 2048), subfolder="")
        ),
    }


TINY_DETECTOR = {"spec": "shapes_cnn", "train": {"data": "coco", "steps": 1, "batch_size": 2}}


def entities_world(folder: Path) -> dict[str, Any]:
    return tiny(("pretrain.coco", "pretrain.task"), ("phrases",)) | {
        "data.coco.files": coco(folder / "coco", 2017, train=range(1, 13), val=range(13, 17)),
        "data.flickr.files": flickr30k(folder / "flickr") | entities(folder / "entities"),
        "detector": TINY_DETECTOR,
        "downstream.phrases.floor": 0.0,
    }


def refcoco_world(folder: Path) -> dict[str, Any]:
    files = coco_captions(folder)
    photos = {source: place for source, place in files.items() if source != "captions"}
    said = refcoco(folder / "refs", train=range(1, 9), val=range(9, 11), testA=[11], testB=[12])
    return tiny(("pretrain",), ("expressions",)) | {
        "data.coco.files": files,
        "data.refcoco.files": photos | {"expressions": said},
        "detector": TINY_DETECTOR,
        "downstream.expressions.floor": 0.0,
    }


def coco_retrieval_world(folder: Path) -> dict[str, Any]:
    return tiny(("pretrain",), ("retrieval",)) | {
        "data.coco.files": coco_captions(folder),
        "detector": TINY_DETECTOR,
        "downstream.retrieval.dual": 8,
        "downstream.retrieval.evaluate": {"splits": ["test"], "rerank": 2, "folds": 3, "resamples": 20},
    }


def coco_captioning_world(folder: Path) -> dict[str, Any]:
    return tiny(("pretrain",), ("captioning",)) | {
        "data.coco.files": coco_captions(folder),
        "detector": TINY_DETECTOR,
        "downstream.captioning.evaluate": {"splits": ["val", "test"], "beams": 2, "length": 6, "resamples": 20},
    }


def flickr30k_retrieval_world(folder: Path) -> dict[str, Any]:
    return tiny(("pretrain",), ("retrieval",)) | {
        "data.coco.files": coco(folder / "coco", 2017, train=range(1, 13), val=range(13, 17)),
        "data.flickr.files": flickr30k(folder / "flickr"),
        "detector": TINY_DETECTOR,
        "downstream.retrieval.dual": 8,
        "downstream.retrieval.evaluate": {"splits": ["test"], "rerank": 2, "resamples": 20},
    }


WORLDS = {
    "visualbert_flickr30k_entities": entities_world,
    "visualbert_refcoco_plus": refcoco_world,
    "visualbert_coco_retrieval": coco_retrieval_world,
    "visualbert_coco_captioning": coco_captioning_world,
    "visualbert_flickr30k_retrieval": flickr30k_retrieval_world,
    "visualbert_vqa2": vqa2_world,
    "visualbert_vqa2_large": vqa2_world,
    "visualbert_nlvr2": nlvr2_world,
    "visualbert_nlvr2_large": nlvr2_world,
    "visualbert_vcr": vcr_world,
    "visualbert_hateful_memes": memes_world,
}


def by_hand(folder: Path) -> dict[str, dict[str, Any]]:
    """What a person must fetch for the shipped recipes, as files without content: recipe → changes. Features stand
    where they are looked for with `$VBERT_DATA` as `folder`; planning reads no more than their bytes."""
    features = {
        "coco_2014_trainval/pythia_visual_genome_X_101": [
            f"COCO_{of}_1.npy" for of in ("train2014", "val2014", "test2015")
        ],
        "coco_2017/detectron1_mask_rcnn_R_101_FPN_2x": [f"coco_features_{of}_150.th" for of in ("train", "val")],
        "nlvr2/detectron1_mask_rcnn_R_101_FPN_2x": [f"features_{of}_150.th" for of in ("train", "dev", "test1")],
        "coco_2017/pythia_visual_genome_X_152": ["data.mdb"],
        "hateful_memes/pythia_visual_genome_X_152": ["data.mdb"],
    }
    photos = {
        "photos": ["a-img0.png", "a-img1.png"],
        "memes": [f"{of}.jsonl" for of in ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen")]
        + ["img/1.png"],
        "flickr30k": ["1.jpg"],
    }
    for place, names in (features | photos).items():
        for name in names:
            put(folder / place / name, bytes(16) + struct.pack("<I", 0xBEEFC0DE) if name == "data.mdb" else b"")
    pairs = {"data.nlvr2.files": {"photos": str(folder / "photos")}}
    none: dict[str, Any] = {}
    flickr = {"data.flickr.files": {"photos": str(folder / "flickr30k")}}
    return dict.fromkeys(WORLDS, none) | {
        "visualbert_flickr30k_entities": flickr,
        "visualbert_flickr30k_retrieval": flickr,
        "visualbert_nlvr2": pairs,
        "visualbert_nlvr2_large": pairs,
        "visualbert_hateful_memes": {"data.memes.files": {"files": str(folder / "memes")}},
    }
