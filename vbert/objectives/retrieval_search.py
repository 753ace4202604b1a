"""Search among the images of a folder of region features: by a text, or for images that are like one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbert.artifacts.steps.artifact import files_of
from vbert.errors import BuildError, UnknownImage, UserError
from vbert.model.retrieval import PairScorer, RetrievalModel, TextTokens
from vbert.objectives.batches import RegionInputs, sentence
from vbert.objectives.retrieval_index import KeptIndex, image_index
from vbert.objectives.trained import Model
from vbert.regions.contract import check
from vbert.regions.shards import Regions, Shards

RERANK = 128  # images of a text that are scored by the cross-encoder
MATTERED = 5  # regions of an image that are told, at most


@dataclass(frozen=True)
class FoundImage:
    """similarity: cosine of the dual encoder's vectors. score: match minus mismatch logit of the cross-encoder, None
    where the image is behind those that it has scored."""

    image_id: str
    similarity: float
    score: float | None = None


@dataclass(frozen=True)
class Mattered:
    """A region, by its number in the image's features; drop: by how much the image's score (where it has none, its
    similarity) is lower when this region alone is left out."""

    region: int
    drop: float


@dataclass
class TextQuery:
    """A text as the model reads it; notes: sentences on what of it is not read."""

    text: str
    tokens: TextTokens
    notes: list[str] = field(default_factory=list)


class ImageSearch:
    """A retrieval model over a folder of region features; its index is made, or found, at once."""

    def __init__(
        self,
        model: Model,
        shards: Shards,
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Raises UserError for a model that can't search, or features that aren't those that it was trained on."""
        head = model.head()
        _refuse(model, head)
        check(model.contract(), shards.contract())
        if not len(shards):
            raise UserError(f"{shards.path}: the features are of no image at all")
        self.shards = shards
        network = model.load()
        assert isinstance(network, RetrievalModel)
        self.network = network.to(device)
        self.encoder = model.vocabulary().encoder()
        self.longest = int(head["max_text"])
        self.visuals = RegionInputs(shards, model.config().box_input)
        self.kept: KeptIndex = image_index(model, self.network, self.encoder, shards, self.visuals, progress)
        self.index = self.kept.index

    @classmethod
    def open(
        cls,
        model: Path | str,
        features: Path | str,
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> ImageSearch:
        """By their folders. Raises UserError where these are none of a model, or of features."""
        described = "the folder of a trained model: `vbert path RECIPE 'finetune[ENTRY]'` names one"
        _refuse_folder(Path(model), "head.json", described)
        made = "a folder of region features: `vbert preprocess FOLDER --detector NAME --out DIR` makes one"
        _refuse_folder(Path(features), "offsets.parquet", made)
        return cls(Model.at(Path(model)), Shards.at(Path(features)), device, progress)

    def query(self, text: str) -> TextQuery:
        """Raises UserError for a text of which the model reads nothing."""
        pieces = self.encoder(text)
        if not pieces.ids:
            raise UserError('the text is empty: say what the images should show, as in `vbert search "a dog" …`')
        known = [span for piece, span in zip(pieces.ids, pieces.spans, strict=True) if piece != self.encoder.unk]
        if not known:
            raise UserError(f"{text!r:.80}: the model's vocabulary has none of this; use words of its training texts")
        one = sentence(self.encoder, [(text, "")], self.longest)
        query = TextQuery(text, (one.ids, one.types))
        if len(known) < len(pieces.ids):
            every = zip(pieces.ids, pieces.spans, strict=True)
            unknown = dict.fromkeys(text[a:b] for piece, (a, b) in every if piece == self.encoder.unk)
            query.notes.append(f"not in the model's vocabulary: {', '.join(map(repr, unknown))}")
        read = self.longest - 2
        if read < len(pieces.ids):
            end = pieces.spans[read - 1][1]
            query.notes.append(
                f"the text is cut to the {read} word pieces that the model reads, behind {text[:end][-30:]!r}"
            )
        return query

    def by_text(self, text: str | TextQuery, top: int = 10, rerank: int = RERANK) -> list[FoundImage]:
        """The best images of a text: those most similar by the dual encoder, the first `rerank` of them in the order of
        the cross-encoder's scores. Of equal ones the first by id comes first."""
        query = self.query(text) if isinstance(text, str) else text
        vector = self._scorer([query.tokens]).text_vectors()[0]
        similar = self.index.vectors @ vector
        order = _best(similar, max(top, rerank))
        if not (listed := np.sort(order[:rerank])).size:
            return [self._found(i, similar) for i in order[:top].tolist()]
        scores = self._scorer([query.tokens], [self.visuals(self.index.image_ids[i]) for i in listed]).scores(
            np.zeros(len(listed), np.int64), np.arange(len(listed))
        )
        ranked = np.argsort(-scores, kind="stable")
        found = [self._found(int(listed[k]), similar, float(scores[k])) for k in ranked[:top]]
        return found + [self._found(i, similar) for i in order[len(listed) : top].tolist()]

    def like(self, image_id: str, top: int = 10) -> list[FoundImage]:
        """The images most similar to one of the folder, by the dual encoder's vectors: the cross-encoder compares no
        two images. Raises UserError for an image that isn't there."""
        try:
            self.shards.read(image_id)
        except UnknownImage as error:
            raise UserError(str(error)) from None
        own = self.index.image_ids.index(image_id)
        similar = self.index.vectors @ self.index.vectors[own]
        order = _best(similar, top + 1)
        return [self._found(i, similar) for i in order.tolist() if i != own][:top]

    def mattered(self, found: FoundImage, query: TextQuery | str) -> list[Mattered]:
        """The regions without which the image would be found less well, the largest drop first: measured by leaving
        out each alone. query: the text, or the id of the image that it is like."""
        whole = self.visuals(found.image_id)
        without = [np.delete(whole, k, axis=0) for k in range(len(whole))]
        variants = [whole, *without]
        if isinstance(query, TextQuery) and found.score is not None:
            places = np.zeros(len(variants), np.int64), np.arange(len(variants))
            values = self._scorer([query.tokens], variants).scores(*places)
        else:
            vectors = self._scorer([], variants).image_vectors()
            if isinstance(query, TextQuery):
                values = vectors @ self._scorer([query.tokens]).text_vectors()[0]
            else:
                values = vectors @ self.index.vectors[self.index.image_ids.index(query)]
        drops = values[0] - values[1:]
        order = np.argsort(-drops, kind="stable")[:MATTERED]
        return [Mattered(int(k), float(drops[k])) for k in order if drops[k] > 0]

    def regions(self, image_id: str) -> Regions:
        return self.shards.read(image_id)

    def _scorer(self, texts: Sequence[TextTokens], visuals: Sequence[NDArray[np.float32]] = ()) -> PairScorer:
        return PairScorer(self.network, texts, [self.encoder.cls, self.encoder.sep], visuals)

    def _found(self, image: int, similar: NDArray[np.float32], score: float | None = None) -> FoundImage:
        return FoundImage(self.index.image_ids[image], float(similar[image]), score)


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the `count` highest, of equal ones the first."""
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)


def _refuse(model: Model, head: dict[str, Any]) -> None:
    """Raises UserError for a model without a dual encoder, or of a control."""
    if head.get("objective") != "retrieval":
        raise UserError(
            f"{model.path}: a model of the objective {head.get('objective')!r}, which can't search; give one of the "
            "objective 'retrieval'"
        )
    if not head["dual"]:
        raise UserError(
            f"{model.path}: the model has no dual encoder (dual: 0), which finds images; train one with dual: 256"
        )
    if head["images"] != "own" or head.get("text", "own") != "own":
        raise UserError(f"{model.path}: a control that was trained without looking; give the entry that it is beside")


def _refuse_folder(folder: Path, holds: str, described: str) -> None:
    """Raises UserError for a folder without the file."""
    try:
        if (files_of(folder) / holds).is_file():
            return
    except OSError as error:
        raise BuildError(f"{folder}: {error.strerror}") from None
    problem = f"there is no {holds} in it" if folder.is_dir() else "no such folder"
    raise UserError(f"{folder}: {problem}; give {described}")
