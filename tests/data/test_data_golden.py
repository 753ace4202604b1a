"""Golden digests of readers and decoding on fixed inputs. Other rows or pixels need a new version."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from data.data_steps import same
from PIL import Image

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
