"""From examples and regions to batches: rows of a table, visual inputs, masked texts. Deterministic.

Runs in loader workers: nothing here draws from a process's global random state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbert.errors import UserError
from vbert.model.visualbert import PackedBatch, append6
from vbert.model.vocabulary import WordPieceEncoder
from vbert.objectives.controls import shuffled_images, with_texts
from vbert.regions.shards import RegionSource
from vbert.training.sampler import derive

READ_AT_ONCE = 4096  # rows as Python objects
CACHE = 256 << 20  # bytes of visual inputs that a process keeps
BOXES_KEPT = 20_000  # images whose boxes, or classes, a process keeps


@dataclass
class TokenizedText:
    """A tokenised text: piece ids with special tokens, segment types, words (see `mask`), whether each piece
    belongs to an answer, and the characters (start, end) that it stands for in its own text or answer as given, None
    for special tokens. positions: of the pieces, where they don't count from 0."""

    ids: list[int]
    types: list[int]
    words: list[int]
    answer: list[bool]
    spans: list[tuple[int, int] | None]
    positions: list[int] | None = None

    def places(self, start: int, end: int, segment: int = 0) -> list[int]:
        """The places of the pieces of the characters `start` to `end` of the text of a segment. A piece that has more
        characters counts too; none where they are cut off or give no piece (a space, a lone accent)."""
        return [
            place
            for place, span in enumerate(self.spans)
            if span and span[0] < end and span[1] > start and self.types[place] == segment and not self.answer[place]
        ]

    def until(self, place: int, end: Sequence[int] = ()) -> TokenizedText:
        """The pieces before `place`, and then the special tokens `end`, of segment 0."""
        more = len(end)
        return TokenizedText(
            [*self.ids[:place], *end],
            [*self.types[:place], *[0] * more],
            [*self.words[:place], *[-1] * more],
            [*self.answer[:place], *[False] * more],
            [*self.spans[:place], *[None] * more],
        )


@dataclass
class Input:
    """One pass of the encoder: a text beside the regions of images.

    images: () for a text alone; regions of the second and later ones have visual segment 1. at: places of `text` that
    the head reads ([MASK], masked words, the ends of phrases); () where it reads the pooled vector. regions: those of
    the images' regions that are shown, in order; None: all. aligned: (shown region, place of `text`) of the pieces that
    name a region, VCR's tags. causal: each piece of the first text (segment 0) sees itself and what stands before it in
    that text, and a second text and the regions whole; these see each other alone. others: in place of `regions`, where
    another image's are shown. ragged: further arrays by name, [n, …] with an n of its own; those of a batch's inputs
    follow each other in its tensor of that name, their rows filled up with 0.
    """

    text: TokenizedText
    images: Sequence[str]
    at: Sequence[int] = ()
    regions: Sequence[int] | None = None
    aligned: Sequence[tuple[int, int]] = ()
    causal: bool = False
    others: Sequence[int] | None = None
    ragged: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass
class Batch:
    """Packed inputs, and the objective's tensors by name; those of a downstream task have `example`, int64 [B]: which
    example each input belongs to."""

    packed: PackedBatch
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return Batch(self.packed.to(device), moved)

    def pin_memory(self) -> Batch:
        return Batch(self.packed.pin_memory(), {name: tensor.pin_memory() for name, tensor in self.tensors.items()})


class HasTable(Protocol):
    """Examples: an artifact, or rows in memory."""

    def table(self) -> pa.Table:
        """As EXAMPLES_SCHEMA says."""


