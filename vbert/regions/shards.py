"""Region features on disk: plain WebDataset tars, and an index for reading an image by one memory map.

A sample is one image, its members in this order: `<key>.features.npy` [n, d] float16; `<key>.boxes.npy` [n, 4] float32,
x1 y1 x2 y2 in pixels of the image as shown (absent where an imported format has none); `<key>.classes.npy` [n, C]
float16, a distribution over the detector's classes (present where an import has one); `<key>.json`.
Tars carry mtime 0 and a fixed owner, so equal features are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from vbert.artifacts.steps.artifact import Artifact
from vbert.errors import BuildError, UnknownImage, near

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from vbert.regions.contract import Contract

FLOAT16_MAX = 65504.0  # the largest float16; a larger feature would become infinite
KEY_BYTES = 200  # with the longest ending still below the 255 bytes a file name may have


def sample_key(image_id: str) -> str:
    """`image_id` percent-encoded outside [A-Za-z0-9_-] (webdataset cuts at the first dot); a digest where too long."""
    encoded = re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"%%%02X" % m[0][0], image_id.encode()).decode()
    return encoded if len(encoded) <= KEY_BYTES else hashlib.sha256(image_id.encode()).hexdigest()[:40]


def shard_name(shard: int) -> str:
    return f"{shard:06d}.tar"


INDEX = re.compile(r"search-[0-9a-f]{16}\.safetensors")  # `vbert search` keeps one of each model beside the shards
FILES = re.compile(  # .DS_Store is macOS's
    rf"\d{{6,}}\.tar|(offsets|quarantine)\.parquet|contract\.json|\.DS_Store|{INDEX.pattern}|\.{INDEX.pattern}\..+"
)


def index_name(model: str) -> str:
    """The file that `vbert search` keeps of a model, by its digest."""
    return f"search-{model[:16]}.safetensors"


def foreign_files(folder: Path) -> list[str]:
    """The names in a folder that are no files of shards, sorted; empty where the folder is absent."""
    if not folder.exists():
        return []
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    return [name for name in names if not ("contract.json" in names and FILES.fullmatch(name))]


@dataclass(frozen=True)
class RegionSample:
    """One image's sample to be written: features [n, d], boxes [n, 4], and n scores, class names and attribute lists.

    Fields that an imported format lacks: no scores, classes "", no attributes; sha256 and sizes None.
    `attribute_scores` has the shape of `attributes`; `distributions` is [n, C].
    """

    image_id: str
    image_sha256: str | None
    width: int | None
    height: int | None
    features: NDArray[np.float16]
    boxes: NDArray[np.float32] | None
    scores: Sequence[float]
    classes: Sequence[str]
    attributes: Sequence[Sequence[str]]
    attribute_scores: Sequence[Sequence[float]] | None = None
    distributions: NDArray[np.float16] | None = None

    def json(self) -> bytes:
        names = ["image_id", "width", "height", "scores", "classes", "attributes"]
        names += ["attribute_scores"] if self.attribute_scores is not None else []
        return json.dumps({name: getattr(self, name) for name in names}, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Regions:
    """One image's regions as read-only views of the memory map: `features` float16 [n, d], `boxes` float32 [n, 4], and
    `distributions` float16 [n, C] over classes."""

    features: NDArray[np.float16]
    boxes: NDArray[np.float32] | None
    json: bytes = field(repr=False)
    distributions: NDArray[np.float16] | None = None

    @cached_property
    def details(self) -> dict[str, Any]:
        """image_id, width, height (pixels as shown), and per region scores, classes, attributes."""
        return json.loads(self.json)  # type: ignore[no-any-return]

    @property
    def width(self) -> int:
        return self._pixels("width")

    @property
    def height(self) -> int:
        return self._pixels("height")

    def _pixels(self, side: str) -> int:
        if self.details[side] is None:
            raise BuildError(
                f"image {self.details['image_id']!r}: its features were imported without the image's size; import them "
                "again with `--images` or `--sizes`"
            )
        return int(self.details[side])

    @property
    def scores(self) -> list[float]:
        return self.details["scores"]  # type: ignore[no-any-return]

    @property
    def classes(self) -> list[str]:
        return self.details["classes"]  # type: ignore[no-any-return]

    @property
    def attributes(self) -> list[list[str]]:
        return self.details["attributes"]  # type: ignore[no-any-return]


class RegionSource(Protocol):
    """What region features are read from: `Shards`, or those of a few images in memory."""

    @property
    def title(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def read(self, image_id: str) -> Regions: ...

    def image_ids(self) -> list[str]: ...

    def contract(self) -> Contract: ...


def _npy(array: NDArray[Any]) -> tuple[bytes, int]:
    """The `.npy` file of `array`, and where in it the raw array begins."""
    import numpy as np

    out = BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    data = out.getvalue()
    return data, len(data) - array.nbytes


def _member(out: BinaryIO, name: str, data: bytes) -> int:
    """Append one tar member; returns the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(data), 0o444, "vbert", "vbert"
    out.write(info.tobuf(tarfile.GNU_FORMAT))
    offset = out.tell()
    out.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


