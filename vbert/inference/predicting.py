"""Predictions of a table, unit by unit: each row's bits are those that it has alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.data.readers.table import Pictures
from vbert.errors import UserError
from vbert.inference.table import QUESTIONS, QuestionTable, TableSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from vbert.artifacts.steps.stage import Job
    from vbert.inference.visualbert import VisualBert
    from vbert.objectives.trained import Model
    from vbert.regions.shards import Shards

PREDICTIONS = "predictions.parquet"
ASKED_AT_ONCE = 256  # rows between two reports of progress


class PredictionNumerics(Settings):
    """Settings that change the bits of predictions."""

    threads: int = Field(1, ge=1, description="operator threads a process")


class PredictedTable(Artifact):
    """predictions.parquet: every row of the table in its order, with answer, score and, where there are none, the
    reason."""

    def table(self) -> pa.Table:
        import pyarrow.parquet as pq

        table: pa.Table = pq.read_table(self.file(PREDICTIONS))
        return table

    def reasons(self) -> Counter[str]:
        """Why rows weren't asked, and how many."""
        import pyarrow.parquet as pq

        column = pq.read_table(self.file(PREDICTIONS), columns=["reason"]).column("reason")
        return Counter(filter(None, column.to_pylist()))


def schema(question: str) -> pa.Schema:
    """row, the cells, answer (null for `match`), score, box and region of `ground`, reason."""
    import pyarrow as pa

    fields = QUESTIONS[question]
    columns: dict[str, pa.DataType] = {"row": pa.int64()}
    columns |= {name: pa.string() for name in (*fields.needed, *fields.optional, "answer")}
    columns["score"] = pa.float64()
    if question == "ground":
        columns |= {"box": pa.list_(pa.float32(), 4), "region": pa.int32()}
    return pa.schema({**columns, "reason": pa.string()})


def predict_group(
    model: Model,
    shards: Shards,
    table: QuestionTable,
    settings: TableSettings,
    numerics: PredictionNumerics,
    job: Job,
    number: int,
) -> dict[str, Any]:
    """Writes the predictions of one row group. Returns counts, and how many rows each reason is of."""
    import pyarrow as pa
    import torch

    from vbert.regions.shards import write_parquet

    torch.set_num_threads(numerics.threads)
    asked, pictures = _loaded(model, job.machine.device), _pictures(shards)
    quarantine = _quarantine(shards)
    rows = table.group(number)
    for row in rows:
        row["_images"] = []
        for cell in ("image", "image_2"):
            if not row["reason"] and row.get(cell):
                row["reason"] = _find(row, cell, pictures, quarantine)
    good = [row for row in rows if not row["reason"]]
    for start in range(0, len(good), ASKED_AT_ONCE):
        part = good[start : start + ASKED_AT_ONCE]
        for row, found in zip(part, ASKING[settings.question](asked, part, shards), strict=True):
            row.update(found)
        job.progress(start + len(part), len(good), unasked=len(rows) - len(good))
    form = schema(settings.question)
    content = [{name: row.get(name) for name in form.names} for row in rows]
    write_parquet(job.directory / f"{number:06d}.parquet", pa.Table.from_pylist(content, form))
    reasons = Counter(row["reason"].partition(":")[0] for row in rows if row["reason"])
    return {"rows": len(rows), "answered": len(rows) - sum(reasons.values()), "reasons": dict(reasons)}


def gather_predictions(
    directory: Path, parts: Iterable[Path], units: Sequence[Mapping[str, Any]], question: str
) -> dict[str, Any]:
    """Joins the units' files to one. Returns counts."""
    import pyarrow.parquet as pq

    form = schema(question)
    with pq.ParquetWriter(
        directory / PREDICTIONS, form, version="2.6", compression="zstd", compression_level=3, write_page_checksum=True
    ) as out:
        for part in parts:
            out.write_table(pq.read_table(part, schema=form))
    reasons: Counter[str] = Counter()
    for unit in units:
        reasons.update(unit["reasons"])
    rows, answered = (sum(unit[name] for unit in units) for name in ("rows", "answered"))
    return {"rows": rows, "answered": answered, **{f"reason/{name}": n for name, n in sorted(reasons.items())}}