class ExampleRows:
    """The examples of some splits and kinds whose images all have regions, in the order of the table.

    evaluated: makes examples to be predicted of them, see `Objective.evaluated`.
    types: question types, None for all. share: of the examples, drawn by `share_mask` with `seed`. text: "own";
    "shuffled", where each has the text of another (and phrases the places of its phrases, in turn); "none", where texts
    are empty. every: the table with examples without regions, with their own texts. shown: image → the one whose
    regions stand for its own (a control).
    """

    def __init__(
        self,
        examples: HasTable,
        shards: RegionSource,
        splits: Collection[str],
        kinds: Collection[str],
        share: float = 1.0,
        seed: int = 0,
        types: Collection[str] | None = None,
        text: str = "own",
        evaluated: Callable[[pa.Table], pa.Table] | None = None,
    ) -> None:
        table = examples.table()
        chosen = pc.and_(
            pc.is_in(table["split"], pa.array(list(splits), pa.string())),
            pc.is_in(table["kind"], pa.array(list(kinds), pa.string())),
        )
        if types is not None:
            chosen = pc.and_(chosen, pc.is_in(table["question_type"], pa.array(list(types), pa.string())))
        table = table.filter(chosen).combine_chunks()
        if share < 1:
            chosen = pa.array(share_mask(image_groups(table), share, seed), pa.bool_())
            table = table.filter(chosen).combine_chunks()
        table = evaluated(table) if evaluated else table
        with_regions = set(shards.image_ids())
        image_ids: list[list[str]] = list(table["image_ids"].to_pylist())  # type: ignore[arg-type]
        whole = [with_regions.issuperset(images) for images in image_ids]
        self.every, self.shards = table, shards
        self.dropped = whole.count(False)  # their images are in quarantine
        table = table.filter(pa.array(whole, pa.bool_())).combine_chunks() if self.dropped else table
        self.table = with_texts(table, text)
        self.shown: Mapping[str, str] = {}
        self._read: dict[int, dict[str, Any]] = {}
        self._boxes: dict[str, NDArray[np.float32] | None] = {}
        self._found: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        self._classes: dict[str, list[str]] = {}

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Leaves the examples out that are not `wanted`; returns how many."""
        kept = [wanted(row) for row in self]
        if not all(kept):
            self.table = self.table.filter(pa.array(kept, pa.bool_())).combine_chunks()
        return kept.count(False)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table.take(pa.array(indices, pa.int64())).to_pylist()
        self._read = dict(zip(indices, rows, strict=True))
        return rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every example, a part of them in memory at once."""
        for part in self.table.to_batches(max_chunksize=READ_AT_ONCE):
            yield from part.to_pylist()

    def row(self, index: int) -> dict[str, Any]:
        """One example; those of the last `rows[indices]` are at hand."""
        return self._read[index] if index in self._read else self[[index]][0]

    def boxes(self, image_id: str) -> NDArray[np.float32] | None:
        """The regions' boxes, [n, 4], xyxy in pixels of the image as shown."""
        if image_id not in self._boxes:
            self._boxes = {image_id: self.shards.read(image_id).boxes}
        return self._boxes[image_id]

    @cached_property
    def given(self) -> bool:
        """Whether the regions are boxes that the data set gives."""
        return self.shards.contract().features_of == "given"

    def candidates(self, image_id: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The boxes of the image's regions, as `boxes`, and of each the number of the first region of its detected
        class, -1 where that isn't known, int64 [n]. Raises UserError for regions without boxes."""
        if (kept := self._found.get(image_id)) is None:
            regions = self.shards.read(image_id)
            if regions.boxes is None:
                raise UserError(
                    f"{self.shards.title}: image {image_id!r} has no boxes, and nothing can be found by them: give "
                    "features with boxes"
                )
            first: dict[str, int] = {}
            classes = [first.setdefault(name, k) if name else -1 for k, name in enumerate(regions.classes)]
            if len(self._found) >= BOXES_KEPT:
                self._found.clear()
            kept = self._found[image_id] = (np.array(regions.boxes), np.array(classes, np.int64))
        return kept

    def shown_classes(self, image_id: str) -> list[str]:
        """The classes of the regions that stand for the image, each once, the surest region's first; regions of an
        import may have none."""
        image_id = self.shown.get(image_id, image_id)
        if image_id not in self._classes:
            regions = self.shards.read(image_id)
            if len(self._classes) >= BOXES_KEPT:
                self._classes.clear()
            surest = sorted(zip(regions.scores, regions.classes, strict=False), key=lambda pair: -pair[0])
            self._classes[image_id] = [name for name in dict.fromkeys(name for _, name in surest) if name]
        return self._classes[image_id]

    def column(self, name: str) -> list[Any]:
        return list(self.table[name].to_pylist())

    def replacements(self, images: str) -> dict[str, str]:
        """Image → the image whose regions replace its own; empty for `own`, another image of these rows for
        `shuffled`."""
        if images != "shuffled":
            return {}
        return shuffled_images(sorted({image for images in self.column("image_ids") for image in images}))


class RegionInputs:
    """The visual input of images: features, and six box numbers where the model reads them. `shown` maps an image
    to the one whose regions replace its own (a control)."""

    def __init__(self, shards: RegionSource, box_input: str, shown: Mapping[str, str] | None = None) -> None:
        self.shards, self.box_input, self.shown = shards, box_input, shown or {}
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._bytes = 0

    def __call__(self, image_id: str) -> NDArray[np.float32]:
        """float32 [n, d] or [n, d + 6]."""
        image_id = self.shown.get(image_id, image_id)
        visual = self._kept.get(image_id)
        if visual is None:
            visual = self._read(image_id)
            if self._bytes + visual.nbytes <= CACHE:
                self._kept[image_id] = visual
                self._bytes += visual.nbytes
        return visual

    def _read(self, image_id: str) -> NDArray[np.float32]:
        regions = self.shards.read(image_id)
        features = regions.features.astype(np.float32)
        if self.box_input == "none":
            return features
        if regions.boxes is None:
            raise UserError(f"{self.shards.title}: image {image_id!r} has no boxes; set model.box_input to none")
        return np.concatenate([features, append6(regions.boxes, regions.width, regions.height)], axis=1)

    def of(
        self, image_ids: Sequence[str], chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The inputs of all images of an example and their segment types: 0 for the first image, 1 for the others;
        those of the `chosen` regions alone, where these are given."""
        if not image_ids:
            return self.empty()
        parts = [self(image_id) for image_id in image_ids]
        types = np.repeat(np.minimum(np.arange(len(parts)), 1), [len(part) for part in parts])
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return (whole, types) if chosen is None else (whole[list(chosen)], types[list(chosen)])

    def empty(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The input without regions: shape [0, d]."""
        return np.zeros((0, self._width), np.float32), np.zeros(0, np.int64)

    @cached_property
    def _width(self) -> int:
        return int(self(self.shards.image_ids()[0]).shape[1])


def image_groups(table: pa.Table) -> list[str]:
    """The group of each example for resampling: its first image; a text without image is a group of its own."""
    pairs = zip(table["image_ids"].to_pylist(), table["example_id"].to_pylist(), strict=True)
    return [str(images[0]) if images else f"\x1f{example}" for images, example in pairs]


def share_mask(groups: Sequence[str], share: float, seed: int) -> list[bool]:
    """Whether each example belongs to the share: whole images are added in an order drawn by `seed` until the share is
    reached. Smaller shares of a seed are parts of larger ones."""
    sizes = Counter(groups)
    wanted, chosen, count = share * len(groups), set(), 0
    for group in sorted(sizes, key=lambda group: (derive(seed, "share", group), group)):
        if count >= wanted:
            break
        chosen.add(group)
        count += sizes[group]
    return [group in chosen for group in groups]


@dataclass
class MaskedText:
    """A text with masked pieces: `ids` as the model sees them, `at` the masked positions, `true` their original ids."""

    ids: list[int]
    at: list[int]
    true: list[int]


def mask(
    ids: Sequence[int],
    words: Sequence[int],
    encoder: WordPieceEncoder,
    rng: np.random.Generator,
    shares: Sequence[float],
    whole_word: bool = False,
) -> MaskedText:
    """BERT's masking: piece i is masked with probability `shares[i]`; of these 80 % become [MASK], 10 % a random piece,
    10 % stay (Devlin et al. 2019). Special tokens are neither masked nor drawn.

    words: for each piece its word, -1 for special tokens. whole_word: the pieces of a word are masked together, with
    the largest of their shares.
    """
    draws = rng.random((3, len(ids)))
    hide = np.array(shares)
    if whole_word:
        first = [i for i in range(len(ids)) if not i or words[i] < 0 or words[i] != words[i - 1]]
        sizes = np.diff([*first, len(ids)])
        hide = np.repeat(np.maximum.reduceat(hide, first), sizes)
        draws[0] = np.repeat(draws[0][first], sizes)
    out, at = list(ids), []
    for i in np.flatnonzero(draws[0] < hide).tolist():
        if ids[i] in encoder.special:
            continue
        at.append(i)
        if draws[1][i] < 0.8:
            out[i] = encoder.mask
        elif draws[1][i] < 0.9:
            out[i] = random_piece(encoder, float(draws[2][i]))
    return MaskedText(out, at, [ids[i] for i in at])


def random_piece(encoder: WordPieceEncoder, draw: float) -> int:
    """A piece drawn uniformly from those that are no special tokens."""
    special = sorted(encoder.special)
    piece = int(draw * (encoder.size - len(special)))
    for other in special:
        piece += piece >= other
    return piece


def pack(inputs: Sequence[Input], regions: Iterable[tuple[np.ndarray, np.ndarray]]) -> PackedBatch:
    """The inputs as one batch. regions: of each, what `RegionInputs.of` gives for its images."""
    visuals, types = zip(*regions, strict=True)
    return PackedBatch.of(
        [one.text.ids for one in inputs],
        [one.text.types for one in inputs],
        visuals,
        types,
        at=[one.at for one in inputs],
        aligned=[one.aligned for one in inputs],
        causal=[one.text.types.count(0) if one.causal else 0 for one in inputs],
        positions=[one.text.positions for one in inputs],
    )


def sentence(encoder: WordPieceEncoder, texts: Sequence[tuple[str, str]], limit: int) -> TokenizedText:
    """`[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` with segment types 0 and 1; at most `limit` tokens, the longest
    text cut first. Each of `texts` is followed by its answer ("" for none), which is cut only after all of the
    texts."""
    pieces = [(encoder(text), encoder(answer)) for text, answer in texts]
    lengths = [[len(text.ids), len(answer.ids)] for text, answer in pieces]
    over = sum(map(sum, lengths)) + len(texts) + 1 - limit
    for part in (0, 1):
        while over > 0 and any(length[part] for length in lengths):
            max(lengths, key=lambda length: length[part])[part] -= 1
            over -= 1
    out = TokenizedText([encoder.cls], [0], [-1], [False], [None])
    for segment, (both, cut) in enumerate(zip(pieces, lengths, strict=True)):
        for part, length in enumerate(cut):
            offset = 1 + max(out.words)
            out.ids += both[part].ids[:length]
            out.words += [offset + word for word in both[part].words[:length]]
            out.answer += [part == 1] * length
            out.spans += both[part].spans[:length]
        out.ids.append(encoder.sep)
        out.words.append(-1)
        out.answer.append(False)
        out.spans.append(None)
        out.types += [segment] * (sum(cut) + 1)
    return out
