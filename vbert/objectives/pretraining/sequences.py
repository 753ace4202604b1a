"""The sequences of pre-training: texts with images, true or not, with masked words. They need no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from vbert.data.majority import majority
from vbert.model.config import VisualBertConfig, text_limit
from vbert.objectives.pretraining.corpus import Corpus, PretrainData, TextImagePair, check_names
from vbert.objectives.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import Input, TokenizedText

COUNTED = 2_000  # training examples whose masked pieces are counted


@dataclass
class PretrainingSequence:
    """A sequence before packing, read at its masked pieces. true: what these are. match: 1 a true pair, 0 a wrong one,
    -1 not to be matched."""

    input: Input
    true: list[int]
    match: int


class PretrainingSequences:
    """The training and held-out sequences of several data sets, functions of (seed, epoch, example id)."""

    def __init__(
        self,
        data: Mapping[str, PretrainData],
        encoder: WordPieceEncoder,
        config: VisualBertConfig,
        settings: PretrainSettings,
        seed: int,
    ) -> None:
        self.encoder, self.settings, self.seed = encoder, settings, seed
        self.max_text = text_limit(settings.max_text, config.max_positions)
        names = sorted(data)
        check_names([data[name].examples for name in names], settings)
        self.train = [Corpus(data[name], ["train"], settings, config.box_input) for name in names]
        self.held_out = [Corpus(data[name], ["val"], settings, config.box_input) for name in names]
        self.ends = [sum(len(c.ids) for c in self.train[: k + 1]) for k in range(len(names))]
        self.content: set[int] = set()
        if settings.content is not None:
            self.content = set().union(*(corpus.content_words(encoder) for corpus in self.train))

    @property
    def dropped(self) -> int:
        return sum(corpus.rows.dropped for corpus in (*self.train, *self.held_out))

    def size(self) -> int:
        return self.ends[-1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the visual inputs of all training images."""
        from vbert.objectives.statistics import statistics

        return statistics([(c.visuals, [image for images in c.images for image in images]) for c in self.train])

    def _training_samples(self, index: int, epoch: int) -> list[tuple[Corpus, PretrainingSequence]]:
        k = next(k for k, end in enumerate(self.ends) if index < end)
        return self._samples(self.train[k], index - (self.ends[k - 1] if k else 0), epoch)

    def _samples(self, corpus: Corpus, i: int, epoch: int | str) -> list[tuple[Corpus, PretrainingSequence]]:
        """The sequences of an example: one; two of a matched one where they come in pairs; one a choice."""
        from vbert.training.sampler import generator

        settings = self.settings
        rng = generator(self.seed, epoch, corpus.ids[i])
        matched = corpus.matched(i)
        if settings.itm_rows == "unmasked":
            matched = bool(rng.random() < settings.itm_share) and matched
        masked = settings.itm_rows == "masked" or not matched
        if corpus.kinds[i] == "choice":
            return [(corpus, one) for one in self._choices(corpus, i, matched, rng if masked else None)]
        pairs: list[tuple[int, TextImagePair | None]]
        if not matched or settings.itm_target == "task_label":
            pairs = [(corpus.label(i) if matched else -1, corpus.unmatched_pair(i, rng))]
        elif settings.itm_draw == "paired":
            pairs = [(1, corpus.true_pair(i, rng)), (0, corpus.negative_pair(i, rng))]
        else:
            wrong = bool(rng.random() < settings.mismatched)
            pairs = [(int(not wrong), corpus.negative_pair(i, rng) if wrong else corpus.true_pair(i, rng))]
        return [
            (corpus, self._sample(pair, match, rng if masked else None)) for match, pair in pairs if pair is not None
        ]

    def _choices(
        self, corpus: Corpus, i: int, matched: bool, rng: np.random.Generator | None
    ) -> Iterator[PretrainingSequence]:
        """`[CLS] context [SEP] choice [SEP]` of every choice, the right one a match; unmatched, of the right one
        alone. Words name regions, as in fine-tuning."""
        from vbert.objectives import choice

        right, head = corpus.right_choice(i), {"align": True, "cut": "both", "max_text": self.max_text}
        for k, one in enumerate(choice.inputs(corpus.rows, i, self.encoder, head, None)):
            if self.settings.images == "shuffled":  # other images' regions have no names
                one = replace(one, regions=None, aligned=())
            if matched or k == right:
                yield self._masked(one, int(k == right) if matched else -1, rng)

    def _sample(self, pair: TextImagePair, match: int, rng: np.random.Generator | None) -> PretrainingSequence:
        """The sequence of a pair; masked by `rng` where there is one."""
        from vbert.objectives.batches import Input, sentence

        return self._masked(Input(sentence(self.encoder, pair.texts, self.max_text), pair.images), match, rng)

    def _masked(self, whole: Input, match: int, rng: np.random.Generator | None) -> PretrainingSequence:
        from vbert.objectives.batches import mask

        if rng is None:
            return PretrainingSequence(whole, [], match)
        text = whole.text
        hidden = mask(text.ids, text.words, self.encoder, rng, self._shares(text), self.settings.whole_word)
        return PretrainingSequence(replace(whole, text=replace(text, ids=hidden.ids), at=hidden.at), hidden.true, match)

    def _shares(self, text: TokenizedText) -> list[float]:
        """The probability of each piece to be masked."""
        settings = self.settings
        content = settings.masked if settings.content is None else settings.content
        shares = [content if piece in self.content else settings.masked for piece in text.ids]
        if settings.answers is not None:
            shares = [settings.answers if a else s for a, s in zip(text.answer, shares, strict=True)]
        return shares

    def _held_out_samples(self) -> list[tuple[Corpus, PretrainingSequence]]:
        return [
            sample
            for corpus, rows in zip(self.held_out, self._chosen, strict=True)
            for i in rows
            for sample in self._samples(corpus, i, "val")
        ]

    def commonest_word(self) -> tuple[str, float] | None:
        """The piece that is masked most often in training (in COUNTED of its examples), and its share of the masked
        pieces in the held-out examples: the accuracy of always predicting it. None where none is masked."""
        step = -(-self.size() // COUNTED)
        training = [s for i in range(0, self.size(), step) for s in self._training_samples(i, 0)]
        hidden = Counter(piece for _, sample in training for piece in sample.true)
        held_out = Counter(piece for _, sample in self._held_out_samples() for piece in sample.true)
        if not hidden or not held_out:
            return None
        piece = majority(hidden)
        return self.encoder.tokens[piece], held_out[piece] / held_out.total()

    @cached_property
    def _chosen(self) -> list[list[int]]:
        """The held-out examples of each data set that are validated on."""
        from vbert.training.sampler import derive

        return [
            sorted(range(len(c.ids)), key=lambda i: derive("validation", c.ids[i]))[: self.settings.validation_examples]
            for c in self.held_out
        ]
