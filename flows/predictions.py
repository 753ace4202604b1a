"""The predictions of a table as an artifact-to-be: the images of a folder, their regions, the rows, the answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.models import model_in
from tasks.download import download
from tasks.images import images as images_of
from tasks.predict import predict, questions
from tasks.regions import regions
from vbert.artifacts.store.store import Store
from vbert.data import readers
from vbert.data.source import Source
from vbert.errors import UserError
from vbert.inference.predicting import PredictedTable, PredictionNumerics
from vbert.inference.table import QUESTIONS, TableSettings
from vbert.inference.visualbert import able
from vbert.regions.detector import ExtractionNumerics, RegionSettings


def predictions_of(
    where: str, table: Path, images: Path, columns: Sequence[tuple[str, str]], ask: str | None, store: str | None
) -> tuple[Store, PredictedTable]:
    """(the store, the predictions-to-be of a table about the images of a folder).

    Raises UserError for a model that can't be asked from a table, and files that aren't there.
    """
    at, model, detector, read = model_in(where, store)
    can = [name for name in able(read.head()) if name in QUESTIONS]
    if not can or (ask is not None and ask not in can):
        known = ", ".join(can) or "nothing that a table asks"
        raise UserError(f"{where}: it can {known}" + (f", not `{ask}`" if ask else ""))
    for path, kind in ((table, "file"), (images, "folder")):
        if not (path.is_file() if kind == "file" else path.is_dir()):
            raise UserError(f"{path}: no such {kind}")
    contract = read.contract()
    settings: Any = RegionSettings(boxes=contract.boxes, nms=contract.nms, quarantine=1.0)
    folder = download(Source(path=os.path.abspath(images), only="images").pinned()).named(images.name)
    photos = images_of({"folder": folder}, readers.reader("folder"), None).named(images.name)
    shards = regions(photos, detector, settings, ExtractionNumerics()).named(images.name)
    asked = TableSettings(question=ask or can[0], columns=tuple(columns))
    rows = download(Source(path=os.path.abspath(table), file=table.name).pinned()).named(table.name)
    listed = questions(rows, asked).named(table.name)
    return at, predict(model, shards, listed, asked, PredictionNumerics()).named(table.name)
