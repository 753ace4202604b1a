"""A data set for pre-training: texts with images that they are true of, and fair negative pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vbert.data.examples import Examples
from vbert.errors import BuildError, UserError, nearest
from vbert.regions.shards import Shards

if TYPE_CHECKING:
    import numpy as np

    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.pretraining.settings import PretrainSettings

LABELS = {"false": 0, "true": 1}  # of `itm_target: task_label`
CONTENT_ROWS = 5_000  # rows with negatives that are searched for content words, a data set
# The least share of a word's pairs of text and negative in which the negative replaces that word alone.
CONTENT_SHARE = 0.05
TRIES = 100


@dataclass(frozen=True)
class PretrainData:
    """A data set to pre-train on: texts, and the regions of its images."""

    examples: Examples
    shards: Shards


class AnsweredText(NamedTuple):
    """A text and the answer behind it ("" for none)."""

    text: str
    answer: str = ""


class TextImagePair(NamedTuple):
    """Texts with images, of the kind true, other (a text of other images) or altered (a text of these images with one
    thing changed, named by `changed` where the data states it)."""

    texts: Sequence[AnsweredText]
    images: Sequence[str]
    kind: str
    changed: str = ""


class Corpus:
    """The texts of one data set's split, and pairs that don't match.

    Only text and image together tell which pairs match: a text in a negative pair is one of the data set, and as often
    in a true pair; `altered` texts differ from their true one in one thing.
    """

    def __init__(self, data: PretrainData, splits: Sequence[str], settings: PretrainSettings, box_input: str) -> None:
        from vbert.objectives.batches import ExampleRows, RegionInputs

        self.settings = settings
        self.rows = ExampleRows(data.examples, data.shards, splits, settings.kinds, types=settings.question_types)
        self.visuals = RegionInputs(data.shards, box_input, self.rows.replacements(settings.images))
        self.ids: list[str] = self.rows.column("example_id")
        self.texts: list[str] = self.rows.column("text")
        self.kinds: list[str] = self.rows.column("kind")
        self.types: list[str | None] = self.rows.column("question_type")
        self.images: list[list[str]] = self.rows.column("image_ids")
        self.seconds = self.rows.table["text_b"]
        self.labels = self.rows.table["label"]
        self.negatives = self.rows.table["negatives"]
        self.changed = self.rows.table["changed"]
        self.false_of = self.rows.table["false_of"]
        self.answers = self.rows.table["answers"]
        self.of_image: dict[str, list[int]] = {}
        self.of_kind: dict[tuple[str, int], list[int]] = {}  # kind and number of images → rows
        self.asked: dict[str, list[int]] = {}  # question → rows with an answer to it
        for i, (text, kind, images) in enumerate(zip(self.texts, self.kinds, self.images, strict=True)):
            self.of_image.setdefault(images[0], []).append(i)
            self.of_kind.setdefault((kind, len(images)), []).append(i)
            if self.answers[i].as_py():
                self.asked.setdefault(text, []).append(i)
        self.false_here: dict[str, list[int]] = {}  # image → rows whose text is known to be false of it
        if settings.captions == 2:
            for i, known in enumerate(self.false_of.to_pylist()):
                for image in known or ():
                    self.false_here.setdefault(image, []).append(i)

    def matched(self, i: int) -> bool:
        """Whether the example's text is matched with images."""
        return self.settings.itm_target != "off" and self.kinds[i] in self.settings.matched

    def text_of(self, i: int, rng: np.random.Generator) -> AnsweredText:
        """The text of row i; a question with one of its answers, drawn by score."""
        answers = self.answers[i].as_py()
        if not answers:
            return AnsweredText(self.texts[i])
        scores = [float(a["score"]) for a in answers]
        total = sum(scores)
        shares = [s / total for s in scores] if total else None
        return AnsweredText(self.texts[i], str(answers[int(rng.choice(len(answers), p=shares))]["answer"]))

    def unmatched_pair(self, i: int, rng: np.random.Generator) -> TextImagePair:
        """The example without matching: with its second text, or, with two captions a sequence, with another caption of
        its image."""
        texts = [self.text_of(i, rng)]
        if second := self.seconds[i].as_py():
            texts.append(AnsweredText(second))
        elif self.settings.captions == 2 and (j := self._partner(i, rng)) is not None:
            texts.append(self.text_of(j, rng))
        return TextImagePair(texts, self.images[i], "true")

    def true_pair(self, i: int, rng: np.random.Generator) -> TextImagePair:
        """A pair that matches."""
        texts = [self.text_of(i, rng)]
        if self.settings.captions == 2 and (j := self._partner(i, rng)) is not None:
            texts.append(self.text_of(j, rng))
        return TextImagePair(texts, self.images[i], "true")

    def negative_pair(self, i: int, rng: np.random.Generator, kind: str | None = None) -> TextImagePair | None:
        """A pair that doesn't match, of the `kind` asked for (other or altered; unless given, drawn by the setting
        `altered`, other where the example can't be altered); None where the example has none of it."""
        if kind == "altered" or (kind is None and rng.random() < self.settings.altered):
            pair = self._altered(i, rng)
            if pair is not None or kind == "altered":
                return pair
        if self.settings.captions == 2 and self._partner(i, rng) is not None:
            j = self._false_text(i, rng)
            return TextImagePair([self.text_of(i, rng), self.text_of(j, rng)], self.images[i], "other")
        return TextImagePair([self.text_of(i, rng)], self._false_images(i, rng), "other")

    def _altered(self, i: int, rng: np.random.Generator) -> TextImagePair | None:
        """The text with one thing changed, one of `altered_by` where that is set; None where there is no such text."""
        negatives = self.negatives[i].as_py() or []
        changed = self.changed[i].as_py() or [""] * len(negatives)
        if (wanted := self.settings.altered_by) is not None:
            chosen = [k for k, what in enumerate(changed) if what in wanted]
            negatives, changed = [negatives[k] for k in chosen], [changed[k] for k in chosen]
        if not negatives:
            return None
        k = int(rng.integers(len(negatives)))
        wrong = [AnsweredText(str(negatives[k]))]
        if self.settings.captions == 2 and (j := self._partner(i, rng)) is not None:
            wrong = [self.text_of(j, rng), *wrong]
        return TextImagePair(wrong, self.images[i], "altered", str(changed[k]))

    def _false_images(self, i: int, rng: np.random.Generator) -> Sequence[str]:
        """Images that the example's text is false of: known ones where the data names them; for a question, those it
        has other answers for; else of any example of its kind whose images have no equal text."""
        if known := [image for image in self.false_of[i].as_py() or () if image in self.of_image]:
            return [known[int(rng.integers(len(known)))]]
        own = set(self.images[i])
        right = {a["answer"] for a in self.answers[i].as_py() or ()}
        for rows in ([self.asked[self.texts[i]]] if right else []) + [self._alike(i)]:
            for _ in range(min(TRIES, len(rows))):
                j = rows[int(rng.integers(len(rows)))]
                if own.isdisjoint(self.images[j]) and not self._is_text_of(i, right, self.images[j]):
                    return self.images[j]
        raise self._no_negative(i)

    def _false_text(self, i: int, rng: np.random.Generator) -> int:
        """An example of the same kind whose text is false of this one's images (known to be, where the data lists
        such)."""
        if known := [j for j in self.false_here.get(self.images[i][0], ()) if self.kinds[j] == self.kinds[i]]:
            return known[int(rng.integers(len(known)))]
        own, rows = set(self.images[i]), self._alike(i)
        for _ in range(TRIES):
            j = rows[int(rng.integers(len(rows)))]
            right = {a["answer"] for a in self.answers[j].as_py() or ()}
            if own.isdisjoint(self.images[j]) and not self._is_text_of(j, right, self.images[i]):
                return j
        raise self._no_negative(i)

    def _alike(self, i: int) -> list[int]:
        return self.of_kind[self.kinds[i], len(self.images[i])]

    def _is_text_of(self, i: int, right: set[str], images: Sequence[str]) -> bool:
        """Whether one of the images has the text of example i, with one of the answers `right` where it has answers."""
        for j in self.of_image.get(images[0], ()):
            if self.texts[j] == self.texts[i]:
                answers = {a["answer"] for a in self.answers[j].as_py() or ()}
                if not right or answers & right:
                    return True
        return False

    def _no_negative(self, i: int) -> BuildError:
        return BuildError(
            f"no images found that the text of example {self.ids[i]!r} doesn't fit: do all images have the same texts? "
            "Leave its kind out of pretrain.matched"
        )

    def _partner(self, i: int, rng: np.random.Generator) -> int | None:
        """Another text of the same image; None where there is none."""
        others = [j for j in self.of_image[self.images[i][0]] if j != i and self.texts[j] != self.texts[i]]
        return others[int(rng.integers(len(others)))] if others else None

    def label(self, i: int) -> int:
        label = self.labels[i].as_py()
        if str(label).lower() not in LABELS:
            raise UserError(
                f"itm_target: task_label: example {self.ids[i]!r} has the label {label!r}, not true or false"
            )
        return LABELS[str(label).lower()]

    def right_choice(self, i: int) -> int:
        """The number of the right one of an example's choices."""
        if (label := self.labels[i].as_py()) is None:
            raise UserError(f"example {self.ids[i]!r} has no label: which of its choices is right must be known")
        return int(label)

    def content_words(self, encoder: WordPieceEncoder) -> set[int]:
        """Pieces that decide the truth: those of one-word answers, and of words that a negative replaces alone in at
        least a twentieth of their pairs of text and negative."""
        pieces: set[int] = set()
        stood: Counter[tuple[int, ...]] = Counter()
        replaced: Counter[tuple[int, ...]] = Counter()
        seen = 0
        for text, negatives, answers in zip(
            self.texts, self.negatives.to_pylist(), self.answers.to_pylist(), strict=True
        ):
            for answer in answers or ():
                if len(whole := _words(encoder, answer["answer"])) == 1:
                    pieces.update(whole[0])
            if negatives and seen < CONTENT_ROWS:
                seen += 1
                true = _words(encoder, text)
                for negative in negatives:
                    false = _words(encoder, negative)
                    stood.update({*true, *false})
                    differ = [pair for pair in zip(true, false, strict=False) if pair[0] != pair[1]]
                    if len(true) == len(false) and len(differ) == 1:
                        replaced.update(differ[0])
        for word, times in replaced.items():
            if times >= CONTENT_SHARE * stood[word]:
                pieces.update(word)
        return pieces


def check_names(examples: Sequence[Examples], settings: PretrainSettings) -> None:
    """Raises UserError for names in `question_types` or `altered_by` that no data set has."""
    import pyarrow.compute as pc

    for field, column in (("question_types", "question_type"), ("altered_by", "changed")):
        wanted = getattr(settings, field) or ()
        present: set[str] = set()
        for table in (e.table() for e in examples) if wanted else ():
            values = table[column].unique() if column == "question_type" else pc.list_flatten(table[column]).unique()
            present.update(filter(None, values.to_pylist()))
        for name in wanted:
            if name not in present:
                raise UserError(f"{field}: no example has {name!r}; {nearest(name, present)}")


def _words(encoder: WordPieceEncoder, text: str) -> list[tuple[int, ...]]:
    """The words of a text, each as its pieces."""
    pieces = encoder(text)
    words: dict[int, tuple[int, ...]] = {}
    for piece, word in zip(pieces.ids, pieces.words, strict=True):
        words[word] = (*words.get(word, ()), piece)
    return list(words.values())
