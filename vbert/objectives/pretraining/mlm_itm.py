"""Pre-training: masked language modelling and image–text matching, one objective with two weights.

Semantics of the original VisualBERT, with its choices as named options; label 1 of the matching head is a true pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vbert.objectives.pretraining.corpus import Corpus, PretrainData
from vbert.objectives.pretraining.sequences import PretrainingSequence, PretrainingSequences
from vbert.objectives.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vbert.model.heads import PretrainingModel
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import Batch
    from vbert.objectives.pretraining.matching import JudgedPair
    from vbert.training.ranks import Ranks

VALIDATED = 128  # sequences at once

RegionSource = Callable[[Corpus, Sequence[str]], "tuple[np.ndarray, np.ndarray]"]


class Pretraining(PretrainingSequences):
    """Pre-training, as a `Trainable` of the training loop."""

    def __init__(
        self,
        data: Mapping[str, PretrainData],
        encoder: WordPieceEncoder,
        model: PretrainingModel,
        settings: PretrainSettings,
        seed: int,
    ) -> None:
        super().__init__(data, encoder, model.encoder.config, settings, seed)
        self.model: nn.Module = model
        self.weights = {"mlm": settings.mlm, "itm": settings.itm}
        self._freeze()

    def _freeze(self) -> None:
        """Freeze parameters that no loss reaches; DDP would wait for their gradients."""
        matched = self.settings.itm_target != "off"
        for name, parameter in self.model.named_parameters():
            if name.startswith("encoder.pooler."):
                parameter.requires_grad_(matched and self.settings.train_pooler)
            if name.startswith("matching."):
                parameter.requires_grad_(matched)

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        return self._packed([sample for i, epoch in items for sample in self._training_samples(i, epoch)])

    def _packed(
        self, samples: Sequence[tuple[Corpus, PretrainingSequence]], shown: RegionSource | None = None
    ) -> Batch:
        """shown: gives the visual inputs of a pair's images; by default their own regions, those that are shown."""
        import torch

        from vbert.objectives.batches import Batch, pack

        inputs = [(corpus, s.input) for corpus, s in samples]
        regions = [shown(c, one.images) if shown else c.visuals.of(one.images, one.regions) for c, one in inputs]
        packed = pack([one for _, one in inputs], regions)
        matched = [k for k, (_, s) in enumerate(samples) if s.match >= 0]
        tensors = {
            "words": [piece for _, s in samples for piece in s.true],
            "matched": matched,
            "match": [samples[k][1].match for k in matched],
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

        words, match = model(batch.packed)
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
        return {"validation/loss": total, **figures, **self._matching_figures()}

    @cached_property
    def _judged_pairs(self) -> tuple[list[JudgedPair], dict[str, float]]:
        """The held-out pairs for the matching head, and the accuracies of the text alone on them."""
        from vbert.objectives.pretraining.matching import accuracies, judged_pairs, text_alone

        pairs = judged_pairs(self.held_out, self._chosen, self.settings)
        if not pairs:
            return [], {}
        return pairs, accuracies(pairs, text_alone(self.train, pairs, self.encoder), self.settings.altered)

    def _matching_figures(self) -> dict[str, float]:
        """Figures of the matching head on unmasked held-out pairs, half of them true: its balanced accuracy
        (itm_accuracy), beside that of the text alone (text_only_accuracy); and by kind of negative with the images' own
        regions, with another image's and with none."""
        from vbert.objectives.controls import shuffled_images
        from vbert.objectives.pretraining.matching import accuracies

        if self.settings.itm_target != "mismatch":
            return {}
        pairs, text_alone = self._judged_pairs
        if not pairs:
            return {}
        others = {
            id(c): shuffled_images(sorted({name for images in c.images for name in images})) for c in self.held_out
        }
        shown: dict[str, RegionSource] = {
            "own": lambda corpus, images: corpus.visuals.of(images),
            "exchanged": lambda corpus, images: corpus.visuals.of([others[id(corpus)][name] for name in images]),
            "none": lambda corpus, images: corpus.visuals.empty(),
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
            matches += (self.model(batch.packed)[1].argmax(1) == 1).tolist()
        return matches
