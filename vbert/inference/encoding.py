"""Texts beside regions through the encoder alone, or through the heads of pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError
from vbert.inference.asked import Asked
from vbert.inference.results import Answer, Encoded

if TYPE_CHECKING:
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder, WordPieces

BATCH = 256  # examples that go through the model together
MASK = "[MASK]"


class Encoding:
    """The examples of a question, text and regions, batch by batch. model: a `VisualBert`."""

    def __init__(self, model: Any, given: Asked, masked: bool = False) -> None:
        """masked: "[MASK]" in a text stands for a word to be filled in."""
        from vbert.inference.rows import RegionsInMemory
        from vbert.objectives.batches import RegionInputs, sentence

        self.model, self.given = model, given
        visuals = RegionInputs(RegionsInMemory(given.regions, model.contract), model.box_input)
        seconds = given.texts.get("text_b") or [""] * len(given.images)
        texts = [[(a, "")] + ([(b, "")] if b else []) for a, b in zip(given.texts["text"], seconds, strict=True)]
        encoder: Any = MaskedEncoder(model.encoder) if masked else model.encoder
        self.texts = [sentence(encoder, one, model.longest) for one in texts]
        self.visuals = [visuals.of(its) for its in given.images]

    def batches(self, at: Sequence[Sequence[int]] = ()) -> Iterator[tuple[list[int], PackedBatch]]:
        """(numbers of the examples, their batch); at: the places of each that a head reads."""
        from vbert.model.visualbert import PackedBatch

        for start in range(0, len(self.texts), BATCH):
            chosen = list(range(start, min(start + BATCH, len(self.texts))))
            packed = PackedBatch.of(
                [self.texts[k].ids for k in chosen],
                [self.texts[k].types for k in chosen],
                [self.visuals[k][0] for k in chosen],
                [self.visuals[k][1] for k in chosen],
                at=[at[k] for k in chosen] if at else (),
            )
            yield chosen, packed.to(self.model.device)

    def encoded(self) -> list[Encoded]:
        found, tokens = [], self.model.encoder.tokens
        for chosen, packed in self.batches():
            with self.model.computing():
                hidden = self.model.network.encoder(packed)
                pooled = self.model.network.encoder.pool(hidden, packed)
            states = hidden.float().cpu().split(packed.lengths.tolist())
            for k, state, summary in zip(chosen, states, pooled.float().cpu(), strict=True):
                pieces = tuple(tokens[i] for i in self.texts[k].ids)
                found.append(Encoded(state.clone(), summary.clone(), pieces, self._boxes(k)))
        return found

    def _boxes(self, k: int) -> tuple[tuple[float, float, float, float], ...]:
        every = []
        for image in self.given.images[k]:
            boxes = self.given.regions[image].boxes
            every += [] if boxes is None else [tuple(box) for box in boxes.astype(float).tolist()]
        return tuple(every)

    def matching(self) -> list[float]:
        """Match minus mismatch logit of each, by the matching head of pre-training or of a retrieval model."""
        if self.model.objective == "retrieval":
            return self._scored_pairs()
        found: list[float] = []
        for _, packed in self.batches():
            with self.model.computing():
                hidden = self.model.network.encoder(packed)
                logits = self.model.network.matching(self.model.network.encoder.pool(hidden, packed)).float()
            found += (logits[:, 1] - logits[:, 0]).tolist()
        return found

    def _scored_pairs(self) -> list[float]:
        import numpy as np

        from vbert.model.retrieval import PairScorer

        encoder, numbers = self.model.encoder, np.arange(len(self.texts))
        with self.model.computing():
            scorer = PairScorer(
                self.model.network,
                [(one.ids, one.types) for one in self.texts],
                [encoder.cls, encoder.sep],
                [visual for visual, _ in self.visuals],
            )
            return [float(score) for score in scorer.scores(numbers, numbers)]

    def filled(self, top: int) -> list[list[list[Answer]]]:
        """Of each example, for each of its [MASK], the `top` word pieces and their probabilities."""
        encoder, mask = self.model.encoder, self.model.encoder.mask
        at = [[place for place, piece in enumerate(one.ids) if piece == mask] for one in self.texts]
        for k, places in enumerate(at):
            if not places:
                raise UserError(f"text: {self.given.texts['text'][k]!r:.80} has no [MASK] to fill")
        found: list[list[list[Answer]]] = []
        for chosen, packed in self.batches(at):
            with self.model.computing():
                words, _ = self.model.network(packed)
            best = words.float().softmax(-1).topk(min(top, words.shape[1]), -1)
            rows = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True))
            for k in chosen:
                each = [next(rows) for _ in at[k]]
                found.append(
                    [[Answer(encoder.tokens[i], round(p, 6)) for p, i in zip(*one, strict=True)] for one in each]
                )
        return found


class MaskedEncoder:
    """A vocabulary's encoder that takes "[MASK]" in a text for the special token."""

    def __init__(self, encoder: WordPieceEncoder) -> None:
        self.encoder, self.cls, self.sep = encoder, encoder.cls, encoder.sep

    def __call__(self, text: str) -> WordPieces:
        from vbert.model.vocabulary import WordPieces

        ids: list[int] = []
        words: list[int] = []
        spans: list[tuple[int, int]] = []
        start = 0
        for k, part in enumerate(text.split(MASK)):
            if k:
                ids.append(self.encoder.mask)
                words.append(1 + max(words, default=-1))
                spans.append((start - len(MASK), start))
            pieces, first = self.encoder(part), 1 + max(words, default=-1)
            ids += pieces.ids
            words += [first + word for word in pieces.words]
            spans += [(start + a, start + b) for a, b in pieces.spans]
            start += len(part) + len(MASK)
        return WordPieces(tuple(ids), tuple(words), tuple(spans))


def probability(logit: float) -> float:
    """1 / (1 + e^−logit), of match minus mismatch: the softmax of both."""
    from math import exp

    return 1 / (1 + exp(-logit)) if logit > -700 else 0.0