@lru_cache(maxsize=1)
def _loaded(model: Model, device: str) -> VisualBert:
    """The model, loaded once a process. Its regions are given, so that it needs no detector."""
    from vbert.inference.visualbert import VisualBert

    return VisualBert(model, None, device)


@lru_cache(maxsize=1)
def _pictures(shards: Shards) -> Pictures:
    """Those in quarantine too."""
    return Pictures([*shards.image_ids(), *_quarantine(shards)])


@lru_cache(maxsize=1)
def _quarantine(shards: Shards) -> dict[str, str]:
    """Image → why it can't be used."""
    return {row["image_id"]: f"{row['reason']}: {row['detail']}" for row in shards.quarantine().to_pylist()}


def _find(row: dict[str, Any], cell: str, pictures: Pictures, quarantine: Mapping[str, str]) -> str:
    """Notes the image that the cell names; returns why there is none, or ""."""
    try:
        found = pictures.find(row[cell], cell)
    except UserError as several:
        return several.message
    if found is None:
        return f"{cell}: there is no such image in the folder, whose files without an image ending aren't looked at"
    if found in quarantine:
        return f"{cell}: can't be used: {quarantine[found]}"
    row["_images"].append(found)
    return ""


Rows = Sequence[dict[str, Any]]


def _images(rows: Rows, place: int = 0) -> list[str | None]:
    return [row["_images"][place] if place < len(row["_images"]) else None for row in rows]


def _answers(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    questions = [row["question"] for row in rows]
    found = model.answer(_images(rows), questions, regions=shards, top=1)
    return [{"answer": one.text, "score": one.score} for (one,) in found]


def _classes(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    texts, seconds = ([row[cell] or "" for row in rows] for cell in ("text", "text_b"))
    found = model.classify(_images(rows), texts, seconds if any(seconds) else None, regions=shards)
    return [{"answer": first.text, "score": first.score} for first, *_ in found]


def _truths(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    statements = [row["statement"] for row in rows]
    found = model.true(_images(rows), _images(rows, 1), statements, regions=shards)
    return [{"answer": str(one.true).lower(), "score": one.score} for one in found]


def _chosen(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    questions, choices = [row["question"] for row in rows], [json.loads(row["choices"]) for row in rows]
    found = model.choose(_images(rows), questions, choices, regions=shards)
    return [{"answer": first.text, "score": first.score} for first, *_ in found]


def _grounded(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    texts, phrases = ([row[cell] or "" for row in rows] for cell in ("text", "phrase"))
    made: list[dict[str, Any]] = []
    for each in model.ground(_images(rows), texts, phrases, regions=shards, strict=False):
        if each is None:
            made.append({"reason": "phrase: is behind what the model reads of the text"})
        elif not each:
            made.append({"reason": "image: has no region"})
        else:
            best = each[0]
            made.append({"answer": best.name, "score": best.score, "box": list(best.box), "region": best.region})
    return made


def _matched(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    found = model.match(_images(rows), [row["text"] for row in rows], regions=shards)
    return [{"score": one.score} for one in found]


def _captions(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    return [{"answer": one.text, "score": one.score} for one in model.caption(_images(rows), regions=shards)]


def _filled(model: VisualBert, rows: Rows, shards: Shards) -> list[dict[str, Any]]:
    found = model.fill(_images(rows), [row["text"] for row in rows], regions=shards, top=1)
    return [
        {"answer": " ".join(first.text for (first,) in each), "score": min(first.score for (first,) in each)}
        for each in found
    ]


Asking = Callable[["VisualBert", Rows, "Shards"], list[dict[str, Any]]]
ASKING: Mapping[str, Asking] = {
    "answer": _answers,
    "true": _truths,
    "classify": _classes,
    "choose": _chosen,
    "ground": _grounded,
    "match": _matched,
    "caption": _captions,
    "fill": _filled,
}
