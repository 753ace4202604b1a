"""Image captioning: a text grows piece by piece beside an image, from the masked language head.

A caption's pieces see those before them and the regions; regions see regions alone. Training as Oscar's and VLP's
(masked pieces), or of every next piece.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vbert.artifacts.steps.settings import Since, Wiring
from vbert.data.names import official_number
from vbert.errors import UserError
from vbert.model.config import LONGEST_TEXT
from vbert.objectives.entry import (
    DownstreamSettings,
    EvaluateSettings,
    Head,
    Prediction,
    Predictions,
    Row,
    Rows,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor, nn

    from vbert.metrics.metric import Metric
    from vbert.model.beams import SearchRules
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input, TokenizedText
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.objectives.examined import Examined

log = logging.getLogger("vbert.objectives")
KINDS = ("caption",)
SELECTS = "cider"
MOST_MASKED = 3  # of a caption (Oscar, `max_masked_tokens`)
# Blanks that a text of word pieces has and a written one has not.
JOINED = (
    (re.compile(r" (?=[.,!?;:%)\]])|(?<=[(\[]) "), ""),
    (re.compile(r"(?<=\w) ?(['’]) ?(?=(?:s|t|m|d|re|ve|ll)\b)"), r"\1"),
    (re.compile(r"(?<=\w) - (?=\w)"), "-"),
    (re.compile(r"(?<=[\u3400-\u9fff\uf900-\ufaff]) (?=[\u3400-\u9fff\uf900-\ufaff])"), ""),
)


class CaptioningEvaluateSettings(EvaluateSettings):
    """How captions are decoded, and scored."""

    batch_size: int = Field(64, ge=1, description="images at once")
    beams: int = Field(5, ge=1, description="texts that are kept of an image; 1: greedy")
    length: int = Field(
        20,
        ge=1,
        description="word pieces of a caption at most, and never more than the model was trained on: max_text - 2",
    )
    minimum: int = Field(1, ge=0, description="word pieces at least")
    length_penalty: float = Field(1.0, ge=0, description="a caption's score is Σ log p / length^length_penalty")
    no_repeat: int = Field(0, ge=0, description="no n-gram of so many pieces twice; 0: they may repeat")

    @model_validator(mode="after")
    def _lengths(self) -> CaptioningEvaluateSettings:
        if self.minimum > self.length:
            raise ValueError(f"minimum: {self.minimum} pieces at least, but length: {self.length} at most; lower it")
        return self

    def while_training(self) -> CaptioningEvaluateSettings:
        """Greedy: a fifth of the work."""
        return CaptioningEvaluateSettings(beams=1)


class CaptioningSettings(DownstreamSettings):
    """Of examples of kind `caption`. predict: mask reads a word from a [MASK] in its place, as the original's head was
    trained; next from the word before it, and learns from every word of a caption."""

    objective: Literal["captioning"] = Field("captioning", description="the downstream task; else the entry's name")
    evaluate: Annotated[CaptioningEvaluateSettings, Wiring] = CaptioningEvaluateSettings()
    predict: Literal["mask", "next"] = Field("mask", description="what a word is read from")
    mask: float = Field(0.15, gt=0, le=1, description=f"share of masked pieces, {MOST_MASKED} of a caption at most")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all pieces")
    tags: bool = Field(
        False, description="the detected classes as a second text, its positions behind `max_text`, which must be given"
    )
    tag_pieces: int = Field(30, ge=2, description="word pieces of the tags at most")
    references: Annotated[tuple[str, ...] | None, Since(None)] = Field(
        None, min_length=1, description="question types of the captions that others are scored by; None: as `types`"
    )

    @field_validator("text")
    @classmethod
    def _own_text(cls, text: str) -> str:
        if text != "own":
            raise ValueError(
                f"{text}, but the text is what is to be written; what language alone gives is `images: none` or "
                "`shuffled`"
            )
        return text

    @model_validator(mode="after")
    def _tags(self) -> CaptioningSettings:
        if self.tags and self.images == "none":
            raise ValueError("tags: true are read from the image, and images is none; leave tags out")
        if self.tags and self.max_text is None:
            raise ValueError("tags: true stand behind max_text; give it, below max_positions (20 pieces: max_text: 22)")
        return self

    def evaluated_types(self) -> tuple[str, ...] | None:
        return self.references or self.types

    def unfit(self, part: int, positions: int | None) -> tuple[str, str] | None:
        """Tags behind the last position, and captions that must be longer than they may be."""
        if self.tags and positions is not None and (problem := _too_long(self.max_text, self.tag_pieces, positions)):
            return "max_text", problem
        if positions is None and self.max_text is None:
            return None
        longest = (self.max_text or min(LONGEST_TEXT, positions or LONGEST_TEXT)) - 2
        if self.evaluate.minimum > longest:
            problem = f"minimum: {self.evaluate.minimum} pieces at least, but the model is trained on {longest} at most"
            return "evaluate", f"{problem} (max_text - 2); lower it or raise max_text"
        return None


def _too_long(max_text: int | None, tag_pieces: int, positions: int) -> str:
    """An error where tags behind a caption have no position; else ""."""
    needed = (max_text or 0) + tag_pieces
    if needed <= positions:
        return ""
    return (
        f"captions ({max_text}) and tags (tag_pieces: {tag_pieces}) need {needed} positions, and the model has "
        f"{positions}; lower one of them"
    )


def labelled(row: Row) -> bool:
    return bool(row["given"] or row["text"].strip())


def head(rows: Iterable[Row], settings: CaptioningSettings) -> Head:
    return {
        "kind": "captions",
        **settings.model_dump(include={"predict", "mask", "label_smoothing", "tags", "tag_pieces"}),
    }


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    import torch

    from vbert.model.heads import CaptioningModel
    from vbert.training.sampler import derive

    if head["tags"] and (problem := _too_long(head["max_text"], head["tag_pieces"], config.max_positions)):
        raise UserError(f"max_text: {problem}")
    return CaptioningModel(config, torch.Generator().manual_seed(derive(seed, "caption head")))


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    model.encoder.load_state_dict(source.encoder.state_dict())
    if hasattr(source, "masked_language"):
        model.masked_language.load_state_dict(source.masked_language.state_dict())


def evaluated(table: pa.Table) -> pa.Table:
    """The first caption of each image, whose `given` holds all of them."""
    import pyarrow as pa

    first: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    columns: Iterable[Any] = table.select(["image_ids", "text"]).to_pydict().values()
    for i, ((image, *_), text) in enumerate(zip(*columns, strict=True)):
        first.setdefault(image, i)
        texts.setdefault(image, []).append(text)
    place = table.schema.get_field_index("given")
    chosen = table.take(pa.array(list(first.values()), pa.int64()))
    return chosen.set_column(place, table.schema.field(place), pa.array(texts.values(), table.schema.field(place).type))


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    """`[CLS] caption [SEP]`, causal, then `tags [SEP]`. predict mask: a share of the pieces behind [CLS] is masked,
    [SEP] too, or nothing would learn to end: one at least, three at most, 80 % as [MASK], 10 % as another, 10 % as they
    are. next: each piece is to give the one behind it."""
    import numpy as np

    from vbert.objectives.batches import Input, random_piece, sentence

    row = rows.row(i)
    text = sentence(encoder, [(row["text"], "")], head["max_text"])
    its, count = text.ids, len(text.ids)
    if head["predict"] == "next":
        at, pieces = list(range(count - 1)), its[1:]
    elif draw is None:
        at, pieces = [], []
    else:
        masked = min(max(round(head["mask"] * (count - 1)), 1), MOST_MASKED, count - 1)
        at = sorted((1 + draw.permutation(count - 1)[:masked]).tolist())
        pieces = [its[place] for place in at]
        for place, (kind, which) in zip(at, draw.random((len(at), 2)).tolist(), strict=True):
            if kind < 0.8:
                its[place] = encoder.mask
            elif kind < 0.9:
                its[place] = random_piece(encoder, which)
    if head["tags"]:
        _append(text, _tags(rows, row["image_ids"][0], encoder, head), head["max_text"])
    return [Input(text, row["image_ids"], at, causal=True, ragged={"pieces": np.array(pieces, np.int64)})]


def _tags(rows: ExampleRows, image_id: str, encoder: WordPieceEncoder, head: Head) -> list[int]:
    """The pieces of the detected classes, each once, the surest first, and [SEP]; none without a detected class."""
    if head["images"] == "none":
        return []
    words = " ".join(rows.shown_classes(image_id))
    return [*encoder(words).ids[: head["tag_pieces"] - 1], encoder.sep] if words else []


def _append(text: TokenizedText, tags: Sequence[int], first: int) -> None:
    """Puts tags behind the caption: segment 1, positions from `first` on, wherever the caption ends."""
    text.positions = [*range(len(text.ids)), *range(first, first + len(tags))]
    text.ids += tags
    text.types += [1] * len(tags)
    text.words += [-1] * len(tags)
    text.answer += [False] * len(tags)
    text.spans += [None] * len(tags)


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """None of their own: the pieces hang on a draw."""
    return {}


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The loss is a mean over pieces."""
    return {"loss": len(tensors["pieces"])}


