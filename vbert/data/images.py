"""Image collections: `images.parquet` (one row an image), `boxes.parquet`, and the only way to their pixels.

Regions see these and never a text, so one extraction serves every text set on the same photos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.steps.argument import Argument
from vbert.artifacts.steps.artifact import Artifact
from vbert.data.acceptance import objection
from vbert.data.decode import BadImage, decode
from vbert.errors import BuildError, UnknownImage, near, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from vbert.data.raw import RawFiles

__all__ = ["BadImage", "Images", "decode", "write_images"]


class Images(Artifact):
    """`images.parquet` sorted by image_id; `boxes.parquet` where there are boxes; `left_out.parquet` under a limit.

    Pixels are read through the raw files behind the index. An index in a store finds them itself, also when opened by
    its directory, `vbert.Images.at(directory)`. Elsewhere they are passed by the names of the spec's sources:
    `vbert.Images.at(directory).over({"photos": vbert.RawFiles.at(…)})`.

    >>> images = vbert.run("demo").artifact("images[easy_vqa]", vbert.Images)
    >>> images.table().column_names[:2]
    ['image_id', 'path']
    >>> images.open("test/100").size
    (64, 64)
    """

    raws: Argument[Mapping[str, RawFiles]] = Argument(through=True)  # the files behind the index, by source

    def table(self) -> pa.Table:
        """All images, as IMAGES_SCHEMA says."""
        from vbert.data.schemas import IMAGES_SCHEMA, read_table

        return read_table(self.file("images.parquet"), IMAGES_SCHEMA)

    def boxes(self) -> pa.Table | None:
        """All boxes, as BOXES_SCHEMA says, sorted by image_id; None where the collection has none."""
        from vbert.data.schemas import BOXES_SCHEMA, read_table

        return read_table(self.file("boxes.parquet"), BOXES_SCHEMA) if "boxes.parquet" in self.names() else None

    def objection(self) -> str | None:
        """Refuses more unusable boxes than the data set accepts."""
        return objection(self)

    def left_out(self) -> set[str]:
        """Ids of the images that a limit dropped."""
        if "left_out.parquet" not in self.names():
            return set()
        import pyarrow.parquet as pq

        return {str(i) for i in pq.read_table(self.file("left_out.parquet")).column("image_id").to_pylist()}

    def _files(self) -> Mapping[str, RawFiles]:
        """The raw files by source. Raises BuildError, saying how to pass them, where they are unknown."""
        try:
            return self.raws
        except BuildError as error:
            sources = sorted({str(path).partition("/")[0] for path in self.table().column("path").to_pylist()})
            files = ", ".join(f"{source!r}: RawFiles.at(…)" for source in sources)
            raise BuildError(f"{error}, or say where its images' files are: Images.at(…).over({{{files}}})") from None

    def over(self, raws: Mapping[str, RawFiles]) -> Images:
        """The same (loose) index over the given raw files: for tests and notebooks."""
        return self._copy(raws=dict(raws))

    def read(self, image_id: str) -> bytes:
        """The bytes of the image's file, checked against the index.

        Raises a KeyError that names near ids for an unknown one, BuildError where the file is no longer the one that
        was indexed.
        """
        index = self.file("images.parquet")
        places = _places(str(index), index.stat().st_mtime_ns)
        if image_id not in places:
            raise UnknownImage(f"{self!r} holds no image {image_id!r}; {near(image_id, places)}")
        path, sha256 = places[image_id]
        source, _, member = path.partition("/")
        raws = self._files()
        if source not in raws:
            raise BuildError(f"image {image_id!r} is in the source {source!r}; {nearest(source, raws)}")
        data = raws[source].read(member)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BuildError(f"image {image_id!r}: {path} has changed since it was indexed; run again to index it anew")
        return data

    def open(self, image_id: str) -> Image.Image:
        """The image as shown: RGB, EXIF orientation applied. Raises BadImage where it can't be decoded."""
        return decode(self.read(image_id))


@lru_cache(maxsize=4)
def _places(index: str, _mtime_ns: int) -> dict[str, tuple[str, str]]:
    """image_id → (path, sha256), once a process and index."""
    import pyarrow.parquet as pq

    table = pq.read_table(index, columns=["image_id", "path", "sha256"])
    columns = [table.column(name).to_pylist() for name in ("image_id", "path", "sha256")]
    return {i: (path, sha256) for i, path, sha256 in zip(*columns, strict=True)}


def write_images(
    directory: Path,
    rows: Iterable[Mapping[str, Any]],
    boxes: Iterable[Mapping[str, Any]] | None = None,
    left_out: Iterable[str] | None = None,
) -> dict[str, int]:
    """Write the collection's tables into `directory`; rows have the columns of the schemas. Returns counts.

    Raises BuildError, naming the image, where an id repeats, a row doesn't fit, or a box belongs to no image.
    """
    import pyarrow as pa

    from vbert.data.schemas import BOXES_SCHEMA, IMAGES_SCHEMA, as_table, first_duplicate, sorted_table, write_table

    try:
        table = sorted_table(as_table(rows, IMAGES_SCHEMA), "image_id")
        boxed = None if boxes is None else sorted_table(as_table(boxes, BOXES_SCHEMA), "image_id")
    except ValueError as error:
        raise BuildError(f"images: {error}; mend the reader or its file") from error
    if (repeated := first_duplicate(table, "image_id")) is not None:
        raise BuildError(f"images: the id {repeated!r} occurs twice; ids must be unique in a collection")
    write_table(directory / "images.parquet", table)
    figures = {"images": table.num_rows, "broken": table.column("width").to_pylist().count(0)}
    if boxed is not None and boxed.num_rows:
        known = set(table.column("image_id").to_pylist())
        for image_id in boxed.column("image_id").to_pylist():
            if image_id not in known:
                raise BuildError(f"boxes: image {image_id!r} is not in the collection; mend the reader")
        write_table(directory / "boxes.parquet", boxed)
        figures["boxes"] = boxed.num_rows
    if left_out is not None:
        write_table(directory / "left_out.parquet", pa.table({"image_id": pa.array(sorted(left_out), pa.string())}))
    return figures
