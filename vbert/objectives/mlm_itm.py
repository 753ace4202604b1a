"""Pre-training: masked language modelling and image–text matching, one objective with two weights.

Semantics of the original VisualBERT, with its choices as named options; label 1 of the matching head is a true pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vbert.artifacts.errors import BuildError, UserError
from vbert.artifacts.settings import Plugin, Since
from vbert.data.examples import Examples
from vbert.model.config import text_limit
from vbert.regions.shards import Shards
from vbert.training.schedule import Schedule

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vbert.model.heads import PretrainingModel
    from vbert.model.vocabulary import Encoder
    from vbert.training.batches import Batch, Text
    from vbert.training.ranks import Ranks

NAME, VERSION = "mlm_itm", 1
PLUGIN = Plugin(name=NAME, version=VERSION)

Kind = Literal["caption", "question", "pair", "phrases", "sentiment"]
LABELS = {"false": 0, "true": 1}  # of `itm_target: task_label`
CONTENT_ROWS = 5_000  # rows with negatives that content words are looked for in, a data set
TRIES = 20


class PretrainSettings(Schedule):
    """What pre-training does. `mlm` and `itm` are the weights of the two losses.

    matched: kinds whose texts are matched with images; the others are only masked (questions with their answers, as the
    original's pre-training on VQA). captions: texts a sequence; with 2 the first is true and the second is the one
    that may not be (the original). itm_target: mismatch (the text may be wrong), task_label (a true/false label of the
    examples: the original's task pre-training for NLVR2 and VCR), off. itm_rows: masked, where both losses come from
    one pass over masked texts (the original); unmasked, where a share `itm_share` of the samples is matched without
    masks and the others are masked and true.
    """

    mlm: float = Field(1.0, ge=0, description="weight of masked language modelling")
    itm: float = Field(1.0, ge=0, description="weight of image–text matching")
    kinds: tuple[Kind, ...] = Field(("caption", "question"), min_length=1, description="of examples")
    matched: tuple[Kind, ...] = Field(("caption",), description="kinds whose texts are matched with images")
    masked: float = Field(0.15, ge=0, lt=1, description="share of word pieces hidden")
    content: float | None = Field(None, ge=0, le=1, description="that of words which decide what is true; None: alike")
    answers: float | None = Field(None, ge=0, le=1, description="that of answers behind their question; None: alike")
    whole_word: bool = Field(False, description="whether all pieces of a word are masked together")
    captions: Literal[1, 2] = Field(1, description="texts a sequence; of 2 the second may be wrong")
    itm_target: Literal["mismatch", "task_label", "off"] = Field(
        "mismatch", description="mismatch: the text may be wrong; task_label: as the examples are labelled; off"
    )
    itm_rows: Literal["masked", "unmasked"] = Field(
        "masked", description="masked: both losses of one pass; unmasked: a share `itm_share` is matched without masks"
    )
    itm_share: float = Field(0.5, ge=0, le=1, description="of `itm_rows: unmasked`")
    mismatched: float = Field(0.5, ge=0, le=1, description="share of wrong texts among those to be matched")
    altered: float = Field(0.0, ge=0, le=1, description="share of the wrong ones made by changing a true attribute")
    images: Annotated[Literal["own", "shuffled"], Since("own")] = Field(
        "own",
        description="shuffled: each image's texts stand beside another's regions, a control of what compute gives",
    )
    max_text: int | None = Field(
        None, ge=3, description="tokens of a sequence's text, special ones included; None: max_positions, 128 at most"
    )
    train_pooler: bool = Field(True, description="the original leaves the pooler out of its optimiser")
    validation_examples: int = Field(1000, ge=0, description="held-out examples, a data set")


@dataclass(frozen=True)
class PretrainData:
    """A data set to pre-train on: texts, and the regions of its images."""

    examples: Examples
    shards: Shards


@dataclass
class Sample:
    """A sequence before packing. match: 1 a true pair, 0 a wrong one, -1 not to be matched."""

    text: Text
    at: list[int]
    true: list[int]
    images: Sequence[str]
    match: int


class Corpus:
    """The texts of one data set's split, and wrong ones for each."""

    def __init__(self, data: PretrainData, splits: Sequence[str], settings: PretrainSettings, box_input: str) -> None:
        from vbert.training.batches import Rows, Visuals

        self.settings = settings
        self.rows = Rows(data.examples, data.shards, splits, settings.kinds)
        self.visuals = Visuals(data.shards, box_input, self.rows.shown(settings.images))
        self.ids: list[str] = self.rows.column("example_id")
        self.texts: list[str] = self.rows.column("text")
        self.matched = [kind in settings.matched for kind in self.rows.column("kind")]
        self.images: list[list[str]] = self.rows.column("image_ids")
        self.seconds = self.rows.table["text_b"]
        self.labels = self.rows.table["label"]
        self.negatives = self.rows.table["negatives"]
        self.answers = self.rows.table["answers"]
        self.of_image: dict[str, list[int]] = {}
        for i, images in enumerate(self.images):
            self.of_image.setdefault(images[0], []).append(i)
        self.answers_to: dict[str, list[str]] = {}  # question → the answers it has anywhere
        for text, answers in zip(self.texts, self.answers.to_pylist(), strict=True):
            known = self.answers_to.setdefault(text, []) if answers else []
            known += sorted({a["answer"] for a in answers or ()} - set(known))

    def true_text(self, i: int, rng: np.random.Generator) -> str:
        """The text; of a question with one of its answers, drawn by score."""
        answer = self.answer(i, rng)
        return f"{self.texts[i]} {answer}" if answer else self.texts[i]

    def answer(self, i: int, rng: np.random.Generator) -> str:
        answers = self.answers[i].as_py()
        if not answers:
            return ""
        scores = [float(a["score"]) for a in answers]
        total = sum(scores)
        shares = [s / total for s in scores] if total else None
        return str(answers[int(rng.choice(len(answers), p=shares))]["answer"])

    def wrong_text(self, i: int, rng: np.random.Generator) -> str:
        """With probability `altered` a false variant of the text (a question with an answer that others give to it),
        else a text of another image, which none of this image's texts equals."""
        if rng.random() < self.settings.altered:
            if negatives := self.negatives[i].as_py():
                return str(negatives[int(rng.integers(len(negatives)))])
            if answers := self.answers[i].as_py():
                right = {a["answer"] for a in answers}
                if others := [a for a in self.answers_to[self.texts[i]] if a not in right]:
                    return f"{self.texts[i]} {others[int(rng.integers(len(others)))]}"
        own = {self.texts[j] for j in self.of_image[self.images[i][0]]}
        for _ in range(TRIES):
            j = int(rng.integers(len(self.texts)))
            if not set(self.images[j]) & set(self.images[i]) and self.texts[j] not in own:
                return self.true_text(j, rng)
        raise BuildError(f"no wrong text found for example {self.ids[i]!r}: do all images have the same texts?")

    def partner(self, i: int, rng: np.random.Generator) -> str | None:
        """Another true text of the same image; None where there is none."""
        others = [j for j in self.of_image[self.images[i][0]] if j != i and self.texts[j] != self.texts[i]]
        return self.true_text(others[int(rng.integers(len(others)))], rng) if others else None

    def label(self, i: int) -> int:
        label = self.labels[i].as_py()
        if str(label).lower() not in LABELS:
            raise UserError(
                f"itm_target: task_label: example {self.ids[i]!r} has the label {label!r}, not true or false"
            )
        return LABELS[str(label).lower()]

    def content_words(self, encoder: Encoder) -> set[int]:
        """Pieces that decide what is true: those of answers, and those that a text does not share with a negative."""
        found: set[int] = set()
        seen = 0
        for text, negatives, answers in zip(
            self.texts, self.negatives.to_pylist(), self.answers.to_pylist(), strict=True
        ):
            for answer in answers or ():
                found.update(encoder(answer["answer"]).ids)
            if negatives and seen < CONTENT_ROWS:
                seen += 1
                for negative in negatives:
                    found.update(set(encoder(text).ids) ^ set(encoder(negative).ids))
        return found


class Pretraining:
    """The task of pre-training, as the loop wants it."""

    def __init__(
        self,
        data: Mapping[str, PretrainData],
        encoder: Encoder,
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
        self.train = [Corpus(data[name], ["train"], settings, box_input) for name in names]
        self.held_out = [Corpus(data[name], ["val"], settings, box_input) for name in names]
        self.ends = [sum(len(c.ids) for c in self.train[: k + 1]) for k in range(len(names))]
        self.content: set[int] = set()
        if settings.content is not None:
            self.content = set().union(*(corpus.content_words(encoder) for corpus in self.train))
        self._freeze()

    def _freeze(self) -> None:
        """What the losses don't reach must not be trained; DDP would wait for it."""
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
        from vbert.training.batches import statistics

        return statistics([(c.visuals, [image for images in c.images for image in images]) for c in self.train])

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        return self._packed([self._training_sample(i, epoch) for i, epoch in items])

    def _training_sample(self, index: int, epoch: int) -> tuple[Corpus, Sample]:
        k = next(k for k, end in enumerate(self.ends) if index < end)
        return self._sample(self.train[k], index - (self.ends[k - 1] if k else 0), epoch)

    def _sample(self, corpus: Corpus, i: int, epoch: int | str) -> tuple[Corpus, Sample]:
        from vbert.training.batches import mask, sentence
        from vbert.training.sampler import generator

        settings, encoder = self.settings, self.encoder
        rng = generator(self.seed, epoch, corpus.ids[i])
        matched = settings.itm_target != "off" and corpus.matched[i]
        if settings.itm_rows == "unmasked":
            matched = bool(rng.random() < settings.itm_share) and matched
        match, texts = self._texts(corpus, i, matched, rng)
        text = sentence(encoder, texts, self.max_text)
        at: list[int] = []
        true: list[int] = []
        if settings.itm_rows == "masked" or not matched:
            hidden = mask(text.ids, text.words, encoder, rng, self._shares(corpus, i, texts, text), settings.whole_word)
            text.ids, at, true = hidden.ids, hidden.at, hidden.true
        return corpus, Sample(text, at, true, corpus.images[i], match)

    def _shares(self, corpus: Corpus, i: int, texts: Sequence[str], text: Text) -> list[float]:
        """The probability of each piece of `text` (made of `texts`) to be hidden."""
        settings = self.settings
        content = settings.masked if settings.content is None else settings.content
        shares = [content if piece in self.content else settings.masked for piece in text.ids]
        if settings.answers is not None and corpus.answers[i].is_valid and len(texts) == 1:
            pieces = len(self.encoder(texts[0]).ids) - len(self.encoder(corpus.texts[i]).ids)
            shares[-1 - pieces : -1] = [settings.answers] * pieces
        return shares

    def _texts(self, corpus: Corpus, i: int, matched: bool, rng: np.random.Generator) -> tuple[int, list[str]]:
        """(what the matching head should say, -1 if nothing, and the texts of the sequence)."""
        settings = self.settings
        second = corpus.seconds[i].as_py()
        if not matched or settings.itm_target == "task_label":
            texts = [corpus.true_text(i, rng), *([second] if second else [])]
            if settings.captions == 2 and not second and (partner := corpus.partner(i, rng)):
                texts.append(partner)
            return (corpus.label(i) if matched else -1), texts
        wrong = bool(rng.random() < settings.mismatched)
        if settings.captions == 1:
            return int(not wrong), [corpus.wrong_text(i, rng) if wrong else corpus.true_text(i, rng)]
        # The first text is true; an image with one text alone has only wrong ones beside it, or stands alone.
        partner = corpus.partner(i, rng)
        first = corpus.true_text(i, rng)
        if partner is None:
            return int(not wrong), [corpus.wrong_text(i, rng) if wrong else first]
        return int(not wrong), [first, corpus.wrong_text(i, rng) if wrong else partner]

    def _packed(self, samples: Sequence[tuple[Corpus, Sample]]) -> Batch:
        import torch

        from vbert.model.visualbert import Packed
        from vbert.training.batches import Batch

        visuals, visual_types = zip(*(corpus.visuals.of(sample.images) for corpus, sample in samples), strict=True)
        all_samples = [sample for _, sample in samples]
        packed = Packed.of(
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
        """Hidden pieces, and sequences that are matched."""
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
        """Losses and accuracies on held-out images, with masks and wrong texts that are the same each time."""
        if ranks.rank:
            return None
        from vbert.training.sampler import derive

        device = next(self.model.parameters()).device
        samples: list[tuple[Corpus, Sample]] = []
        for corpus in self.held_out:
            chosen = sorted(range(len(corpus.ids)), key=lambda i: derive("validation", corpus.ids[i]))
            samples += [self._sample(corpus, i, "val") for i in chosen[: self.settings.validation_examples]]
        if not samples:
            return None
        sums, words, matches = [0.0] * 4, 0, 0
        for start in range(0, len(samples), 128):
            batch = self._packed(samples[start : start + 128]).to(device)
            sums = [a + float(b) for a, b in zip(sums, self._sums(batch, self.model), strict=True)]
            words += len(batch.tensors["words"])
            matches += len(batch.tensors["match"])
        figures = {"validation/mlm": sums[0] / max(1, words), "validation/mlm_accuracy": sums[2] / max(1, words)}
        total = self.settings.mlm * figures["validation/mlm"]
        if matches:
            figures |= {"validation/itm": sums[1] / matches, "validation/itm_accuracy": sums[3] / matches}
            total += self.settings.itm * figures["validation/itm"]
        return {"validation/loss": total, **figures}
