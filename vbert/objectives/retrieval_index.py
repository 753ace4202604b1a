"""The dual encoder's vectors of all images of a folder of region features: made once, kept beside the features.

A kept index holds of each image the digest of its regions, so that only images whose regions changed are read by the
model again. An index that is damaged, or isn't whole, counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from vbert.artifacts.store import durable
from vbert.artifacts.store.cache import base_directory
from vbert.artifacts.store.manifest import NAME as MANIFEST
from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.model.retrieval import PairScorer, RetrievalModel
from vbert.objectives.batches import RegionInputs
from vbert.objectives.trained import WEIGHTS, Model
from vbert.regions.shards import Shards, index_name, shard_name

if TYPE_CHECKING:
    from vbert.model.vocabulary import WordPieceEncoder

READ_AT_ONCE = 512  # images whose regions are in memory together
VERSION = 1  # raised by hand when the same model makes other vectors
OF_MODEL = (WEIGHTS, "config.json", "contract.json", "head.json", "vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class ImageIndex:
    """Vectors of images, in the order of their sorted ids.

    vectors: float32 [n, d], of length 1. digests: uint8 [n, 32], the sha256 of each image's regions. source: what the
    files of the features were like when these were read, 32 bytes.
    """

    image_ids: Sequence[str]
    vectors: NDArray[np.float32]
    digests: NDArray[np.uint8]
    source: bytes

    def to_bytes(self) -> bytes:
        """A safetensors file: vectors, digests, the ids as JSON, source, and a digest of them all."""
        from safetensors.numpy import save

        ids = json.dumps(list(self.image_ids), ensure_ascii=False).encode()
        arrays: dict[str, NDArray[Any]] = {
            "vectors": self.vectors,
            "digests": self.digests,
            "image_ids": np.frombuffer(ids, np.uint8),
            "source": np.frombuffer(self.source, np.uint8),
        }
        return save({**arrays, "sha256": np.frombuffer(_digest_of(arrays), np.uint8)})

    @classmethod
    def from_bytes(cls, content: bytes) -> ImageIndex:
        """Raises ValueError for bytes that are none, or not those that were written."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(content)
            if arrays.pop("sha256").tobytes() != _digest_of(arrays):
                raise ValueError("its digest is another")
            ids = json.loads(arrays["image_ids"].tobytes())
            return cls(ids, arrays["vectors"], arrays["digests"], arrays["source"].tobytes())
        except (SafetensorError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"no whole index ({error})") from None


def _digest_of(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Of names, types, shapes and bytes: a safetensors file doesn't protect itself."""
    out = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        out.update(f"{name} {array.dtype} {array.shape}\n".encode())
        out.update(np.ascontiguousarray(array).data)
    return out.digest()


def model_digest(model: Model) -> str:
    """Of the files that its vectors hang on, hex."""
    out = hashlib.sha256(f"{VERSION}\n".encode())
    for name in OF_MODEL:
        with open(model.file(name), "rb") as source:
            out.update(f"{name} {hashlib.file_digest(source, 'sha256').hexdigest()}\n".encode())
    return out.hexdigest()


def source_digest(shards: Shards) -> bytes:
    """What the files of the features are like: index and contract by content, shards by (size, mtime_ns, inode)."""
    out = hashlib.sha256()
    for name in ("offsets.parquet", "contract.json"):
        out.update(shards.file(name).read_bytes())
    for shard in sorted({int(number or 0) for number in shards.table()["shard"].to_pylist()}):
        status = os.stat(shards.file(shard_name(shard)))
        out.update(f"{shard} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return out.digest()


def regions_digest(shards: Shards, image_id: str) -> bytes:
    """Of all that a model may read of an image: features, boxes and the image's size."""
    regions = shards.read(image_id)
    out = hashlib.sha256(f"{regions.details['width']} {regions.details['height']} {regions.features.shape}".encode())
    out.update(np.ascontiguousarray(regions.features).data)
    out.update(b"" if regions.boxes is None else np.ascontiguousarray(regions.boxes).data)
    return out.digest()


@dataclass(frozen=True)
class KeptIndex:
    """An index, where it is kept (None: in memory alone, for `reason`), and how many vectors were made now."""

    index: ImageIndex
    path: Path | None
    made: int
    reason: str = ""


def image_index(
    model: Model,
    network: RetrievalModel,
    encoder: WordPieceEncoder,
    shards: Shards,
    visuals: RegionInputs,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KeptIndex:
    """The index of all images of `shards`, whose inputs `visuals` are: the kept one, with vectors made anew for images
    that changed, and kept again. network: `model`, loaded, in eval mode.

    It is kept in the folder of the features; where that can't be written, or is of a store, in the cache directory.
    """
    name = index_name(model_digest(model))
    places = _places(shards.path, name)
    source = source_digest(shards)
    known: dict[str, tuple[bytes, NDArray[np.float32]]] = {}
    for place in places:
        kept = _read(place, network)
        if kept is not None and kept.source == source:
            return KeptIndex(kept, place, 0)
        if kept is not None and not known:
            before = (row.tobytes() for row in kept.digests)
            known = dict(zip(kept.image_ids, zip(before, kept.vectors, strict=True), strict=True))
    ids = shards.image_ids()
    digests = {image_id: regions_digest(shards, image_id) for image_id in ids}
    vectors = {i: known[i][1] for i in ids if i in known and known[i][0] == digests[i]}
    fresh = [image_id for image_id in ids if image_id not in vectors]
    for at in range(0, len(fresh), READ_AT_ONCE):
        progress(at, len(fresh))
        part = fresh[at : at + READ_AT_ONCE]
        scorer = PairScorer(network, [], [encoder.cls, encoder.sep], (visuals.of([one])[0] for one in part))
        vectors |= dict(zip(part, scorer.image_vectors(), strict=True))
    made = ImageIndex(
        ids,
        np.stack([vectors[image_id] for image_id in ids]),
        np.frombuffer(b"".join(digests.values()), np.uint8).reshape(len(ids), -1),
        source,
    )
    reason = ""
    for place in places:
        try:
            _write(place, made.to_bytes())
            return KeptIndex(made, place, len(fresh), reason)
        except OSError as error:
            reason = reason or f"{place.parent} can't be written ({error.strerror})"
    return KeptIndex(made, None, len(fresh), reason)


def _places(folder: Path, name: str) -> list[Path]:
    """Where an index may be kept, the best first: beside features of a store no other files belong."""
    below = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cached = base_directory() / "search" / below / name
    in_store = any((place / MANIFEST).exists() for place in (folder, folder.parent))
    return [cached] if in_store else [folder / name, cached]


def _read(path: Path, network: RetrievalModel) -> ImageIndex | None:
    """A whole index of vectors of the model's length; None for anything else."""
    with suppress(OSError, ValueError):
        index = ImageIndex.from_bytes(path.read_bytes())
        assert network.dual is not None
        shapes = (len(index.image_ids), network.dual.image.out_features), (len(index.image_ids), 32)
        if (index.vectors.shape, index.digests.shape) == shapes:
            return index
    return None


def _write(path: Path, content: bytes) -> None:
    """The file as a whole, or what was there before. Raises OSError."""
    durable.make_directories(path.parent)
    clear_dead(path.parent, f".{path.name}")
    making = path.with_name(f".{path.name}.{uuid4().hex}")
    record = making.with_name(making.name + SUFFIX)
    try:
        Owner.current().write(record)
        durable.write_file(making, content)
        durable.rename(making, path)
    finally:
        making.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
