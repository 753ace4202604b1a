"""The order of samples: a function of (seed, step), so that training resumes exactly at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np


def derive(*parts: object) -> int:
    """A 63-bit seed derived from the name of a random choice, e.g. (seed, epoch, example id)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8]) >> 1


def generator(*parts: object) -> np.random.Generator:
    """A random generator for the choices that `parts` name, independent of the process's global state."""
    return np.random.Generator(np.random.PCG64(derive(*parts)))


@lru_cache(maxsize=2)
def order(size: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [size]: the order of the examples in `epoch`."""
    return generator(seed, "order", epoch).permutation(size)


def items(size: int, seed: int, start: int, stop: int) -> list[tuple[int, int]]:
    """(example index, epoch) of the samples `start` to `stop` of the endless stream of epochs."""
    places = (divmod(k, size) for k in range(start, stop))
    return [(int(order(size, seed, epoch)[i]), epoch) for epoch, i in places]


class GlobalBatchSampler:
    """A torch `batch_sampler`: for each step from `first` to `last`, this rank's parts of the step's batch.

    Sample k of a batch goes to rank k mod world; a rank's share is cut into `parts` of equal size. Batches run across
    the ends of epochs, so all have the same size and the step alone is the position.
    """

    def __init__(
        self, *, size: int, seed: int, batch_size: int, first: int, last: int, rank: int, world: int, parts: int
    ) -> None:
        if batch_size % (world * parts):
            raise ValueError(f"batch_size {batch_size} is not a multiple of processes × accumulate = {world * parts}")
        self.size, self.seed, self.batch_size = size, seed, batch_size
        self.first, self.last, self.rank, self.world, self.parts = first, last, rank, world, parts

    def __len__(self) -> int:
        return (self.last - self.first) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.last):
            start = step * self.batch_size
            mine = items(self.size, self.seed, start, start + self.batch_size)[self.rank :: self.world]
            part = len(mine) // self.parts
            for i in range(self.parts):
                yield mine[i * part : (i + 1) * part]


class IndexDataset:
    """The map-style data set behind the loader: its items are the (index, epoch) asked for; `collate` does the work."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
        return item

    def __getitems__(self, wanted: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        return wanted