def write_shard(directory: Path, shard: int, samples: Iterable[RegionSample]) -> dict[str, list[Any]]:
    """Write shard number `shard` into `directory`, one sample at a time. Returns its rows of the index, by column."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    with open(directory / shard_name(shard), "wb") as out:
        for sample in samples:
            key, text = sample_key(sample.image_id), sample.json()
            features, skip = _npy(sample.features.astype(np.float16, copy=False))
            row: dict[str, Any] = {
                "image_id": sample.image_id,
                "shard": shard,
                "n": len(sample.features),
                "features_offset": _member(out, f"{key}.features.npy", features) + skip,
                "boxes_offset": None,
            }
            if sample.boxes is not None:
                boxes, skip = _npy(sample.boxes.astype(np.float32, copy=False))
                row["boxes_offset"] = _member(out, f"{key}.boxes.npy", boxes) + skip
            if sample.distributions is not None:
                classes, skip = _npy(sample.distributions.astype(np.float16, copy=False))
                row["classes_offset"] = _member(out, f"{key}.classes.npy", classes) + skip
                row["classes_count"] = sample.distributions.shape[1]
            row["json_offset"] = _member(out, f"{key}.json", text)
            row["json_size"] = len(text)
            row["image_sha256"] = sample.image_sha256
            rows.append(row)
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
    columns = [*OFFSETS, *(CLASSES if any("classes_offset" in row for row in rows) else ())]
    return {name: [row.get(name) for row in rows] for name in columns}


# Columns of the two tables and their Arrow types; offsets are those of the raw arrays behind the `.npy` headers.
OFFSETS = {
    "image_id": "string",
    "shard": "int32",
    "n": "int32",
    "features_offset": "int64",
    "boxes_offset": "int64",
    "json_offset": "int64",
    "json_size": "int32",
    "image_sha256": "string",
}
CLASSES = {"classes_offset": "int64", "classes_count": "int32"}  # columns where an image has distributions
QUARANTINE = {"image_id": "string", "path": "string", "reason": "string", "detail": "string"}


def _table(parts: Iterable[Mapping[str, Sequence[Any]]], columns: Mapping[str, str]) -> pa.Table:
    """The parts' columns one after another, sorted by image_id; null where a part has no such column."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64()}
    schema = pa.schema([pa.field(name, kinds[kind]) for name, kind in columns.items()])
    tables = [
        pa.table({name: part.get(name, [None] * len(part["image_id"])) for name in columns}, schema=schema)
        for part in parts
    ]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks().sort_by("image_id")


def write_contents(
    directory: Path,
    offsets: Iterable[Mapping[str, Sequence[Any]]],
    quarantine: Iterable[Mapping[str, Sequence[Any]]],
    contract: Contract,
) -> dict[str, int]:
    """Write `offsets.parquet`, `quarantine.parquet` and `contract.json` beside the shards. Returns counts."""
    import pyarrow.compute as pc

    parts = list(offsets)
    columns = OFFSETS | (CLASSES if any(name in part for part in parts for name in CLASSES) else {})
    index, bad = _table(parts, columns), _table(quarantine, QUARANTINE)
    for name, table in (("offsets.parquet", index), ("quarantine.parquet", bad)):
        write_parquet(directory / name, table)
    contract.write(directory)
    return {
        "images": index.num_rows,
        "regions": pc.sum(index["n"]).as_py() or 0,
        "quarantined": bad.num_rows,
        "shards": pc.count_distinct(index["shard"]).as_py(),
    }


