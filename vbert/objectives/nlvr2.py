"""Statements over images that are true or false: NLVR2 (two photos), NLVR (one drawing), pairs of `shapes`.

`[CLS] statement [SEP]` and the regions of all images in one pass, those of the second with visual segment 1, as the
original; the pooled vector; cross entropy. Starts from the matching head, where the start has one: the original's
pre-training on NLVR2 trains it on the same labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vbert.artifacts.steps.settings import Since
from vbert.data.answers import lacking
from vbert.errors import BuildError, UserError
from vbert.objectives import defaults
from vbert.objectives.entry import DownstreamSettings, Head, Predictions, Row, Rows
from vbert.objectives.submissions import as_csv, by_file

if TYPE_CHECKING:
    import numpy as np

    from vbert.metrics.metric import Metric
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.sections import Section

KINDS = ("pair",)
SELECTS = "accuracy"
LABELS = ["false", "true"]  # as the matching head's rows: MATCH is 1


class Nlvr2Settings(DownstreamSettings):
    """Of examples of kind `pair` with the labels true and false.

    segment: pre-training on single images leaves the visual segment of second ones as it was drawn, at 0.02 (BERT) far
    below a region's projected feature, and the model takes two images for one. On `shapes` it then knows how many
    things both hold together and no more: 0.90 after 4,000 steps; with a draw of 2.5 beside features of 3.8, 0.95 after
    1,500.
    """

    AS_TEACHER = ("images", "text")

    segment: Annotated[float, Since(0.0)] = Field(
        0.0, ge=0, description="standard deviation that the second image's segment is drawn with at first; 0: not drawn"
    )


def head(rows: Iterable[Row], settings: Nlvr2Settings) -> Head:
    known = defaults.head(rows, settings)["labels"]  # refuses training examples of one label
    if others := sorted(set(known) - set(LABELS)):
        raise BuildError(
            f"{settings.objective}: a training example has the label {others[0]!r:.80}, and statements are true or "
            "false: write its labels so"
        )
    return {"kind": "answer", "labels": LABELS} | ({"segment": settings.segment} if settings.segment else {})


def relabelled(head: Head, labels: Sequence[str], path: str) -> Head:
    """With the two labels in the order of the file."""
    if sorted(labels) != LABELS:
        lacks = lacking(LABELS, labels)
        raise UserError(
            f"answers: {path}: "
            + (f"lacks {lacks}" if lacks else f"{len(labels)} answers, more than false and true")
            + "; statements are true or false: give these two lines alone, in the order of the head's rows, or write "
            "answers: training"
        )
    return {**head, "labels": list(labels), "name": path}


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    import torch

    from vbert.training.sampler import derive

    defaults.begin(model, head, source, source_head)
    if hasattr(source, "matching"):
        defaults.keep_rows(model.answer.dense, source.matching.dense, head["labels"], LABELS)
    deviation = head.get("segment")
    if deviation and source_head.get("segment") != deviation:  # a start that has it has learnt with it
        drawn = torch.Generator().manual_seed(derive("segment of second images"))
        with torch.no_grad():
            table = model.encoder.embeddings.visual_token_type.weight
            table[1] = table[0] + deviation * torch.randn(table.shape[1], generator=drawn)


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    from vbert.objectives.batches import Input, sentence

    row = rows.row(i)
    return [Input(sentence(encoder, [(row["text"], "")], head["max_text"]), row["image_ids"])]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """accuracy, also by question type and by part of the split; consistency: the share of groups (the pairs of one
    statement) that are wholly right."""
    from vbert.metrics.metric import ExampleScores, by_part

    if all(row["label"] is None for row in rows):
        return {}
    each = defaults.right(rows, predictions)
    divisions = {column: [row[column] for row in rows] for column in ("question_type", "part")}
    found = by_part("accuracy", each, **divisions)
    if any(row["group"] for row in rows):
        groups = [row["group"] or row["example_id"] for row in rows]
        found["consistency"] = ExampleScores(each, groups)
        for part in sorted({row["part"] for row in rows if row["part"]}):
            chosen = [score if row["part"] == part else None for row, score in zip(rows, each, strict=True)]
            found[f"consistency/{part}"] = ExampleScores(chosen, groups)
    return found


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """predictions.csv, a line an example without a header: `identifier,True`; for parts of a split one file each,
    `predictions-test1.csv`. Examples without regions are left out."""
    return {
        file: as_csv([name, p["answer"].capitalize()] for name, _, p in predicted)
        for file, predicted in by_file(rows, predictions).items()
    }


def sections(rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
    from vbert.objectives.sections import confusion

    return [confusion(rows, predictions, LABELS)] if any(map(defaults.labelled, rows)) else []
