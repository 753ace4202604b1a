"""Attention of a trained model: of the token that its answer is read from, over words and regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vbert.errors import BuildError, UserError, nearest
from vbert.report.predictions import ShownPrediction
from vbert.report.results import DownstreamRun
from vbert.report.thumbnails import DrawnBox, Thumbnail, ThumbnailAlbum, boxed, named

LAYERS = 3  # drawn of each example, from the first to the last
LISTED = 5  # regions named below a picture


@dataclass(frozen=True)
class WordAttention:
    """share: of all attention of the layer; strength: the share divided by the largest of any word in the drawn
    layers."""

    piece: str
    share: float
    strength: float


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer, the mean over its heads: words, and pictures whose boxes are shaded by attention."""

    layer: int
    on_regions: float  # share of all attention that falls on regions
    words: list[WordAttention]
    pictures: list[Thumbnail]
    first: list[DrawnBox]  # the regions with the most attention, the first the most


@dataclass(frozen=True)
class ExampleAttention:
    shown: ShownPrediction
    layers: list[LayerAttention]


def attention_examples(
    run: DownstreamRun, album: ThumbnailAlbum, chosen: Sequence[ShownPrediction]
) -> list[ExampleAttention]:
    """The attention of `run`'s model on the `chosen` examples, on the CPU, in eval mode.

    Raises BuildError or UserError where the model can't be run on them.
    """
    from vbert.objectives import OBJECTIVES, load
    from vbert.objectives.batches import ExampleRows
    from vbert.objectives.dataset import ObjectiveDataset

    entry = run.evaluated
    head = entry.model.head()
    if run.objective not in OBJECTIVES:
        raise UserError(f"no objective {run.objective!r}; {nearest(run.objective, OBJECTIVES)}")
    objective = load(run.objective)
    model: Any = entry.model.load()
    encoder = entry.model.vocabulary().encoder()
    rows = ExampleRows(
        entry.examples,
        entry.shards,
        ["train", "val", "test"],
        objective.KINDS,
        types=head.get("types"),
        text=head.get("text", "own"),
    )
    places = {example_id: i for i, example_id in enumerate(rows.column("example_id"))}
    chosen = [one for one in chosen if one.example_id in places]
    if not chosen:
        raise BuildError("none of the examples has regions")
    examined = ObjectiveDataset(objective, head, encoder, rows, entry.shards, entry.model.config().box_input)
    examples = []
    for one in chosen:
        i = places[one.example_id]
        batch, _ = examined.batch([(i, None)])
        chosen_input = objective.inputs(examined.rows, i, encoder, head, None)[one.input]
        ids, place = chosen_input.text.ids, next(iter(chosen_input.at), 0)
        maps = model.encoder.trace(batch.packed)[1][one.input]
        weights = maps.mean(1)[:, place].double()  # [layers, tokens]: mean over heads, of the token that is read
        drawn = _spread(len(weights))
        parts = weights[drawn, : len(ids)], weights[drawn, len(ids) :]
        peaks = [float(part.max()) if part.numel() else 0.0 for part in parts]
        pieces = [encoder.tokens[i] for i in ids]
        layers = [_layer_attention(run, album, one, pieces, weights[layer].tolist(), layer, peaks) for layer in drawn]
        examples.append(ExampleAttention(one, layers))
    return examples


def _spread(layers: int) -> list[int]:
    """At most LAYERS of them, evenly from the first to the last."""
    if layers <= LAYERS:
        return list(range(layers))
    return [round(i * (layers - 1) / (LAYERS - 1)) for i in range(LAYERS)]


def _layer_attention(
    run: DownstreamRun,
    album: ThumbnailAlbum,
    shown: ShownPrediction,
    pieces: Sequence[str],
    weights: Sequence[float],
    layer: int,
    peaks: Sequence[float],
) -> LayerAttention:
    """weights: attention of each token, words before regions; peaks: the largest of words and of regions in the drawn
    layers."""
    on_text, on_regions = weights[: len(pieces)], weights[len(pieces) :]
    words = [WordAttention(piece, w, w / (peaks[0] or 1.0)) for piece, w in zip(pieces, on_text, strict=True)]
    pictures: list[Thumbnail] = []
    every: list[DrawnBox] = []
    at = 0
    for image_id in shown.image_ids:
        regions = run.evaluated.shards.read(image_id)
        part, at = on_regions[at : at + len(regions.features)], at + len(regions.features)
        names = [named(kind, names) for kind, names in zip(regions.classes, regions.attributes, strict=True)]
        corners = [] if regions.boxes is None else regions.boxes.astype(float).tolist()
        boxes = [
            replace(box, share=weight, strength=weight / (peaks[1] or 1.0))
            for box, weight in zip(boxed(corners, names[: len(corners)], [0] * len(corners)), part, strict=False)
        ]
        every += boxes
        pictures.append(album.picture(run.evaluated.images, image_id).over(boxes))
    every.sort(key=lambda box: -box.share)
    return LayerAttention(layer + 1, sum(on_regions), words, pictures, every[:LISTED])
