"""Visual question answering as classification over known answers, as in the original VisualBERT.

`[CLS] question ? [MASK] [SEP]`; soft scores as targets; KL divergence (VisualBERT) or binary cross entropy (LXMERT,
UNITER, MMF).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vbert.errors import BuildError
from vbert.objectives.entry import DownstreamSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vbert.model.config import VisualBertConfig
    from vbert.model.vocabulary import WordPieceEncoder

KINDS = ("question",)
SELECTS = "accuracy"
NEVER = ("<unk>", "")  # labels of published answer vocabularies that are no answers


class VqaSettings(DownstreamSettings):
    """answer_at: mask reads the [MASK] behind the question, pooled the pooled [CLS]. minimum_count: training examples
    an answer needs to become a label."""

    objective: Literal["vqa"] = Field("vqa", description="the downstream task; else the name of the entry")
    loss: Literal["kl", "bce"] = Field("kl", description="of the answers")
    answer_at: Literal["mask", "pooled"] = Field("mask", description="the token that the answer is read from")
    minimum_count: int = Field(1, ge=1, description="training examples an answer scores in, at least")


def labelled(row: dict[str, Any]) -> bool:
    return bool(row["answers"])


def head(rows: Sequence[dict[str, Any]], settings: VqaSettings) -> dict[str, Any]:
    """The answers that score in at least `minimum_count` training examples, the most frequent first."""
    counts = Counter(a["answer"] for row in rows for a in row["answers"] or () if a["score"] > 0)
    kept = [(n, answer) for answer, n in counts.items() if n >= settings.minimum_count]
    labels = [answer for _, answer in sorted(kept, key=lambda item: (-item[0], item[1]))]
    if not labels:
        raise BuildError("vqa: no training example has an answer: look at the splits and the reader of the data")
    return {
        "kind": "answer",
        "labels": labels,
        "name": f"training answers, {settings.minimum_count} times or more",
        "answer_at": settings.answer_at,
        "loss": settings.loss,
    }


def model(config: VisualBertConfig, head: dict[str, Any], seed: int) -> nn.Module:
    import torch

    from vbert.model.heads import AnswerModel
    from vbert.training.sampler import derive

    drawn = torch.Generator().manual_seed(derive(seed, "answer head"))
    return AnswerModel(config, len(head["labels"]), head["answer_at"], drawn)


def texts(row: dict[str, Any], encoder: WordPieceEncoder, head: dict[str, Any]) -> tuple[list[int], list[int], int]:
    """The question with one question mark, cut at `max_text`, then [MASK] where the answer is read from it."""
    question = encoder(row["text"].rstrip("?？ ")).ids
    question_mark = encoder("?").ids
    tail = [*question_mark, encoder.mask, encoder.sep] if head["answer_at"] == "mask" else [*question_mark, encoder.sep]
    ids = [encoder.cls, *question[: head["max_text"] - 1 - len(tail)], *tail]
    return ids, [0] * len(ids), len(ids) - 2


def targets(rows: Sequence[dict[str, Any]], head: dict[str, Any]) -> dict[str, Tensor]:
    """scores: float32 [B, labels]; answers that are no labels are left out."""
    import torch

    places = {label: k for k, label in enumerate(head["labels"])}
    scores = torch.zeros(len(rows), len(places))
    for b, row in enumerate(rows):
        for answer in row["answers"] or ():
            if (k := places.get(answer["answer"])) is not None:
                scores[b, k] = answer["score"]
    return {"scores": scores}


def counts(targets: Mapping[str, Tensor]) -> dict[str, int]:
    """Both losses are means over examples."""
    return {"loss": len(targets["scores"])}


def loss(outputs: Tensor, targets: Mapping[str, Tensor], head: dict[str, Any]) -> dict[str, Tensor]:
    """kl: Σ s (log s − log softmax) against scores that are not normalised. bce: summed over labels."""
    import torch.nn.functional as F

    scores = targets["scores"]
    if head["loss"] == "kl":
        return {"loss": F.kl_div(outputs.log_softmax(-1), scores, reduction="sum")}
    return {"loss": F.binary_cross_entropy_with_logits(outputs, scores, reduction="sum")}


def decode(outputs: Tensor, rows: Sequence[dict[str, Any]], head: dict[str, Any]) -> list[dict[str, Any]]:
    """The best answer and its probability, rounded to 6 digits."""
    import torch

    outputs = outputs.float()
    allowed = torch.tensor([label not in NEVER for label in head["labels"]], device=outputs.device)
    probabilities = outputs.softmax(-1) if head["loss"] == "kl" else outputs.sigmoid()
    best = outputs.masked_fill(~allowed, float("-inf")).argmax(-1)
    chosen = probabilities.gather(1, best[:, None])[:, 0]
    return [
        {"example_id": row["example_id"], "answer": head["labels"][k], "score": round(p, 6)}
        for row, k, p in zip(rows, best.tolist(), chosen.tolist(), strict=True)
    ]


def scores(rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    """accuracy: the soft score of each predicted answer, also by question type."""
    from vbert.metrics.vqa import soft_accuracy

    if not any(map(labelled, rows)):
        return {}
    each: list[float | None] = [
        soft_accuracy(p["answer"], row["answers"]) if labelled(row) else None
        for row, p in zip(rows, predictions, strict=True)
    ]
    columns = {"accuracy": each}
    for kind in sorted({row["question_type"] for row in rows if row["question_type"]}):
        columns[f"accuracy/{kind}"] = [
            score if row["question_type"] == kind else None for row, score in zip(rows, each, strict=True)
        ]
    return columns


def submission(rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """results.json of the VQA challenge: question_id (a number where the example's id is one) and answer."""
    answers = [
        {"question_id": int(p["example_id"]) if p["example_id"].isdigit() else p["example_id"], "answer": p["answer"]}
        for p in predictions
    ]
    return {"results.json": (json.dumps(answers, ensure_ascii=False) + "\n").encode()}
