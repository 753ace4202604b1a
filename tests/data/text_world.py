"""Specs of texts about images in one folder, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.data_steps import built, described

from vbert.artifacts.store.store import Store
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec

SHARED = Path(__file__).parents[2] / "../shared/data"


def spec_of(reader: str, folder: Path, options: dict[str, Any] | None = None, **more: Any) -> DatasetSpec:
    part = {"reader": reader, "options": options or {}}
    source = {"files": Source(path=str(folder))}
    return DatasetSpec.model_validate(
        {"name": "own", "title": "Own", "licence": "x", "sources": source, "images": part, "examples": part} | more
    )


def rows_of(spec: DatasetSpec, store: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The examples, without columns that are null in all of them, and both steps' figures."""
    images, texts = built(Store(store), *described(spec))
    table = texts.table()
    kept = [name for name in table.column_names if table.column(name).null_count < table.num_rows]
    return table.select(kept).to_pylist(), texts.figures, images.figures