def write_parquet(path: Path, table: pa.Table) -> None:
    """Options fixed, so that equal tables are equal bytes; page checksums, because Parquet trusts its pages."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, version="2.6", compression="zstd", compression_level=3, write_page_checksum=True)


class _OpenShards:
    """One process's open shards: the index in memory, the tars mapped as they are asked for."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        table = shards.table()
        self.rows = {str(image_id): at for at, image_id in enumerate(table.column("image_id").to_pylist())}
        names = ("shard", "n", "features_offset", "boxes_offset", "json_offset", "json_size")
        self._columns = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
        self._classes = None
        if "classes_offset" in table.column_names:
            self._classes = list(zip(*(table.column(name).to_pylist() for name in CLASSES), strict=True))
        self._dim = shards.dim
        self._maps: dict[int, mmap.mmap] = {}

    def _map(self, shard: int) -> mmap.mmap:
        with open(self._shards.file(shard_name(shard)), "rb") as source:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[shard] = mapped
        return mapped

    def read(self, image_id: str) -> Regions:
        import numpy as np

        at = self.rows.get(image_id)
        if at is None:
            raise UnknownImage(f"{self._shards.no_image(image_id)}; {near(image_id, self.rows)}")
        shard, n, features, boxes, start, size = self._columns[at]
        mapped = self._maps.get(shard)
        if mapped is None:
            mapped = self._map(shard)
        classes, count = (None, 0) if self._classes is None else self._classes[at]
        return Regions(
            np.frombuffer(mapped, np.float16, n * self._dim, features).reshape(n, self._dim),
            None if boxes is None else np.frombuffer(mapped, np.float32, n * 4, boxes).reshape(n, 4),
            mapped[start : start + size],
            None if classes is None else np.frombuffer(mapped, np.float16, n * count, classes).reshape(n, count),
        )


class Shards(Artifact):
    """Region features of images by their ids: as a mapping, whose order is that of the sorted ids.

    Files: `%06d.tar`, `offsets.parquet`, `quarantine.parquet`, `contract.json`.

    >>> shards = vbert.Shards.at("features")  # what `vbert preprocess … --out features` or `vbert path` names
    >>> "test/100" in shards, len(shards) == len(list(shards))
    (True, True)
    >>> for image_id in shards:
    ...     regions = shards[image_id]  # features [n, d] float16, boxes [n, 4] float32 in pixels, classes, scores, …
    >>> regions.features.shape == (len(regions.boxes), shards.dim)
    True
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_reader", "_dim")}

    def read(self, image_id: str) -> Regions:
        """The regions of one image. Raises a KeyError that names near ids where the shards don't hold it."""
        return self._opened().read(image_id)

    def __getitem__(self, image_id: str) -> Regions:
        return self.read(image_id)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._opened().rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened().rows)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._opened().rows)

    def __bool__(self) -> bool:
        return True  # also shards that are not built yet, which have no length

    def _opened(self) -> _OpenShards:
        reader: _OpenShards | None = self.__dict__.get("_reader")
        if reader is None:
            reader = self.__dict__["_reader"] = _OpenShards(self)
        return reader

    def no_image(self, image_id: str) -> str:
        """The error for an image that the shards don't hold, with its reason if it is in quarantine."""
        problem = f"{self!r} holds no image {image_id!r}"
        why = [row for row in self.quarantine().to_pylist() if row["image_id"] == image_id]
        return f"{problem}: {why[0]['path']} is in quarantine, {why[0]['detail']}" if why else problem

    def table(self) -> pa.Table:
        """The index, sorted by image_id: the columns of OFFSETS, and of CLASSES where there are distributions."""
        import pyarrow.parquet as pq

        table: pa.Table = pq.read_table(self.file("offsets.parquet"))
        return table

    def image_ids(self) -> list[str]:
        """Sorted ids of the images the shards hold."""
        return [str(image_id) for image_id in self.table().column("image_id").to_pylist()]

    def objection(self) -> str | None:
        """Refuses more images in quarantine than the settings accept."""
        from vbert.regions.acceptance import objection

        return None if self.step is None or self.store is None else objection(self, self.store, self.quarantine)

    def quarantine(self) -> pa.Table:
        """Images that could not be used: image_id, path, reason, detail."""
        import pyarrow.parquet as pq

        table: pa.Table = pq.read_table(self.file("quarantine.parquet"))
        return table

    def contract(self) -> Contract:
        from vbert.regions.contract import Contract

        try:
            return Contract.read(self.file("contract.json"))
        except ValueError as error:
            raise BuildError(f"{self.title}: contract.json is not a feature contract of this version") from error

    @property
    def dim(self) -> int:
        """d, the length of a feature."""
        known = self.__dict__.get("_dim")
        if known is None:
            known = self.__dict__["_dim"] = self.contract().dim
        return int(known)
