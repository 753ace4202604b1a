"""The heads on the encoder, and the two models made of encoder and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbert.errors import BuildError, nearest
from vbert.model.dropout import dropout
from vbert.model.visualbert import PackedBatch, VisualBert, VisualBertConfig, activate, initialise

MATCH = 1  # the matching head's label of a true pair, as the original's (transformers documents 0)


class MaskedLanguageHead(nn.Module):
    """BERT's masked language head: dense, activation, norm, then the word embeddings (tied) plus a bias."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = config.activation
        initialise(self, config.initializer_range, generator)

    def forward(self, hidden: Tensor, positions: Tensor, words: Tensor) -> Tensor:
        """Logits [M, vocab_size] of the tokens at `positions` (int64 [M], rows of `hidden`) only.

        words: the encoder's word embeddings [vocab_size, H], the tied decoder.
        """
        chosen = hidden.index_select(0, positions)
        return F.linear(self.norm(activate(self.dense(chosen), self.activation)), words, self.bias)


class MatchingHead(nn.Module):
    """Image–text matching: logits [B, 2] from pooled [B, H]; label `MATCH` (1) is a true pair."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 2)
        initialise(self, config.initializer_range, generator)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.dense(pooled)  # type: ignore[no-any-return]


class AnswerHead(nn.Module):
    """Dropout and one linear layer: vectors [B, H] -> logits [B, labels], as the original's VQA classifier."""

    def __init__(self, config: VisualBertConfig, labels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout
        self.dense = nn.Linear(config.hidden_size, labels)
        initialise(self, config.initializer_range, generator)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.dense(dropout(vectors, self.dropout, self.training))  # type: ignore[no-any-return]


class PretrainingModel(nn.Module):
    """Encoder with the masked language and the matching head (`transformers.VisualBertForPreTraining`)."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = VisualBert(config, generator)
        self.masked_language = MaskedLanguageHead(config, generator)
        self.matching = MatchingHead(config, generator)

    def forward(self, batch: PackedBatch, masked: Tensor) -> tuple[Tensor, Tensor]:
        """(word logits [M, vocab_size] at the packed rows `masked`, matching logits [B, 2])."""
        hidden = self.encoder(batch)
        words = self.masked_language(hidden, masked, self.encoder.embeddings.word.weight)
        return words, self.matching(self.encoder.pool(hidden, batch))


class AnswerModel(nn.Module):
    """Encoder with an answer head (`transformers.VisualBertForQuestionAnswering` where `answer_at` is mask).

    answer_at: mask reads the hidden state of the [MASK] token behind the question (the original), pooled the
    pooled [CLS] vector.
    """

    def __init__(
        self,
        config: VisualBertConfig,
        labels: int,
        answer_at: Literal["mask", "pooled"] = "mask",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.answer_at = answer_at
        self.encoder = VisualBert(config, generator)
        self.answer = AnswerHead(config, labels, generator)

    def forward(self, batch: PackedBatch, mask_at: Tensor) -> Tensor:
        """Answer logits [B, labels]; mask_at: int64 [B], the packed row of each sequence's [MASK]."""
        hidden = self.encoder(batch)
        if self.answer_at == "mask":
            return self.answer(hidden.index_select(0, mask_at))  # type: ignore[no-any-return]
        return self.answer(self.encoder.pool(hidden, batch))  # type: ignore[no-any-return]


def assemble(config: VisualBertConfig, head: Mapping[str, Any]) -> nn.Module:
    """The empty model that a `head.json` describes: kind pretraining, or answer with labels and answer_at."""
    kind = head["kind"]
    if kind == "pretraining":
        return PretrainingModel(config)
    if kind == "answer":
        return AnswerModel(config, len(head["labels"]), head.get("answer_at", "mask"))
    raise BuildError(f"head.json: kind: unknown {kind!r}; {nearest(str(kind), ['pretraining', 'answer'])}")
