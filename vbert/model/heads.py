"""The heads on the encoder, and the models made of encoder and heads."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """Dropout and one linear layer: vectors [N, H] -> logits [N, outputs], as the original's classifiers.

    transform: BERT's transformation (dense, activation, norm) stands before the linear layer, as in MMF's classifiers.
    """

    transform: nn.Linear | None
    norm: nn.LayerNorm | None

    def __init__(
        self,
        config: VisualBertConfig,
        outputs: int,
        generator: torch.Generator | None = None,
        transform: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.activation = config.hidden_dropout, config.activation
        self.transform = nn.Linear(config.hidden_size, config.hidden_size) if transform else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if transform else None
        self.dense = nn.Linear(config.hidden_size, outputs)
        initialise(self, config.initializer_range, generator)

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = dropout(vectors, self.dropout, self.training)
        if self.transform is not None and self.norm is not None:
            vectors = self.norm(activate(self.transform(vectors), self.activation))
        return self.dense(vectors)  # type: ignore[no-any-return]


class PhraseHead(nn.Module):
    """Scores of regions for a phrase: one attention head of hidden_size / heads, query the phrase, keys the regions,
    without values (the original's `FlickrAttention`)."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.size = config.hidden_size // config.heads
        self.query = nn.Linear(config.hidden_size, self.size)
        self.key = nn.Linear(config.hidden_size, self.size)
        initialise(self, config.initializer_range, generator)

    def forward(self, phrases: Tensor, regions: Tensor) -> Tensor:
        """Of B sequences, [B, P, H] and [B, R, H] -> scores [B, P, R]."""
        return self.query(phrases) @ self.key(regions).mT / math.sqrt(self.size)  # type: ignore[no-any-return]


class PretrainingModel(nn.Module):
    """Encoder with the masked language and the matching head (`transformers.VisualBertForPreTraining`)."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = VisualBert(config, generator)
        self.masked_language = MaskedLanguageHead(config, generator)
        self.matching = MatchingHead(config, generator)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """(word logits [A, vocab_size] at the packed rows `batch.at`, matching logits [B, 2])."""
        hidden = self.encoder(batch)
        words = self.masked_language(hidden, batch.at, self.encoder.embeddings.word.weight)
        return words, self.matching(self.encoder.pool(hidden, batch))


class CaptioningModel(nn.Module):
    """Encoder with the masked language head, over causal texts."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = VisualBert(config, generator)
        self.masked_language = MaskedLanguageHead(config, generator)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Word logits [A, vocab_size] at the packed rows `batch.at`."""
        return self.words(self.encoder(batch), batch.at)

    def words(self, hidden: Tensor, at: Tensor) -> Tensor:
        """Word logits [A, vocab_size] of the rows `at` of hidden states [N, H]."""
        return self.masked_language(hidden, at, self.encoder.embeddings.word.weight)  # type: ignore[no-any-return]


class AnswerModel(nn.Module):
    """Encoder with a linear head, for every task that chooses an answer.

    reads: "at", one vector a place in `batch.at` (`transformers.VisualBertForQuestionAnswering`: the [MASK] behind the
    question); "pooled", the pooled [CLS] vector (`VisualBertForVisualReasoning`, and with one output a sequence
    `VisualBertForMultipleChoice`).
    """

    def __init__(
        self,
        config: VisualBertConfig,
        outputs: int,
        reads: Literal["at", "pooled"] = "at",
        generator: torch.Generator | None = None,
        transform: bool = False,
    ) -> None:
        """transform: of the head, see `AnswerHead`."""
        super().__init__()
        self.reads = reads
        self.encoder = VisualBert(config, generator)
        self.answer = AnswerHead(config, outputs, generator, transform)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits [B, outputs]; of places [A, outputs]."""
        hidden = self.encoder(batch)
        if self.reads == "at":
            return self.answer(hidden.index_select(0, batch.at))  # type: ignore[no-any-return]
        return self.answer(self.encoder.pool(hidden, batch))  # type: ignore[no-any-return]


class PhraseModel(nn.Module):
    """Encoder with a phrase head (`transformers.VisualBertForRegionToPhraseAlignment`)."""

    def __init__(self, config: VisualBertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = VisualBert(config, generator)
        self.phrase = PhraseHead(config, generator)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Scores [A, R]: a row for each place in `batch.at`, the regions of its sequence in order, and -inf behind
        them, up to the most regions of a sequence."""
        hidden, device = self.encoder(batch), batch.order.device
        sequences = len(batch.lengths)
        owner = torch.repeat_interleave(batch.lengths).to(device, non_blocking=True)  # of each token
        phrases = _Rows(batch.at, owner.index_select(0, batch.at), sequences)
        regions = (batch.order >= len(batch.text_ids)).nonzero()[:, 0]
        keys = _Rows(regions, owner.index_select(0, regions), sequences)
        scores = self.phrase(phrases.of(hidden), keys.of(hidden)).flatten(0, 1).index_select(0, phrases.slots)
        absent = torch.arange(keys.most, device=device) >= keys.counts.index_select(0, phrases.owner)[:, None]
        return scores.masked_fill(absent, float("-inf"))  # type: ignore[no-any-return]


class _Rows:
    """Some of the packed tokens, `rows` [N] of the sequences `owner` [N], as one block a sequence. counts: how many
    each has, most: the most; slots [N]: where each stands in the blocks, one after the other."""

    def __init__(self, rows: Tensor, owner: Tensor, sequences: int) -> None:
        self.rows, self.owner, self.sequences = rows, owner, sequences
        self.counts = torch.zeros(sequences, dtype=torch.int64, device=rows.device).index_add(
            0, owner, torch.ones_like(owner)
        )
        self.most = int(self.counts.max()) if sequences else 0
        starts = self.counts.cumsum(0) - self.counts
        self.slots = owner * self.most + torch.arange(len(rows), device=rows.device) - starts.index_select(0, owner)

    def of(self, hidden: Tensor) -> Tensor:
        """[sequences, most, H], 0 where a sequence has fewer. A scatter of distinct rows: its gradient is a gather, the
        same bits on a GPU too."""
        blocks = hidden.new_zeros(self.sequences * self.most, hidden.shape[1])
        chosen = hidden.index_select(0, self.rows)
        return blocks.index_copy(0, self.slots, chosen).view(self.sequences, self.most, hidden.shape[1])
