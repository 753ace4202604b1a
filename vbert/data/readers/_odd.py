"""For readers: what is odd about labels, questions and answers, counted with the first place of each."""

from __future__ import annotations

from collections.abc import Iterator

from vbert.data.names import count_of
from vbert.data.readers import ReaderNote
from vbert.errors import UserError

# figure → what is counted, and what became of it
ODDITIES = {
    "stray_blanks": ("label", "with stray blanks, taken without them"),
    "empty_answers": ("answer", "that normalise to nothing, no targets of training"),
    "empty_questions": ("question", "without text, left out"),
    "empty_captions": ("caption", "without text, left out"),
    "empty_expressions": ("expression", "without text, left out"),
    "repeated_regions": ("region", "whose id occurs before in its photo, left out"),
    "repeated_questions": ("question", "whose id occurs before in its photo, left out"),
    "single_answers": ("question", "with a single answer, which scores 1"),
    "difficult_answers": ("question", "with difficult direct answers, which don't count"),
    "ids_in_two_files": ("id", "that stand in an earlier file too, now with the file's name"),
    "empty_texts": ("text", "that are empty"),
    "texts_without_image": ("text", "whose image is not there, left out"),
    "missing_texts": ("tweet", "without a file of its text, left out"),
    "texts_not_utf8": ("text", "that are not UTF-8, read as cp1252"),
    "repeated_pairs": ("pair", "of a text and a photo that occur before, on the same side of the split"),
    "no_majority": ("tweet", "without a label that two annotators agree on, left out"),
    "contradictory_labels": ("tweet", "with a positive and a negative label, left out"),
    "unlabelled": ("question", "without answers"),
}


class Odd:
    """What is odd, with its place in the files; `notes` counts it."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._spelt: dict[str, dict[str, str]] = {}

    def add(self, figure: str, where: str) -> None:
        self._places.setdefault(figure, []).append(where)

    def count(self, figure: str) -> int:
        return len(self._places.get(figure, ()))

    def label(self, value: str | None, where: str) -> str | None:
        """The label without the blanks around it, which are counted; None where it is empty."""
        if value is not None and value != value.strip():
            self.add("stray_blanks", where)
        return value.strip() or None if value is not None else None

    def spelling(self, label: str | None, where: str) -> None:
        """Notices labels that differ in letter case alone, which are counted."""
        if label is not None:
            self._spelt.setdefault(label.casefold(), {}).setdefault(label, where)

    def truth(self, value: str | None, where: str) -> str | None:
        """`true` or `false`, in any case; None for no label. Raises UserError for another one."""
        label = self.label(value, f"{where}: label")
        if label is not None and label.lower() not in ("true", "false"):
            raise UserError(f"{where}: label: must be True or False, not {value!r:.80}")
        return None if label is None else label.lower()

    def notes(self) -> Iterator[ReaderNote]:
        for figure, places in self._places.items():
            word, sentence = ODDITIES[figure]
            said = f"{count_of(places, word)} {sentence}; the first: {places[0]}"
            yield ReaderNote(figure, len(places), said, left_out="left out" in sentence)
        if alike := [found for found in self._spelt.values() if len(found) > 1]:
            count, (one, other) = sum(map(len, alike)), [*alike[0]][:2]
            said = (
                f"{count:,} labels that differ from another in letter case alone, each one of its own: {one!r:.80} and "
            )
            said += f"{other!r:.80}, for example; the first: {alike[0][other]}"
            yield ReaderNote("labels_alike", count, said)
