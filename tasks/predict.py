"""Stages `questions` and `predict`: a table of questions about images, and a model's answers to it."""

from __future__ import annotations

from functools import partial

from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.raw import RawFiles
from vbert.inference.predicting import PredictedTable, PredictionNumerics, gather_predictions, predict_group
from vbert.inference.table import QuestionTable, TableSettings, write_questions
from vbert.objectives.trained import Model
from vbert.regions.shards import Shards


@stage("questions", makes=QuestionTable, version=1)
def questions(build: Build, raw: RawFiles, settings: TableSettings) -> Figures:
    """Rows that can't be asked are kept with the reason."""
    return write_questions(build.directory, raw, settings)


@stage(
    "predict",
    makes=PredictedTable,
    version=1,
    retries=2,
    gpus=1,
    cost=Cost(seconds_by=("table.rows",), bytes_by=("table.rows",)),
)
def predict(
    build: Build,
    model: Model,
    shards: Shards,
    table: QuestionTable,
    settings: TableSettings,
    numerics: PredictionNumerics,
) -> Figures:
    """The answer to every row; a unit is a row group of the table."""
    groups = table.groups()
    plan = [(f"{number:06d}", number) for number in range(len(groups))]
    build.each(plan, partial(predict_group, model, shards, table, settings, numerics), lambda number: groups[number])
    parts = [build.directory / f"{number:06d}.parquet" for number in range(len(groups))]
    figures = gather_predictions(build.directory, parts, list(build.unit_figures().values()), settings.question)
    for part in parts:
        part.unlink()
    return figures
