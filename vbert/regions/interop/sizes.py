"""The sizes of images that a foreign file doesn't record: from a folder of the images, or from a table.

A table is CSV or TSV with a header, JSON (COCO's annotations, or a list of objects), or Parquet, with the columns
image_id (or id), width and height, and file_name where it has one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from vbert.data.decode import BadImage, size
from vbert.data.names import bare, is_image
from vbert.errors import UserError
from vbert.regions.interop.boxes_in import Size
from vbert.regions.interop.raw_regions import BadEntry

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

TABLES = (".csv", ".tsv", ".json", ".parquet")


class NamedFiles(Protocol):
    """Files by name: a `RawFiles`, or a plain folder."""

    @property
    def title(self) -> str: ...
    def members(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def sha256(self, name: str) -> str: ...


class ImageSizes:
    """Image sizes by name. `find` returns (width, height) as shown and the image's sha256 (None from a table)."""

    def __init__(self, raw: NamedFiles) -> None:
        self._raw = raw
        names = [name for name in raw.members() if not name.startswith(".")]
        table = names[0] if len(names) == 1 and names[0].lower().endswith(TABLES) else None
        self._table: dict[str, Size] | None = None if table is None else {}
        if table is not None:
            self._table = _read_table(raw, table)
        self._names = ImageNames(self._table or [n for n in names if is_image(n)])
        if not len(self._names):
            raise UserError(f"{raw.title}: neither images nor a table of their sizes ({', '.join(TABLES)})")

    def find(self, key: str, where: str) -> tuple[Size, str | None]:
        """Raises BadEntry for no matching image, or several."""
        name = self._names.find(key, where)
        if self._table is not None:
            return self._table[name], None
        try:
            return size(self._raw.read(name)), self._raw.sha256(name)
        except BadImage as bad:
            raise BadEntry(where, "no size", f"its image {name} can't be opened ({bad})") from None


class ImageNames:
    """An index of image names that matches, beside the exact name: without folders and ending, in any case; and for a
    number, a name with that number at its end."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._alike: dict[str, set[str]] = {}
        for name in names:
            self._exact[name] = name
            for alike in _spellings(name):
                self._alike.setdefault(alike, set()).add(name)

    def __len__(self) -> int:
        return len(self._exact)

    def find(self, key: str, where: str) -> str:
        if key in self._exact:
            return key
        for alike in _spellings(key):
            names = self._alike.get(alike, set())
            if len(names) == 1:
                return next(iter(names))
            if names:
                first, second, *_ = sorted(names)
                raise BadEntry(where, "no image", f"{key!r} may be the image {first} or {second}; use --ids")
        raise BadEntry(where, "no image", f"there is no image {key!r} among those given by --images or --sizes")


def _spellings(name: str) -> list[str]:
    """The spellings of a name, the most exact first."""
    path = PurePosixPath(bare(name))
    stem = path.name
    digits = stem[len(stem.rstrip("0123456789")) :]
    whole = str(path.parent / stem) if str(path.parent) != "." else stem
    return list(dict.fromkeys([whole, stem, *([f"#{int(digits)}"] if digits else [])]))


def _read_table(raw: NamedFiles, name: str) -> dict[str, Size]:
    """image name → size; a file name stands for its image beside the id."""
    where = f"{raw.title}: {name}"
    sizes: dict[str, Size] = {}
    data = raw.read(name)
    try:
        for row in _rows(data, name.lower()):
            value = int(row["width"]), int(row["height"])
            if not all(float(row[side]) == size for side, size in zip(("width", "height"), value, strict=True)):
                raise ValueError(f"{row['width']!r:.20} × {row['height']!r:.20} are no whole numbers")
            if min(value) < 1:
                continue  # an image that could not be opened
            key = row.get("file_name") or row.get("image_id", row.get("id"))
            if key is None:
                raise KeyError("image_id")
            if sizes.setdefault(str(key), value) != value:
                raise ValueError(f"two sizes of {key!r:.80}, {value} and {sizes[str(key)]}")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, csv.Error) as error:
        raise UserError(f"{where}: no table of image_id, width and height ({type(error).__name__}: {error})") from None
    return sizes


def _rows(data: bytes, name: str) -> Iterable[Mapping[str, Any]]:
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        wanted = [c for c in ("image_id", "id", "file_name", "width", "height") if c in table.column_names]
        return [dict(row) for row in table.select(wanted).to_pylist()]
    if name.endswith(".json"):
        content = json.loads(data)
        return content["images"] if isinstance(content, dict) else content  # type: ignore[no-any-return]
    return csv.DictReader(io.StringIO(data.decode("utf-8-sig")), delimiter="\t" if name.endswith(".tsv") else ",")


@lru_cache(maxsize=2)
def sizes_of(raw: RawFiles) -> ImageSizes:
    """Once a process."""
    return ImageSizes(raw)
