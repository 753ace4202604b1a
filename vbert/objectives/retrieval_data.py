"""Batches of retrieval: a right pair beside wrong ones, each text and image of a batch once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vbert.errors import BuildError
from vbert.model.retrieval import RetrievalBatch, TextsAndImages, TextTokens
from vbert.objectives.batches import Batch, sentence
from vbert.objectives.dataset import ObjectiveDataset
from vbert.training.sampler import generator

TRIES = 100  # draws for wrong texts or images of an example


class RetrievalDataset(ObjectiveDataset[Any]):
    """Captions as retrieval's batches. An example has the text of its row and the first of its images."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ids: list[str] = self.rows.column("example_id")
        self.texts: list[str] = self.rows.column("text")
        self.images: list[str] = [images[0] for images in self.rows.column("image_ids")]
        self._texts_of: dict[str, set[str]] = {}
        for text, image in zip(self.texts, self.images, strict=True):
            self._texts_of.setdefault(image, set()).add(text)
        self._mined: dict[tuple[int, int], tuple[bool, list[int]]] = {}

    def alike(self, i: int, j: int) -> bool:
        """Whether the text of example i is one of the image of example j, or isn't to be told from one."""
        same = self.images[i] == self.images[j]
        return same or (self.head.get("text") != "none" and self.texts[i] in self._texts_of[self.images[j]])

    def tokens(self, text: str) -> TextTokens:
        one = sentence(self.encoder, [(text, "")], self.head["max_text"])
        return one.ids, one.types

    @property
    def bare(self) -> list[int]:
        """`[CLS] [SEP]`, beside which an image stands alone."""
        return [self.encoder.cls, self.encoder.sep]

    def visual(self, image: str) -> np.ndarray:
        """float32 [n, visual_input]; none of it where images aren't shown."""
        return self.visuals.of(() if self.head["images"] == "none" else (image,))[0]

    def wrong_images(self, i: int, count: int, draw: np.random.Generator) -> list[int]:
        """Examples whose images the text of example i isn't of."""
        return self._drawn(i, count, draw, lambda j: not self.alike(i, j))

    def wrong_texts(self, i: int, count: int, draw: np.random.Generator) -> list[int]:
        """Examples whose texts aren't of the image of example i."""
        return self._drawn(i, count, draw, lambda j: not self.alike(j, i))

    def _drawn(self, i: int, count: int, draw: np.random.Generator, wanted: Callable[[int], bool]) -> list[int]:
        """`count` different examples that are wanted; where there are fewer, these again and again."""
        found: dict[int, None] = {}
        for _ in range(TRIES):
            few = 4 * count >= len(self.ids)
            drawn = draw.permutation(len(self.ids)) if few else draw.integers(len(self.ids), size=count)
            found |= dict.fromkeys(j for j in drawn.tolist() if wanted(j))
            if few or len(found) >= count:
                break
        if not found:
            raise BuildError(
                f"no wrong images or texts found for example {self.ids[i]!r}: do all images have the same texts? Leave "
                "them out by `types`"
            )
        return list(islice(cycle(found), count))

    def use_mined(self, samples: Sequence[tuple[int, int]], mined: Mapping[str, Tensor]) -> None:
        """mined: `rows`, int64 [samples, hard], see `retrieval_mining.mined`."""
        rows = mined["rows"].tolist()
        self._mined = {one: (k % 2 == 0, rows[k]) for k, one in enumerate(samples)}

    def _wrong(self, i: int, epoch: int) -> tuple[list[int], list[int]]:
        """(examples of wrong images, of wrong texts)."""
        if self.head["negatives"] == "mined":
            of_images, rows = self._mined[i, epoch]
            return (rows, []) if of_images else ([], rows)
        if self.head["negatives"] == "batch":
            return [], []
        draw, count = generator(self.seed, epoch, self.ids[i]), self.head["wrong"]
        return self.wrong_images(i, count, draw), self.wrong_texts(i, count, draw)

    def batch(self, items: Sequence[tuple[int, int | None]]) -> tuple[Batch, list[dict[str, Any]]]:
        """The training batch of (index, epoch) of examples, without rows: predictions are made another way."""
        texts = images = [i for i, _ in items]
        pairs: list[list[tuple[int, int]]] = []
        for b, (i, epoch) in enumerate(items):
            assert epoch is not None, "in training"
            wrong_images, wrong_texts = self._wrong(i, epoch)
            pairs.append([(b, b)])
            pairs[-1] += [(b, len(images) + k) for k in range(len(wrong_images))]
            pairs[-1] += [(len(texts) + k, b) for k in range(len(wrong_texts))]
            texts, images = texts + wrong_texts, images + wrong_images
        every = [*(self.tokens(self.texts[j]) for j in texts), (self.bare, [0, 0])]
        visuals = [self.visual(self.images[j]) for j in images]
        alike = torch.tensor([[self.alike(i, j) for j, _ in items] for i, _ in items])
        packed = RetrievalBatch(
            TextsAndImages.of(every, visuals, visuals[0].shape[1]),
            torch.tensor(pairs).permute(2, 0, 1).contiguous(),
            alike,
        )
        # The loss is a mean over groups, or over their wrong pairs.
        wrong = 2 * self.head["wrong"] if "wrong" in self.head else self.head["hard"]
        terms = torch.tensor(wrong if self.head["loss"] == "margin" else 1)
        tensors = {"example": torch.arange(len(items)), "alike": alike, "terms": terms}
        return Batch(packed, tensors), []  # type: ignore[arg-type]
