"""The predictions of a table as an artifact-to-be: the images of a folder, their regions, the rows, the answers; and as
the file that is handed out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
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
from vbert.inference.table import QUESTIONS, QuestionTable, TableSettings, check_ending
from vbert.inference.visualbert import able
from vbert.regions.detector import ExtractionNumerics, RegionSettings

OUT = (".parquet", ".csv", ".jsonl")  # endings of --out
FIRST_LINE = 1 << 20  # characters of a file that is there, of which its columns are read


def predictions_of(
    where: str, table: Path, images: Path, columns: Sequence[tuple[str, str]], ask: str | None, store: str | None
) -> tuple[Store, QuestionTable, PredictedTable]:
    """(the store, the rows-to-be of a table, the predictions-to-be of them about the images of a folder).

    Raises UserError for a model that can't be asked from a table, and files that aren't there.
    """
    at, model, detector, read = model_in(where, store)
    can = [name for name in able(read.head()) if name in QUESTIONS]
    if not can or (ask is not None and ask not in can):
        known = ", ".join(can) or "nothing that a table asks"
        raise UserError(f"{where}: it can {known}" + (f", not `{ask}`" if ask else ""))
    for path, kind in ((table, "file"), (images, "folder")):
        if not (path.is_file() if kind == "file" else path.is_dir()):
            other = "a folder" if path.is_dir() else "a file"
            raise UserError(f"{path}: is {other}; give a {kind}" if path.exists() else f"{path}: no such {kind}")
    check_ending(table.name)
    contract = read.contract()
    settings: Any = RegionSettings(boxes=contract.boxes, nms=contract.nms, quarantine=1.0)
    folder = download(Source(path=os.path.abspath(images), only="images").pinned()).named(images.name)
    photos = images_of({"folder": folder}, readers.reader("folder"), None).named(images.name)
    shards = regions(photos, detector, settings, ExtractionNumerics()).named(images.name)
    asked = TableSettings(question=ask or can[0], columns=tuple(columns))
    rows = download(Source(path=os.path.abspath(table), file=table.name).pinned()).named(table.name)
    listed = questions(rows, asked).named(table.name)
    return at, listed, predict(model, shards, listed, asked, PredictionNumerics()).named(table.name)


def check_out(out: Path, table: Path) -> None:
    """Raises UserError where the predictions can't be written as `out`, or it is a file that is none of predictions."""
    if out.suffix not in OUT:
        raise UserError(f"--out {out}: write it as {', '.join(OUT)}")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    if out.exists() and out.stat().st_size:
        if table.exists() and out.samefile(table):
            raise UserError(f"--out {out}: is the table itself, which would be lost; give another file")
        names = _columns(out)
        if names is None or names[:1] != ["row"] or names[-1:] != ["reason"]:
            raise UserError(
                f"--out {out}: is there, and holds no predictions (columns row … reason); give another file"
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _columns(out: Path) -> list[str] | None:
    """Those of a file, by its ending; None where it can't be read so."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if out.suffix == ".parquet":
            return list(pq.read_schema(out).names)
        with out.open(encoding="utf-8", newline="") as file:
            line = file.readline(FIRST_LINE)
        return next(csv.reader([line])) if out.suffix == ".csv" else list(json.loads(line))
    except (pa.ArrowException, OSError, ValueError, TypeError, StopIteration, RecursionError, csv.Error):
        return None


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"--out {out} can't be written ({error.strerror}); give another file")


def hand_out(made: Path, out: Path) -> None:
    """The predictions as the file `out`, whole or as it was before."""
    import pyarrow.parquet as pq

    making = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".parquet":
            making.write_bytes(made.read_bytes())
        else:
            with making.open("w", encoding="utf-8", newline="") as file:
                _write_rows(file, pq.ParquetFile(made), out.suffix)
        making.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        making.unlink(missing_ok=True)


def _write_rows(file: Any, source: Any, ending: str) -> None:
    import csv

    names = source.schema_arrow.names
    writer = csv.writer(file, lineterminator="\n")
    if ending == ".csv":
        writer.writerow(names)
    for batch in source.iter_batches(4096):
        for row in batch.to_pylist():
            if ending == ".csv":
                cells = (row[name] for name in names)
                writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
            else:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
