"""Pre-training: masked language modelling and image–text matching, one objective with two weights.

Semantics of the original VisualBERT, with its choices as named options; label 1 of the matching head is a true pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vbert.model.config import text_limit
from vbert.objectives.pretraining.corpus import Corpus, PretrainData, TextImagePair, check_names
from vbert.objectives.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vbert.model.heads import PretrainingModel
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import Batch, TokenizedText
    from vbert.objectives.pretraining.matching import JudgedPair
    from vbert.training.ranks import Ranks

VALIDATED = 128  # sequences at once
COUNTED = 2_000  # training examples whose masked pieces are counted

RegionSource = Callable[[Corpus, Sequence[str]], "tuple[np.ndarray, np.ndarray]"]


@dataclass
class PretrainingSequence:
    """A sequence before packing. match: 1 a true pair, 0 a wrong one, -1 not to be matched."""

    text: TokenizedText
    at: list[int]
    true: list[int]
    images: Sequence[str]
    match: int


class Pretraining:
    """Pre-training, as a `Trainable` of the training loop."""

    def __init__(
        self,
        data: Mapping[str, PretrainData],
        encoder: WordPieceEncoder,
        model: PretrainingModel,
        box_input: str,
        settings: PretrainSettings,
        seed: int,
    ) -> None:
        self.model: nn.Module = model
        self.encoder, self.settings, self.seed = encoder, settings, seed
        self.max_text = text_limit(settings.max_text, model.encoder.config.max_positions)
        self.weights = {"mlm": settings.mlm, "itm": settings.itm}
        names = sorted(data)
        check_names([data[name].examples for name in names], settings)
        self.train = [Corpus(data[name], ["train"], settings, box_input) for name in names]
        self.held_out = [Corpus(data[name], ["val"], settings, box_input) for name in names]
        self.ends = [sum(len(c.ids) for c in self.train[: k + 1]) for k in range(len(names))]
        self.content: set[int] = set()
        if settings.content is not None:
            self.content = set().union(*(corpus.content_words(encoder) for corpus in self.train))
        self._freeze()

    def _freeze(self) -> None:
        """Freeze parameters that no loss reaches; DDP would wait for their gradients."""
        matched = self.settings.itm_target != "off"
        for name, parameter in self.model.named_parameters():
            if name.startswith("encoder.pooler."):
                parameter.requires_grad_(matched and self.settings.train_pooler)
            if name.startswith("matching."):
                parameter.requires_grad_(matched)

    @property
    def dropped(self) -> int:
        return sum(corpus.rows.dropped for corpus in (*self.train, *self.held_out))

    def size(self) -> int:
        return self.ends[-1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the visual inputs of all training images."""
        from vbert.objectives.batches import statistics

        return statistics([(c.visuals, [image for images in c.images for image in images]) for c in self.train])

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        return self._packed([sample for i, epoch in items for sample in self._training_samples(i, epoch)])

    def _training_samples(self, index: int, epoch: int) -> list[tuple[Corpus, PretrainingSequence]]:
        k = next(k for k, end in enumerate(self.ends) if index < end)
        return self._samples(self.train[k], index - (self.ends[k - 1] if k else 0), epoch)

    def _samples(self, corpus: Corpus, i: int, epoch: int | str) -> list[tuple[Corpus, PretrainingSequence]]:
        """The sequences of an example: one, or two of a matched one where they come in pairs."""
        from vbert.training.sampler import generator

        settings = self.settings
        rng = generator(self.seed, epoch, corpus.ids[i])
        matched = corpus.matched(i)
        if settings.itm_rows == "unmasked":
            matched = bool(rng.random() < settings.itm_share) and matched
        masked = settings.itm_rows == "masked" or not matched
        pairs: list[tuple[int, TextImagePair | None]]
        if not matched or settings.itm_target == "task_label":
            pairs = [(corpus.label(i) if matched else -1, corpus.plain(i, rng))]
        elif settings.itm_draw == "paired":
            pairs = [(1, corpus.true(i, rng)), (0, corpus.wrong(i, rng))]
        else:
            wrong = bool(rng.random() < settings.mismatched)
            pairs = [(int(not wrong), corpus.wrong(i, rng) if wrong else corpus.true(i, rng))]
        return [
            (corpus, self._sample(pair, match, rng if masked else None)) for match, pair in pairs if pair is not None
        ]

    def _sample(self, pair: TextImagePair, match: int, rng: np.random.Generator | None) -> PretrainingSequence:
        """The sequence of a pair; masked by `rng` where there is one."""
        from vbert.objectives.batches import mask, sentence

        text = sentence(self.encoder, pair.sayings, self.max_text)
        if rng is None:
            return PretrainingSequence(text, [], [], pair.images, match)
        hidden = mask(text.ids, text.words, self.encoder, rng, self._shares(text), self.settings.whole_word)
        text.ids = hidden.ids
        return PretrainingSequence(text, hidden.at, hidden.true, pair.images, match)

    def _shares(self, text: TokenizedText) -> list[float]:
        """The probability of each piece to be masked."""
        settings = self.settings
        content = settings.masked if settings.content is None else settings.content
        shares = [content if piece in self.content else settings.masked for piece in text.ids]
        if settings.answers is not None:
            shares = [settings.answers if a else s for a, s in zip(text.answer, shares, strict=True)]
        return shares

    def _packed(
        self, samples: Sequence[tuple[Corpus, PretrainingSequence]], shown: RegionSource | None = None
    ) -> Batch:
        """shown: gives the visual inputs of a pair's images; by default their own regions."""
        import torch

        from vbert.model.visualbert import PackedBatch
        from vbert.objectives.batches import Batch

        shown = shown or (lambda corpus, images: corpus.visuals.of(images))
        visuals, visual_types = zip(*(shown(corpus, sample.images) for corpus, sample in samples), strict=True)
        all_samples = [sample for _, sample in samples]
        packed = PackedBatch.of(
            [s.text.ids for s in all_samples], [s.text.types for s in all_samples], visuals, visual_types
        )
        starts = packed.starts().tolist()
        at = [start + place for start, s in zip(starts, all_samples, strict=True) for place in s.at]
        matched = [k for k, s in enumerate(all_samples) if s.match >= 0]
        tensors = {
            "masked": at,
            "words": [piece for s in all_samples for piece in s.true],
            "matched": matched,
            "match": [all_samples[k].match for k in matched],
        }
        return Batch(packed, {name: torch.tensor(values, dtype=torch.int64) for name, values in tensors.items()})

    def counts(self, batch: Batch) -> dict[str, int]:
        """The numbers of masked pieces and of matched sequences."""
        return {"mlm": len(batch.tensors["words"]), "itm": len(batch.tensors["match"])}

    def loss(self, batch: Batch, model: nn.Module) -> dict[str, Tensor]:
        words, match = self._sums(batch, model)[:2]
        return {"mlm": words} if self.settings.itm_target == "off" else {"mlm": words, "itm": match}

    def _sums(self, batch: Batch, model: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Summed cross entropies of words and matches, and how many of each are right."""
        import torch.nn.functional as F

        words, match = model(batch.packed, batch.tensors["masked"])
        match = match.index_select(0, batch.tensors["matched"])
        true_words, true_match = batch.tensors["words"], batch.tensors["match"]
        return (
            F.cross_entropy(words, true_words, reduction="sum"),
            F.cross_entropy(match, true_match, reduction="sum"),
            (words.argmax(1) == true_words).sum(),
            (match.argmax(1) == true_match).sum(),
        )

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        """Losses and accuracies on held-out images, with masks and pairs that are the same each time."""
        if ranks.rank:
            return None
        samples = self._held_out_samples()
        if not samples:
            return None
        device = next(self.model.parameters()).device
        sums, words, matches = [0.0] * 4, 0, 0
        for start in range(0, len(samples), VALIDATED):
            batch = self._packed(samples[start : start + VALIDATED]).to(device)
            sums = [a + float(b) for a, b in zip(sums, self._sums(batch, self.model), strict=True)]
            words += len(batch.tensors["words"])
            matches += len(batch.tensors["match"])
        figures = {"validation/mlm": sums[0] / max(1, words), "validation/mlm_accuracy": sums[2] / max(1, words)}
        total = self.settings.mlm * figures["validation/mlm"]
        if matches:
            figures |= {"validation/itm": sums[1] / matches, "validation/itm_accuracy": sums[3] / matches}
            total += self.settings.itm * figures["validation/itm"]
        return {"validation/loss": total, **figures, **self._judged()}

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
        piece = min(hidden, key=lambda one: (-hidden[one], one))
        return self.encoder.tokens[piece], held_out[piece] / held_out.total()

    @cached_property
    def _chosen(self) -> list[list[int]]:
        """The held-out examples of each data set that are validated on."""
        from vbert.training.sampler import derive

        return [
            sorted(range(len(c.ids)), key=lambda i: derive("validation", c.ids[i]))[: self.settings.validation_examples]
            for c in self.held_out
        ]

    @cached_property
    def _tried(self) -> tuple[list[JudgedPair], dict[str, float]]:
        """The held-out pairs for the matching head, and the accuracies of the text alone on them."""
        from vbert.objectives.pretraining.matching import accuracies, judged_pairs, text_alone

        pairs = judged_pairs(self.held_out, self._chosen, self.settings)
        if not pairs:
            return [], {}
        return pairs, accuracies(pairs, text_alone(self.train, pairs, self.encoder), self.settings.altered)

    def _judged(self) -> dict[str, float]:
        """Figures of the matching head on unmasked held-out pairs, half of them true: its balanced accuracy
        (itm_accuracy), beside that of the text alone (text_only_accuracy); and by kind of negative with the images' own
        regions, with another image's and with none."""
        from vbert.objectives.batches import shuffled_images
        from vbert.objectives.pretraining.matching import accuracies

        if self.settings.itm_target != "mismatch":
            return {}
        pairs, text_alone = self._tried
        if not pairs:
            return {}
        others = {
            id(c): shuffled_images(sorted({name for images in c.images for name in images})) for c in self.held_out
        }
        shown: dict[str, RegionSource] = {
            "own": lambda corpus, images: corpus.visuals.of(images),
            "exchanged": lambda corpus, images: corpus.visuals.of([others[id(corpus)][name] for name in images]),
            "none": lambda corpus, images: corpus.visuals.nothing(),
        }
        by_source = {
            name: accuracies(pairs, self._judgements(pairs, regions), self.settings.altered)
            for name, regions in shown.items()
        } | {"text": text_alone}
        figures = {
            f"validation/match/{name}/{kind}": value
            for name, values in by_source.items()
            for kind, value in values.items()
            if kind and (name == "own" or "/" not in kind)
        }
        return {
            "validation/itm_accuracy": by_source["own"][""],
            "validation/text_only_accuracy": text_alone[""],
            **figures,
        }

    def _judgements(self, pairs: Sequence[JudgedPair], shown: RegionSource) -> list[bool]:
        """For each pair, whether the matching head judges that it matches."""
        device = next(self.model.parameters()).device
        matches: list[bool] = []
        for start in range(0, len(pairs), VALIDATED):
            part = [(t.corpus, self._sample(t.pair, 1, None)) for t in pairs[start : start + VALIDATED]]
            batch = self._packed(part, shown).to(device)
            matches += (self.model(batch.packed, batch.tensors["masked"])[1].argmax(1) == 1).tolist()
        return matches
