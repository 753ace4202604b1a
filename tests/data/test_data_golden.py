"""Golden digests of readers and decoding on fixed inputs. Other rows or pixels need a new version."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from data.data_steps import same
from data.test_data_fuzz import FILES, raws
from PIL import Image

from vbert.data import readers
from vbert.data.decode import decode
from vbert.data.raw import RawFiles, RawWriter
from vbert.data.readers import jsonl


def test_jsonl(tmp_path: Path) -> None:
    with RawWriter(tmp_path) as writer:
        writer.add("a/1.JPG", b"1")
        writer.add("b/2.png", b"2")
        writer.add(
            "boxes.jsonl", b'{"image": "b/2.png", "box": [1, 2, 3, 4.5], "class": "cat", "attributes": ["red"]}\n'
        )
        writer.add(
            "texts.jsonl",
            b'{"image": "a/1.JPG", "text": "a caption"}\n'
            b'{"image": "b/2.png", "text": "what?", "answer": "that", "split": "test"}\n'
            b'{"image_ids": ["a/1.JPG", "b/2.png"], "kind": "pair", "text": "both", "label": "false"}\n',
        )
    raws = {"mine": RawFiles.at(tmp_path)}
    found = [
        list(jsonl.images(raws, {"train": "a/", "test": "b/"})),
        list(jsonl.boxes(raws)),
        list(jsonl.examples(raws, {"a/1.JPG", "b/2.png"})),
    ]
    same(found, "36d3bb2a680a0fbc8a9d19bcff039ca3e9d04e0db006dddee8199c98a005e3a1", "vbert/data/readers/jsonl.py")


def test_decoding() -> None:
    """Pixels are input of `regions`: its version rises with these."""
    grid = np.arange(16 * 16 * 4, dtype=np.uint8).reshape(16, 16, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "grey": (Image.fromarray(grid[..., 0]), "PNG", {}),
        "grey16": (Image.fromarray(grid[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "rgba": (Image.fromarray(grid), "PNG", {}),
        "palette": (Image.fromarray(grid[..., :3]).quantize(16), "GIF", {}),
        "cmyk": (Image.fromarray(grid, "CMYK"), "TIFF", {}),
        "turned": (Image.fromarray(grid[:8, :, :3]), "PNG", {"exif": exif}),
    }
    found = {}
    for name, (image, kind, options) in files.items():
        out = io.BytesIO()
        image.save(out, kind, **options)
        shown = decode(out.getvalue())
        found[name] = [*shown.size, hashlib.sha256(shown.tobytes()).hexdigest()]
    same(
        found,
        "0e25bbc4eb4f818aec76dd9d3d33a4757b650fd95f2498d39feca2d06e5608f0",
        "vbert/data/decode.py (stage `regions`)",
    )


ROWS = {
    "aokvqa": "e4e237068c1d0c12c24459f6425e32cea1df147a208a74872257fa422603f54f",
    "flickr30k_entities": "9c443cd0ebca6f5a9548492d28e1c16dfec3ca60cf57f25336a8f861d5c0e599",
    "gqa": "2ba234895ab35af5fa94bbdb825916517ec2bfe9b77fd216dc4acd1ba703b11d",
    "karpathy": "ec6007aa24b851f1934750015e21f6067eccdc21b0cca0b254745bd1b712e30a",
    "links": "9718f00496df431f7d2f253abfccf4fd8dd980d4ebbd2270ab2f576c3abd7b2b",
    "mvsa": "0956b3ea08a528ce529e2b85c0d0f8ef360b34d341123d583e9f2b604aabe795",
    "nlvr": "5d0fc1682101ca052f79421590fd8d355cc40855c8ceef085eeb0f28081a4d66",
    "nlvr2": "fb72837f573db1296539d3a81fd5c5252f6c161d7655a05247f777cb05558ce7",
    "refcoco": "63869c67831cad8e1f16dab6aeb6d9e36f12e12e6d93cd7abcea3dbdf06b152d",
    "snli_ve": "8ec6e51b545372b2c7a8f7ced0b5c96963b60b8365faf28ce87884982f3acf58",
    "table": "32a1fc547eeb6770899063b3b4e5f717d217a24ce2faf53d17a3773752450082",
    "vcr": "e0b9034db646025c0a316300ef5d90cb0edee1567370aeb8dbd76df0ba6e8498",
    "visual_genome": "fcab05e1e758d7f7bb99c3954fca1f0f2c115facc9a8caaf21512270272da827",
    "vqa_rad": "2574ababa3fdb42ab17083570fc84f0cde10164dfc2735093d0bcbfa923b517f",
    "vqa_v2": "9dd2d556f7c11d7318c50b8bdf193701a99bdf7af507f481f312097aad944efe",
}


@pytest.mark.parametrize("reader", ROWS)
def test_rows_of_texts(reader: str) -> None:
    """Those of the files that are mutated elsewhere."""
    module, (files, others) = readers.load(reader), FILES[reader]
    held = raws({name: make(content) for name, (content, make) in files.items()} | others)
    found: dict[str, list[object]] = {}
    for part in ("images", "boxes", "examples"):
        if hasattr(module, part):
            given = (set(others),) if part == "examples" else ()
            rows = readers.call(module, part, held, *given, options={})
            found[part] = [row for row in rows if isinstance(row, dict)]
    for box in found.get("boxes", []):
        assert isinstance(box, dict)
        box.pop("stated", None)
    same(found, ROWS[reader], f"vbert/data/readers/{reader}.py")
