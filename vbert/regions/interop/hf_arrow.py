"""A folder of Hugging Face `datasets`, which `load_from_disk` opens: one row an image.

image_id string · width, height int32 · features list of float16 [d] · boxes list of float32 [4], x1 y1 x2 y2 in pixels
of the original image · scores · classes · attributes · distributions list of float16 [C]; what the features don't come
with is null. Written only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vbert.artifacts.durable import sha256_file
from vbert.artifacts.errors import UserError
from vbert.regions.interop.found import Found, missing

ROWS_AT_ONCE = 64  # in memory


def write(target: Path, entries: Iterable[tuple[str, Found]]) -> dict[str, Any]:
    """Write the entries into the empty folder `target`, in their order. Returns counts."""
    try:
        import datasets
    except ImportError:
        raise UserError(missing("datasets", "a folder of Hugging Face datasets")) from None
    first, rest = _first(entries)
    counts = {"images": 0, "regions": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for image_id, found in rest:
            counts["images"] += 1
            counts["regions"] += len(found.features)
            yield _row(image_id, found)

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arrow-") as scratch:
        file = Path(scratch) / "rows.arrow"
        with datasets.arrow_writer.ArrowWriter(
            path=str(file), features=_features(datasets, first), writer_batch_size=ROWS_AT_ONCE
        ) as writer:
            for row in rows():
                writer.write(row)
            writer.finalize()
        made = datasets.Dataset.from_file(str(file))
        made._fingerprint = sha256_file(file)[:16]  # the library's own is of the time: same features, same bits
        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.utils.logging.disable_progress_bar()
        try:
            made.save_to_disk(str(target))
        finally:
            if bars:
                datasets.utils.logging.enable_progress_bar()
    return {**counts, "zeros": []}


def _first(entries: Iterable[tuple[str, Found]]) -> tuple[Found, Iterator[tuple[str, Found]]]:
    """The first entry that has regions (it tells d and C), and all entries."""
    waiting, source = [], iter(entries)
    for entry in source:
        waiting.append(entry)
        if len(entry[1].features):
            break
    if not waiting:
        raise UserError("there are no features to export")

    def everything() -> Iterator[tuple[str, Found]]:
        yield from waiting
        yield from source

    return waiting[-1][1], everything()


def _features(datasets: Any, first: Found) -> Any:
    many, value = datasets.List, datasets.Value
    columns = {
        "image_id": value("string"),
        "width": value("int32"),
        "height": value("int32"),
        "features": many(many(value("float16"), length=first.features.shape[1])),
        "boxes": many(many(value("float32"), length=4)),
        "scores": many(value("float32")),
        "classes": many(value("string")),
        "attributes": many(many(value("string"))),
    }
    if first.distributions is not None:
        columns["distributions"] = many(many(value("float16"), length=first.distributions.shape[1]))
    return datasets.Features(columns)


def _row(image_id: str, found: Found) -> dict[str, Any]:
    import numpy as np

    def numbers(values: Any, dtype: Any) -> Any:
        return None if values is None else list(np.asarray(values, dtype))

    row = {
        "image_id": image_id,
        "width": found.width,
        "height": found.height,
        "features": numbers(found.features, np.float16),
        "boxes": numbers(found.boxes if found.unit == "pixels" else None, np.float32),
        "scores": numbers(found.scores, np.float32),
        "classes": None if found.classes is None else list(found.classes),
        "attributes": None if found.attributes is None else [list(names) for names in found.attributes],
    }
    return row | ({} if found.distributions is None else {"distributions": numbers(found.distributions, np.float16)})
