"""Reading region features back, images/s, and bytes an image: our shards against the formats users come from.

    python tests/benchmarks/shards.py [--images 1000] [--rounds 5]

The same random features, 36 × 2048 an image, in each format as its own code writes it: LXMERT's TSV (base64 float32,
read line by line; shuffled by seeking to recorded lines, as Oscar's reader does), MMF's LMDB (pickled dicts of
float32), one `.npy` an image (float32). Ours: float16 shards, read by offset through a memory map. Each read ends in
arrays of its own in memory. Sequential and shuffled; warm (in the file cache) and cold-ish (reopened, the files' pages
given back first, which the disk below may still hold). Limit: `pread` of the same bytes as ours. Needs lmdb.
"""

from __future__ import annotations

import argparse
import base64
import csv
import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from measure import alternate, print_result, result

from vbert.regions.shards import OFFSETS, QUARANTINE, RegionSample, Shards, write_parquet, write_shard

BOXES, DIM, PER_SHARD = 36, 2048, 500
TSV_COLUMNS = [
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
    "num_boxes", "boxes", "features",
]  # fmt: skip


def features(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Features as a ReLU leaves them, and boxes, of image `number`."""
    draw = np.random.default_rng(number)
    found = np.maximum(draw.standard_normal((BOXES, DIM), np.float32), 0)
    return found, draw.random((BOXES, 4), np.float32) * 600


@dataclass(frozen=True)
class Format:
    """Files of a format, and how one pass over images (by number) reads them."""

    files: Sequence[Path]
    sequential: Callable[[], int]
    shuffled: Callable[[Sequence[int]], int]
    reopen: Callable[[], object] = lambda: None  # what is mapped stays in the cache

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def ours(folder: Path, count: int) -> Format:
    folder.mkdir()
    tables: list[dict[str, list[Any]]] = []
    for shard, start in enumerate(range(0, count, PER_SHARD)):

        def samples(numbers: range) -> Any:
            for number in numbers:
                found, boxes = features(number)
                scores, names = [0.5] * BOXES, ["object"] * BOXES
                yield RegionSample(
                    f"{number:012d}", "0" * 64, 640, 480, found.astype(np.float16), boxes, scores, names, [[]] * BOXES
                )

        tables.append(write_shard(folder, shard, samples(range(start, min(count, start + PER_SHARD)))))
    import pyarrow as pa

    rows = {name: [value for table in tables for value in table[name]] for name in OFFSETS}
    write_parquet(folder / "offsets.parquet", pa.table(rows))
    write_parquet(folder / "quarantine.parquet", pa.table({name: pa.array([], pa.string()) for name in QUARANTINE}))
    shards = Shards.at(folder)
    shards.__dict__["_dim"] = DIM
    names = shards.image_ids()

    def read(numbers: Sequence[int]) -> int:
        total = 0
        for number in numbers:
            one = shards.read(names[number])
            assert one.boxes is not None
            total += len(np.array(one.features)) + len(np.array(one.boxes))
        return total

    reopen = partial(shards.__dict__.pop, "_reader", None)
    return Format(sorted(folder.iterdir()), lambda: read(range(count)), read, reopen)


def bare(folder: Path, shards: Format) -> Format:
    """`pread` of the bytes of features and boxes that our shards hold."""
    table = Shards.at(folder).table().to_pydict()
    files = [os.open(path, os.O_RDONLY) for path in shards.files if path.suffix == ".tar"]
    places = list(zip(table["shard"], table["features_offset"], table["boxes_offset"], strict=True))

    def read(numbers: Sequence[int]) -> int:
        total = 0
        for number in numbers:
            shard, feature, box = places[number]
            total += len(os.pread(files[shard], BOXES * DIM * 2, feature)) + len(
                os.pread(files[shard], BOXES * 16, box)
            )
        return total

    return Format(shards.files, lambda: read(range(len(places))), read, shards.reopen)


def lxmert_tsv(folder: Path, count: int) -> Format:
    folder.mkdir()
    path, starts = folder / "features.tsv", []
    with path.open("wb") as out:
        for number in range(count):
            found, boxes = features(number)
            ones = np.ones(BOXES, np.float32)
            whole = np.ones(BOXES, np.int64)
            parts = [f"{number:012d}".encode(), b"480", b"640", *map(base64.b64encode, (whole, ones, whole, ones))]
            starts.append(out.tell())
            out.write(b"\t".join([*parts, b"%d" % BOXES, base64.b64encode(boxes), base64.b64encode(found)]) + b"\n")
    csv.field_size_limit(sys.maxsize)

    def row(item: dict[str, Any]) -> int:
        kinds = {"objects_id": np.int64, "attrs_id": np.int64}
        decoded = [
            np.frombuffer(base64.b64decode(item[name]), kinds.get(name, np.float32))
            for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
        ]
        return len(decoded[5].reshape(int(item["num_boxes"]), -1)) + len(decoded[4].reshape(-1, 4))

    def sequential() -> int:
        with path.open() as source:
            return sum(row(item) for item in csv.DictReader(source, TSV_COLUMNS, delimiter="\t"))

    def shuffled(numbers: Sequence[int]) -> int:
        total = 0
        with path.open() as source:
            for number in numbers:
                source.seek(starts[number])
                values = [part.strip() for part in source.readline().split("\t")]
                total += row(dict(zip(TSV_COLUMNS, values, strict=True)))
        return total

    return Format([path], sequential, shuffled)


def mmf_lmdb(folder: Path, count: int) -> Format:
    with lmdb.open(str(folder), map_size=1 << 40) as made:
        for start in range(0, count, 100):
            with made.begin(write=True) as write:
                for number in range(start, min(count, start + 100)):
                    found, boxes = features(number)
                    about = {
                        "feature_path": f"{number:012d}", "features": found, "image_height": 480, "image_width": 640,
                        "num_boxes": BOXES, "objects": np.ones(BOXES, np.int64), "cls_prob": None, "bbox": boxes,
                    }  # fmt: skip
                    write.put(f"{number:012d}".encode(), pickle.dumps(about))
    opened: list[Any] = []

    def reopen() -> None:
        while opened:
            opened.pop().close()
        opened.append(lmdb.open(str(folder), max_readers=1, readonly=True, lock=False, readahead=False, meminit=False))

    def read(numbers: Sequence[int]) -> int:
        total = 0
        for number in numbers:
            with opened[0].begin(write=False, buffers=True) as transaction:
                item = pickle.loads(transaction.get(f"{number:012d}".encode()))
            total += len(item["features"]) + len(item["bbox"])
        return total

    reopen()
    return Format(sorted(folder.iterdir()), lambda: read(range(count)), read, reopen)


def npy_files(folder: Path, count: int) -> Format:
    folder.mkdir()
    for number in range(count):
        np.save(folder / f"{number:012d}.npy", features(number)[0])

    def read(numbers: Sequence[int]) -> int:
        return sum(len(np.load(folder / f"{number:012d}.npy")) for number in numbers)

    return Format(sorted(folder.iterdir()), lambda: read(range(count)), read)


def forget(form: Format) -> None:
    """Give the files' pages in the cache back."""
    form.reopen()
    for path in form.files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbert-shards-") as folder:
        at = Path(folder)
        formats = {"ours": ours(at / "ours", given.images)}
        formats["pread"] = bare(at / "ours", formats["ours"])
        formats |= {
            "LXMERT TSV": lxmert_tsv(at / "tsv", given.images),
            "MMF LMDB": mmf_lmdb(at / "lmdb", given.images),
            ".npy a file": npy_files(at / "npy", given.images),
        }
        order = random.Random(0).sample(range(given.images), given.images)

        def rate(form: Format, shuffled: bool, cold: bool) -> float:
            if cold:
                forget(form)
            began = time.perf_counter()
            assert (form.shuffled(order) if shuffled else form.sequential()) > 0
            return given.images / (time.perf_counter() - began)

        lines = {}
        for shuffled in (False, True):
            for cold in (True, False):
                case = f"{'shuffled' if shuffled else 'sequential'}, {'cold-ish' if cold else 'warm'}"
                work = {name: lambda f=form, s=shuffled, c=cold: rate(f, s, c) for name, form in formats.items()}
                taken = alternate(work, given.rounds)
                for name in ("LXMERT TSV", "MMF LMDB", ".npy a file"):
                    size = formats["ours"].bytes() / given.images, formats[name].bytes() / given.images
                    lines[f"{case}: {name}"] = line = result(
                        "shards",
                        ours=taken["ours"],
                        peer=taken[name],
                        peer_name=name,
                        limit=taken["pread"],
                        unit="images/s",
                        settings={
                            "case": case,
                            "images": given.images,
                            "features": f"{BOXES} × {DIM}",
                            "rounds": given.rounds,
                            "bytes_per_image": {"ours": round(size[0]), "peer": round(size[1])},
                            "bytes_ratio": round(size[0] / size[1], 3),
                        },
                    )
                    print(
                        f"{case}: ours {line['ours']:,.0f}, {name} {line['peer']:,.0f}, ratio {line['ratio']}, "
                        f"of limit {line['of_limit']}, bytes {line['settings']['bytes_ratio']}"
                    )
    print_result({**lines["shuffled, warm: LXMERT TSV"], "cases": lines})


if __name__ == "__main__":
    main()
