"""Visual question answering as classification over known answers, as in the original VisualBERT.

`[CLS] question ? [MASK] [SEP]`; soft scores as targets; KL divergence (VisualBERT) or binary cross entropy (LXMERT,
UNITER, MMF).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vbert.artifacts.steps.settings import Since
from vbert.data.answers import lacking
from vbert.errors import BuildError, UserError
from vbert.objectives import defaults, vqa_protocols
from vbert.objectives.entry import DownstreamSettings, Head, Prediction, Predictions, Row, Rows
from vbert.objectives.vqa_protocols import SCORES, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input

KINDS = ("question",)
SELECTS = "accuracy"
NEVER = ("<unk>", "")  # labels of published answer vocabularies that are no answers


class VqaSettings(DownstreamSettings):
    """answer_at: mask reads the [MASK] behind the question, pooled the pooled [CLS]. minimum_count: training examples
    an answer needs to become a label."""

    AS_TEACHER = ("images", "text", "loss", "answer_at", "minimum_count")

    objective: Literal["vqa"] = Field("vqa", description="the downstream task; else the name of the entry")
    loss: Literal["kl", "bce"] = Field("kl", description="of the answers")
    answer_at: Literal["mask", "pooled"] = Field("mask", description="the token that the answer is read from")
    minimum_count: int = Field(1, ge=1, description="training examples an answer scores in, at least")
    protocol: Annotated[Protocol, Since("vqa")] = Field(
        "vqa", description="whose rule scores the answers, and whose submission file is written"
    )


def labelled(row: Row) -> bool:
    return bool(row["answers"] or row["given"])


def head(rows: Iterable[Row], settings: VqaSettings) -> Head:
    """The answers that score in at least `minimum_count` training examples, the most frequent first."""
    vqa_protocols.check(settings.protocol, (row for row in rows if labelled(row)))
    counts = Counter(a["answer"] for row in rows for a in row["answers"] or () if a["score"] > 0)
    kept = [(n, answer) for answer, n in counts.items() if n >= settings.minimum_count]
    labels = [answer for _, answer in sorted(kept, key=lambda item: (-item[0], item[1]))]
    if not labels:
        raise BuildError("vqa: no training example has an answer: look at the splits and the reader of the data")
    name = f"training answers, {settings.minimum_count} times or more"
    described = {"kind": "answer", "labels": labels, "name": name, **settings.model_dump(include={"answer_at", "loss"})}
    return described if settings.protocol == "vqa" else {**described, "protocol": settings.protocol}


def relabelled(head: Head, labels: Sequence[str], path: str) -> Head:
    """With the answers of the file `path`, of which a published one has not all; one at least must be a training
    answer."""
    if not set(head["labels"]) & set(labels):
        raise UserError(
            f"answers: {path}: lacks {lacking(head['labels'], labels)}; nothing could be learnt: give the file of "
            "these data, or write answers: training"
        )
    return {**head, "labels": list(labels), "name": path}


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    reads: Literal["at", "pooled"] = "pooled" if head["answer_at"] == "pooled" else "at"
    return defaults.answer_model(config, len(head["labels"]), seed, reads, head.get("transform", False))


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    """The question with one question mark, cut at `max_text`, then [MASK] where the answer is read from it. Where it
    is read from the last piece (`answer_at: last`, of MMF's models), that is the question mark."""
    from vbert.objectives.batches import Input, TokenizedText

    row, pooled = rows.row(i), head["answer_at"] == "pooled"
    question = encoder(row["text"].rstrip("?？ "))
    tail = [*encoder("?").ids, *([encoder.mask] if head["answer_at"] == "mask" else []), encoder.sep]
    kept = head["max_text"] - 1 - len(tail)
    ids = [encoder.cls, *question.ids[:kept], *tail]
    words = [-1, *question.words[:kept], *[-1] * len(tail)]
    spans = [None, *question.spans[:kept], *[None] * len(tail)]
    text = TokenizedText(ids, [0] * len(ids), words, [False] * len(ids), spans)
    return [Input(text, row["image_ids"], () if pooled else (len(ids) - 2,))]


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """scores: float32 [B, labels]; answers that are no labels are left out."""
    import torch

    places = {label: k for k, label in enumerate(head["labels"])}
    scores = torch.zeros(len(rows), len(places))
    for b, row in enumerate(rows):
        for answer in row["answers"] or ():
            if (k := places.get(answer["answer"])) is not None:
                scores[b, k] = answer["score"]
    return {"scores": scores}


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Both losses are means over examples."""
    return {"loss": len(tensors["scores"])}


def loss(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """kl: Σ s (log s − log softmax) against scores that are not normalised. bce: summed over labels."""
    import torch.nn.functional as F

    scores = tensors["scores"]
    if head["loss"] == "kl":
        return {"loss": F.kl_div(outputs.log_softmax(-1), scores, reduction="sum")}
    return {"loss": F.binary_cross_entropy_with_logits(outputs, scores, reduction="sum")}


def logits(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> Tensor:
    """kl: one an answer. bce: of each answer that it is right, and 0 that it is not: their softmax is the sigmoid."""
    import torch

    return outputs if head["loss"] == "kl" else torch.stack([outputs, torch.zeros_like(outputs)], -1)


def label_scores(outputs: Tensor, head: Head) -> Tensor:
    """The probability of each answer, of `loss: bce` each for itself; -1 for labels that are no answers. float32
    [B, labels]."""
    import torch

    outputs = outputs.float()
    probabilities = outputs.softmax(-1) if head["loss"] == "kl" else outputs.sigmoid()
    never = torch.tensor([label in NEVER for label in head["labels"]], device=outputs.device)
    return probabilities.masked_fill(never, -1.0)


def decode(outputs: Tensor, tensors: Mapping[str, Tensor], rows: Rows, head: Head) -> list[Prediction]:
    """The best answer, by its logit, and its probability, rounded to 6 digits."""
    import torch

    never = torch.tensor([label in NEVER for label in head["labels"]], device=outputs.device)
    best = outputs.float().masked_fill(never, float("-inf")).argmax(-1)
    chosen = label_scores(outputs, head).gather(1, best[:, None])[:, 0]
    return [
        {"example_id": row["example_id"], "answer": head["labels"][k], "score": round(p, 6)}
        for row, k, p in zip(rows, best.tolist(), chosen.tolist(), strict=True)
    ]


def explained(model: nn.Module, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """The log-odds of the answer; with `loss: bce` its logit, which is that."""
    from vbert.objectives.examined import log_odds

    logits = model(batch)
    return log_odds(logits, targets) if head["loss"] == "kl" else logits.float().gather(1, targets[:, None])[:, 0]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """accuracy by the rule of `protocol`, also by question type and by answer type."""
    from vbert.metrics.metric import by_part

    if not any(map(labelled, rows)):
        return {}
    vqa_protocols.check(head.get("protocol", "vqa"), (row for row in rows if labelled(row)))
    score = SCORES[head.get("protocol", "vqa")]
    each = [
        (0.0 if "quarantined" in p else score(p["answer"], row)) if labelled(row) else None
        for row, p in zip(rows, predictions, strict=True)
    ]
    divisions = {column: [row[column] for row in rows] for column in ("question_type", "answer_type")}
    return by_part("accuracy", each, **divisions)


def frozen(head: Head, settings: VqaSettings) -> Sequence[str]:
    pooled = head["answer_at"] == "pooled" and settings.train_pooler
    return () if pooled else ("encoder.pooler.",)


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    return vqa_protocols.submission(head.get("protocol", "vqa"), predictions)