def loss(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """Cross entropy of the pieces, smoothed."""
    import torch.nn.functional as F

    smoothing = head["label_smoothing"]
    return {"loss": F.cross_entropy(outputs, tensors["pieces"], reduction="sum", label_smoothing=smoothing)}


def parts(model: Any, side: ObjectiveDataset[Any], settings: CaptioningEvaluateSettings) -> None:
    """Chunks, by `predict`. Says where captions are ended earlier than asked for."""
    if settings.length > (longest := side.head["max_text"] - 2):
        log.warning(
            "evaluate.length: %d, but the model was trained on captions of %d pieces at most (max_text - 2): none "
            "grows longer",
            settings.length,
            longest,
        )


def predict(
    model: Any, side: ObjectiveDataset[Any], indices: Sequence[int], settings: CaptioningEvaluateSettings
) -> Iterator[Prediction]:
    """The best caption of each image; score: the geometric mean of its pieces' probabilities."""
    from vbert.model.beams import search

    head, encoder = side.head, side.encoder
    rules = _rules(encoder, settings, min(settings.length, head["max_text"] - 2))
    for start in range(0, len(indices), settings.batch_size):
        rows = side.rows[indices[start : start + settings.batch_size]]
        reader = CachedReader(model, side, rows)
        found = search(reader, encoder.cls, len(rows), rules)
        captions = {image: found[place] for place, image in enumerate(reader.cache.images.tolist())}
        for k, row in enumerate(rows):
            text = captions[k]
            yield {
                "example_id": row["example_id"],
                "answer": readable(encoder.text(text.pieces)),
                "score": round(math.exp(text.total / (len(text.pieces) + 1)), 6),
                "log_probability": text.total,
            }


class CachedReader:
    """The next piece's log-probabilities, see `vbert.model.beams.search`, from a cache of the images of `rows`."""

    def __init__(self, model: Any, side: ObjectiveDataset[Any], rows: Rows) -> None:
        from vbert.model.visualbert import PackedBatch

        self.model, self.head, self.mask = model, side.head, side.encoder.mask
        self.device = next(model.parameters()).device
        tags = [
            _tags(side.rows, row["image_ids"][0], side.encoder, side.head) if side.head["tags"] else [] for row in rows
        ]
        shown = [() if side.head["images"] == "none" else row["image_ids"] for row in rows]
        visuals, types = zip(*(side.visuals.of(images) for images in shown), strict=True)
        first = side.head["max_text"]
        batch = PackedBatch.of(
            tags,
            [[1] * len(one) for one in tags],
            visuals,
            types,
            positions=[range(first, first + len(t)) for t in tags],
        )
        self.cache = model.encoder.begin(batch.to(self.device))

    def __call__(self, last: Tensor, rows: Tensor | None) -> Tensor:
        import torch

        tokens = last[:, None]
        if self.head["predict"] == "mask":
            tokens = torch.cat([tokens, torch.full_like(tokens, self.mask)], 1)
        rows = None if rows is None else rows.to(self.device)
        hidden = self.model.encoder.step(self.cache, tokens.to(self.device), rows, kept=1)[:, -1]
        logits: Tensor = self.model.words(hidden, torch.arange(len(hidden), device=self.device))
        return logits.float().log_softmax(-1)


def _rules(encoder: WordPieceEncoder, settings: CaptioningEvaluateSettings, length: int) -> SearchRules:
    """No special token and none that is unused in a caption, and no continuation at its start."""
    import torch

    from vbert.model.beams import SearchRules

    unused = re.compile(r"\[unused\d+\]").fullmatch
    tokens = encoder.tokens
    return SearchRules(
        **settings.model_dump(include={"beams", "minimum", "length_penalty", "no_repeat"}),
        length=length,
        end=encoder.sep,
        allowed=torch.tensor([k not in encoder.special and not unused(token) for k, token in enumerate(tokens)]),
        starts=torch.tensor([not token.startswith("##") for token in tokens]),
    )


def readable(text: str) -> str:
    """Joined word pieces as they would be written: no blank before a comma, within a contraction or between Chinese
    characters."""
    for pattern, joined in JOINED:
        text = pattern.sub(joined, text)
    return text


def examined(
    inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
) -> list[Examined]:
    """Each word piece of the caption, beside those before it."""
    from vbert.objectives.batches import Input, sentence
    from vbert.objectives.examined import Examined

    (one,) = inputs
    tags = [piece for piece, segment in zip(one.text.ids, one.text.types, strict=True) if segment]
    whole, found = sentence(encoder, [(prediction["answer"], "")], head["max_text"]), []
    for place in range(1, len(whole.ids) - 1):
        text = whole.until(place, [encoder.mask] if head["predict"] == "mask" else [])
        at = len(text.ids) - 1
        if tags:
            _append(text, tags, head["max_text"])
        piece = encoder.tokens[whole.ids[place]]
        found.append(Examined(Input(text, one.images, (at,), causal=True), whole.ids[place], piece))
    return found


def explained(model: nn.Module, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """The log-probability of the piece."""
    logits = model(batch).float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]  # type: ignore[no-any-return]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """BLEU-1 to 4, ROUGE-L and CIDEr; of images whose content is known, how true and how full the captions are."""
    from vbert.metrics import captions
    from vbert.objectives.checked_texts import checked

    if not any(row["given"] for row in rows):
        return {}
    return captions.metrics([p["answer"] for p in predictions], [row["given"] for row in rows]) | checked(
        rows, predictions
    )


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """captions.json, COCO's results: one caption an image, an empty one where it has no regions."""
    results = [
        {"image_id": official_number(row["image_ids"][0]), "caption": p["answer"]}
        for row, p in zip(rows, predictions, strict=True)
    ]
    return {"captions.json": json.dumps(results, ensure_ascii=False).encode()}


def frozen(head: Head, settings: CaptioningSettings) -> Sequence[str]:
    return ("encoder.pooler.",)
