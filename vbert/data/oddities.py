"""What is odd about a data set's texts whatever its format, counted: questions asked twice, images without a text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any

from vbert.data.names import count_of
from vbert.data.readers import ReaderNote


class Oddities:
    """Sees every example of a collection; `notes` counts what is odd."""

    def __init__(self, image_ids: Collection[str]) -> None:
        self._image_ids = image_ids
        self._spoken_of: set[str] = set()
        self._asked: set[bytes] = set()
        self._again: list[str] = []

    def see(self, example: Mapping[str, Any]) -> None:
        self._spoken_of.update(example["image_ids"])
        if example.get("kind") == "question":
            words = " ".join(str(example.get("text")).casefold().split())
            key = blake2b(repr((example["image_ids"], words)).encode(errors="replace"), digest_size=12).digest()
            if key in self._asked:
                self._again.append(str(example["example_id"]))
            self._asked.add(key)

    def notes(self) -> list[ReaderNote]:
        notes = []
        if silent := len(self._image_ids) - len(self._spoken_of):
            total = count_of(self._image_ids, "image")
            notes.append(ReaderNote("images_without_text", silent, f"{silent:,} of {total} that no text speaks of"))
        if self._again:
            said = f"{count_of(self._again, 'question')} asked before of the same image; the first: {self._again[0]}"
            notes.append(ReaderNote("duplicate_questions", len(self._again), said))
        return notes
