"""Texts whose words name regions (VCR's tags): which piece stands for which region, also when a text is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import TokenizedText

SAME = 0.9  # intersection over union from which a phrase's box is a region's: they differ by rounding alone


@dataclass(frozen=True)
class TaggedText:
    """Pieces of a text, and (region, place among them) of the first piece of each word that names a region."""

    ids: Sequence[int]
    words: Sequence[int]
    spans: Sequence[tuple[int, int]]
    tags: Sequence[tuple[int, int]]

    @classmethod
    def of(
        cls,
        encoder: WordPieceEncoder,
        text: str,
        phrases: Sequence[Mapping[str, Any]] | None,
        boxes: np.ndarray | None,
    ) -> TaggedText:
        """phrases: parts of `text` with boxes, in whole words. boxes: the regions', float32 [n, 4], xyxy in pixels;
        None where no region is named."""
        pieces, tags = encoder(text), []
        if boxes is not None:
            for phrase in phrases or ():
                its = (
                    k for k, (start, end) in enumerate(pieces.spans) if start < phrase["end"] and end > phrase["start"]
                )
                if (place := next(its, None)) is None:
                    continue
                tags += [(region, place) for box in phrase["boxes"] if (region := region_of(box, boxes)) is not None]
        return cls(*pieces, tags)

    def without(self, front: int) -> TaggedText:
        """The text without its first `front` pieces, and without the tags on them."""
        tags = [(region, place - front) for region, place in self.tags if place >= front]
        return TaggedText(self.ids[front:], self.words[front:], self.spans[front:], tags)


def region_of(box: Sequence[float], boxes: np.ndarray) -> int | None:
    """The region whose box is `box`; None where there is none."""
    import numpy as np

    if not len(boxes):
        return None
    x1, y1, x2, y2 = (np.asarray(boxes, np.float64)[:, k] for k in range(4))
    width = np.clip(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), 0, None)
    height = np.clip(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), 0, None)
    inside = width * height
    union = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - inside
    overlap = inside / np.maximum(union, 1e-9)
    best = int(overlap.argmax())
    return best if overlap[best] >= SAME else None


def joined(
    encoder: WordPieceEncoder, context: TaggedText, choice: TaggedText, limit: int, cut: str
) -> tuple[TokenizedText, list[tuple[int, int]]]:
    """`[CLS] context [SEP] choice [SEP]` with segments 0 and 1 (without a context `[CLS] choice [SEP]`), at most
    `limit` tokens, and its (region, place). cut: see `ChoiceSettings`."""
    from vbert.objectives.batches import TokenizedText

    special = 3 if context.ids else 2
    over = max(0, len(context.ids) + len(choice.ids) + special - limit)
    front = min(len(context.ids), over // 2 if cut == "both" else 0)
    back = min(len(choice.ids), over - front)
    front = min(len(context.ids), over - back)  # what the choice is too short for
    out, aligned = TokenizedText([encoder.cls], [0], [-1], [False], [None]), []
    parts = [*([context.without(front)] if context.ids else []), choice.without(back)]
    for segment, part in enumerate(parts):
        start, words = len(out.ids), 1 + max(out.words)
        aligned += [(region, start + place) for region, place in part.tags]
        out.ids += [*part.ids, encoder.sep]
        out.words += [*(words + word - part.words[0] for word in part.words), -1]
        out.types += [segment] * (len(part.ids) + 1)
        out.answer += [False] * (len(part.ids) + 1)
        out.spans += [*part.spans, None]
    return out, aligned
