"""What an objective is unless its module says otherwise: one label an example, read from the pooled vector."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vbert.data.answers import lacking
from vbert.errors import BuildError, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

    from vbert.artifacts.steps.stage import Figures
    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.objectives.entry import (
        DownstreamSettings,
        EvaluateSettings,
        Head,
        Parts,
        Prediction,
        Predictions,
        Row,
        Rows,
    )
    from vbert.objectives.examined import Examined
    from vbert.objectives.sections import Section
    from vbert.training.ranks import Ranks


def labelled(row: Row) -> bool:
    return row["label"] is not None


def head(rows: Iterable[Row], settings: DownstreamSettings) -> Head:
    """The labels of the training examples, in the order of their names."""
    labels = sorted({row["label"] for row in rows if row["label"] is not None})
    if len(labels) < 2:
        known = f"have the label {labels[0]!r} alone" if labels else "have no label"
        raise BuildError(
            f"{settings.objective}: the training examples {known}: look at the splits and the reader of the data"
        )
    return {"kind": "answer", "labels": labels}


def relabelled(head: Head, labels: Sequence[str], path: str) -> Head:
    """With the labels of the file `path`, among which every training label must be: one that isn't would be learnt as
    none."""
    if lacks := lacking(head["labels"], labels):
        raise UserError(f"answers: {path}: lacks {lacks}; add what is missing, or write answers: training")
    return {**head, "labels": list(labels), "name": path}


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    """A linear layer of one output a label on the pooled vector."""
    return answer_model(config, len(head["labels"]), seed, transform=head.get("transform", False))


def answer_model(
    config: VisualBertConfig,
    outputs: int,
    seed: int,
    reads: Literal["at", "pooled"] = "pooled",
    transform: bool = False,
) -> nn.Module:
    import torch

    from vbert.model.heads import AnswerModel
    from vbert.training.sampler import derive

    drawn = torch.Generator().manual_seed(derive(seed, "answer head"))
    return AnswerModel(config, outputs, reads, drawn, transform)


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    """The encoder; the head too where its labels are the same, or the rows of those that both know."""
    model.encoder.load_state_dict(source.encoder.state_dict())
    if "labels" in head and "labels" in source_head and hasattr(source, "answer"):
        if bool(head.get("transform")) != bool(source_head.get("transform")):
            return  # the rows are of another space
        if head.get("transform"):
            model.answer.transform.load_state_dict(source.answer.transform.state_dict())
            model.answer.norm.load_state_dict(source.answer.norm.state_dict())
        keep_rows(model.answer.dense, source.answer.dense, head["labels"], source_head["labels"])


def keep_rows(ours: Any, theirs: Any, labels: Sequence[str], before: Sequence[str]) -> None:
    """Copies weight and bias of the labels that stood in the start's head too. Both: linear layers of the head."""
    import torch

    if len(theirs.bias) != len(before):
        return
    places = {label: k for k, label in enumerate(before)}
    with torch.no_grad():
        for k, label in enumerate(labels):
            if (row := places.get(label)) is not None:
                ours.weight[k] = theirs.weight[row]
                ours.bias[k] = theirs.bias[row]


def before(train: ExampleRows, held_out: ExampleRows, head: Head, settings: DownstreamSettings) -> Figures:
    """None."""
    return {}


def evaluated(table: pa.Table) -> pa.Table:
    """Every example."""
    return table


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """label: int64 [B]; -1 for none, or for one that no training example has."""
    import torch

    places = {label: k for k, label in enumerate(head["labels"])}
    return {"label": torch.tensor([places.get(row["label"], -1) for row in rows], dtype=torch.int64)}


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The loss is a mean over the examples with a label."""
    return {"loss": int((tensors["label"] >= 0).sum())}


def loss(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """Cross entropy."""
    import torch.nn.functional as F

    return {"loss": F.cross_entropy(outputs, tensors["label"], ignore_index=-1, reduction="sum")}


def label_scores(outputs: Tensor, head: Head) -> Tensor:
    """The probability of each label, float64 [B, labels]."""
    return outputs.double().softmax(-1)


def logits(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> Tensor:
    """The outputs, one a label."""
    return outputs


def decode(outputs: Tensor, tensors: Mapping[str, Tensor], rows: Rows, head: Head) -> list[Prediction]:
    """The most probable label, its probability rounded to 6 digits, and those of all labels in their order."""
    probabilities = label_scores(outputs, head)
    return [
        {
            "example_id": row["example_id"],
            "answer": head["labels"][k],
            "score": round(each[k], 6),
            "probabilities": each,
        }
        for row, k, each in zip(rows, probabilities.argmax(-1).tolist(), probabilities.tolist(), strict=True)
    ]


def right(rows: Rows, predictions: Predictions) -> list[float | None]:
    """1 where the predicted label is the example's, 0 where it isn't, None where the example has none."""
    return [
        float(p["answer"] == row["label"] and "quarantined" not in p) if row["label"] is not None else None
        for row, p in zip(rows, predictions, strict=True)
    ]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """accuracy, also by question type."""
    from vbert.metrics.metric import by_part

    if all(row["label"] is None for row in rows):
        return {}
    return by_part("accuracy", right(rows, predictions), question_type=[row["question_type"] for row in rows])


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """No official file."""
    return {}


def dataset(*arguments: Any) -> ObjectiveDataset[Any]:
    """Examples as packed inputs with targets."""
    from vbert.objectives.dataset import ObjectiveDataset

    return ObjectiveDataset(*arguments)


def mine(
    model: nn.Module, side: ObjectiveDataset[Any], samples: Sequence[tuple[int, int]], ranks: Ranks
) -> dict[str, Tensor]:
    """Nothing: the examples are functions of (seed, epoch, example id)."""
    return {}


def parts(model: nn.Module, side: ObjectiveDataset[Any], settings: EvaluateSettings) -> Parts | None:
    """Chunks of examples, each predicted for itself."""
    return None


def joined(files: Mapping[str, Path], rows: ExampleRows) -> Iterator[Prediction]:
    """The lines of chunks."""
    for path in files.values():
        yield from map(json.loads, path.read_text("utf-8").splitlines())


def predict(
    model: nn.Module, side: ObjectiveDataset[Any], indices: Sequence[int], settings: EvaluateSettings
) -> Iterator[Prediction]:
    """Batches of `settings.batch_size` examples through the model, decoded."""
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(indices), settings.batch_size):
            batch, rows = side.batch([(i, None) for i in indices[start : start + settings.batch_size]])
            batch = batch.to(device)
            yield from side.objective.decode(model(batch.packed), batch.tensors, rows, side.head)


def examined(
    inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
) -> list[Examined]:
    """The input and the label that was answered."""
    from vbert.objectives.examined import Examined

    return [Examined(inputs[0], head["labels"].index(prediction["answer"]))]


def explained(model: Any, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """The log-odds of the label."""
    from vbert.objectives.examined import log_odds

    return log_odds(model(batch), targets)


def frozen(head: Head, settings: DownstreamSettings) -> Sequence[str]:
    return () if settings.train_pooler else ("encoder.pooler.",)


def sections(rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
    return []
