"""Grounding without training for it: how often each attention head of a model looks at a right region (the analysis of
the VisualBERT paper)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Figures, Job, Stopped
from vbert.errors import UserError
from vbert.objectives.entry import Head, Rows
from vbert.objectives.grounding_protocols import ZeroShotSettings, right_of
from vbert.objectives.naming_words import KINDS, naming_words

if TYPE_CHECKING:
    from torch import Tensor

    from vbert.data.examples import Examples
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import Batch
    from vbert.objectives.trained import Model
    from vbert.regions.shards import Shards

FILE = "heads.json"
RANDOM_MODELS = 3  # models of random weights beside the model


class HeadAnalysis(Artifact):
    """heads.json: of each layer and head the share of phrases whose last piece looks most at a right region.

    >>> artifact.read()["right"][layer][head]  # doctest: +SKIP
    """

    def read(self) -> dict[str, Any]:
        """phrases: how many; right: [layers][heads]; random_region: the mean of regions drawn at random; random: by
        kind of random heads (`regions`: each looks at regions drawn at random; `weights`: queries and keys of random
        weights on the states that the layers' own heads read) the best of as many as there are heads, the best of
        `count` (a thousand), and the mean.

        kinds: by kind of word (`naming_words.KINDS`, those that there are) `words`, `right` and `random_region`, and
        `random_model`: of RANDOM_MODELS models of the same sizes with random weights the `best` head of each and the
        `mean` of all heads, both the mean over these models.
        """
        content: dict[str, Any] = json.loads(self.file(FILE).read_bytes())
        return content


def run_zero_shot(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    settings: ZeroShotSettings,
    split: str,
    numerics: Numerics,
) -> Figures:
    """Writes a `HeadAnalysis` over the phrases with boxes of `split`; phrases that are cut off, or whose image is in
    quarantine, are wrong."""
    import torch

    from vbert.device import device_of
    from vbert.model.config import text_limit
    from vbert.objectives import load
    from vbert.objectives.batches import ExampleRows
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.regions.contract import overridden

    torch.set_num_threads(numerics.threads)
    overridden(model.contract(), shards.contract(), settings.accept_contract)
    device = device_of(job.machine.device)
    encoder: Any = cast(Any, model.load()).encoder.to(device)
    config, objective = model.config(), load("grounding")
    head = {**settings.model_dump(include={"protocol", "iou", "as_original"}), "images": "own"}
    head["max_text"] = text_limit(None, config.max_positions)
    rows = ExampleRows(examples, shards, [split], objective.KINDS, types=settings.types)
    phrases = sum(bool(phrase["boxes"]) for row in rows.every.to_pylist() for phrase in row["phrases"])
    if not phrases:
        raise UserError(f"{examples.title}: no phrase of the split {split} has a box; write zero_shot: false")
    side = ObjectiveDataset(objective, head, model.vocabulary().encoder(), rows, shards, config.box_input)
    heads = config.layers * config.heads
    kinds = KindTally([encoder, *random_models(encoder, device)])
    kinds.count(rows.every.to_pylist())
    drawn = RandomHeads(config.layers, config.heads, config.hidden_size, max(settings.random, heads), device)
    right = torch.zeros(config.layers, config.heads, dtype=torch.int64)
    for start in range(0, len(rows), settings.batch_size):
        if job.stopping:
            raise Stopped(f"stopped behind {start:,} of {len(rows):,} examples; they are done again")
        stop = min(len(rows), start + settings.batch_size)
        batch, its_rows = side.batch([(i, None) for i in range(start, stop)])
        states, maps = encoder.trace(batch.packed.to(device))
        for seen in _asked(batch, its_rows, head):
            looked = maps[seen.sequence][:, :, seen.places, seen.first :].argmax(-1).cpu()  # the first of equal ones
            right += seen.right[torch.arange(len(seen.right)), looked].sum(-1)
            rows_of = batch.packed.starts()[seen.sequence]
            own = [state[rows_of : rows_of + maps[seen.sequence].shape[-1]] for state in states[:-1]]
            drawn.look([state[seen.places] for state in own], [state[seen.first :] for state in own], seen.right)
        kinds.look(batch.packed.to(device), list(_named(batch, its_rows, head, side.encoder)), maps)
        job.progress(stop, len(rows))
    shares = right.double() / phrases
    random = drawn.figures(phrases)
    content = {
        "phrases": phrases,
        "split": split,
        "right": shares.tolist(),
        "random_region": drawn.expected / phrases,
        "count": drawn.count,
        "random": random,
        "kinds": kinds.figures(),
    }
    (job.directory / FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return {"phrases": phrases, "best": float(shares.max())} | {
        f"random_{kind}": random[kind]["best_of_count"] for kind in random
    }


class Asked(NamedTuple):
    """The phrases of a sequence that have boxes and a piece: places, of their last pieces; first, where the regions
    begin; right, bool [phrases, regions]."""

    sequence: int
    places: Tensor
    first: int
    right: Tensor


def _asked(batch: Batch, rows: Rows, head: Head) -> Iterator[Asked]:
    import numpy as np
    import torch

    starts, lengths = batch.packed.starts().tolist(), batch.packed.lengths.tolist()
    at, numbers, region, place = batch.packed.at.tolist(), batch.tensors["phrases"].tolist(), 0, 0
    for b, (regions, asked) in enumerate(batch.tensors["sizes"].tolist()):
        boxes = batch.tensors["boxes"][region : region + regions].numpy()
        counted = [k for k in range(place, place + asked) if rows[b]["phrases"][numbers[k]]["boxes"]]
        if regions and counted:
            hits = [right_of(boxes, rows[b]["phrases"][numbers[k]]["boxes"], head) for k in counted]
            places = torch.tensor([at[k] - starts[b] for k in counted])
            yield Asked(b, places, lengths[b] - regions, torch.from_numpy(np.stack(hits)))
        region, place = region + regions, place + asked


class Named(NamedTuple):
    """The words of a sequence that tell of things: kinds, by their numbers, and places of their last pieces, int64
    [words]; first, where the regions begin; right, bool [words, regions]."""

    sequence: int
    kinds: Tensor
    places: Tensor
    first: int
    right: Tensor


def _named(batch: Batch, rows: Rows, head: Head, encoder: WordPieceEncoder) -> Iterator[Named]:
    import numpy as np
    import torch

    from vbert.objectives.batches import sentence

    lengths, region = batch.packed.lengths.tolist(), 0
    for b, (regions, _) in enumerate(batch.tensors["sizes"].tolist()):
        boxes = batch.tensors["boxes"][region : region + regions].numpy()
        text = sentence(encoder, [(rows[b]["text"], "")], head["max_text"])
        found = [(word, text.places(word.start, word.end)) for word in naming_words(rows[b])]
        kept = [(word, places[-1]) for word, places in found if places and regions]
        if kept:
            yield Named(
                b,
                torch.tensor([KINDS.index(word.kind) for word, _ in kept]),
                torch.tensor([place for _, place in kept]),
                lengths[b] - regions,
                torch.from_numpy(np.stack([right_of(boxes, word.boxes, head) for word, _ in kept])),
            )
        region += regions


def random_models(encoder: Any, device: Any) -> list[Any]:
    """Encoders of the same sizes, and the same statistics of the visual input, with random weights."""
    import torch

    from vbert.model.visualbert import VisualBert
    from vbert.training.sampler import derive

    made = []
    for number in range(RANDOM_MODELS):
        draw = torch.Generator().manual_seed(derive("random model", number))
        one = VisualBert(encoder.config, draw).to(device).eval()
        for name in ("feature_mean", "feature_std"):
            if (given := getattr(encoder.embeddings, name)) is not None:
                getattr(one.embeddings, name).copy_(given)
        made.append(one)
    return made


class KindTally:
    """How often the most attended region is right, by kind of word, of the heads of several encoders."""

    def __init__(self, encoders: Sequence[Any]) -> None:
        import torch

        config = encoders[0].config
        self.encoders, self.words, self.expected = encoders, dict.fromkeys(KINDS, 0), [0.0] * len(KINDS)
        self.right = torch.zeros(len(encoders), len(KINDS), config.layers, config.heads, dtype=torch.int64)

    def count(self, rows: Rows) -> None:
        """The words of all examples: those that are cut off, or of an image in quarantine, are wrong."""
        for row in rows:
            for word in naming_words(row):
                self.words[word.kind] += 1

    def look(self, packed: PackedBatch, named: Sequence[Named], maps: Sequence[Tensor]) -> None:
        """maps: the first encoder's attention in the batch."""
        import torch

        for number, encoder in enumerate(self.encoders):
            own = maps if number == 0 else encoder.trace(packed)[1]
            for seen in named:
                looked = own[seen.sequence][:, :, seen.places, seen.first :].argmax(-1).cpu()
                hits = seen.right[torch.arange(len(seen.right)), looked]  # [layers, heads, words]
                for kind in sorted(set(seen.kinds.tolist())):
                    self.right[number, kind] += hits[..., seen.kinds == kind].sum(-1)
                    if number == 0:
                        self.expected[kind] += float(seen.right[seen.kinds == kind].double().mean(1).sum())

    def figures(self) -> dict[str, Any]:
        found = {}
        for kind, name in enumerate(KINDS):
            if words := self.words[name]:
                shares = self.right[:, kind].double() / words
                best, mean = shares[1:].amax((1, 2)), shares[1:].mean((1, 2))
                found[name] = {
                    "words": words,
                    "right": shares[0].tolist(),
                    "random_region": self.expected[kind] / words,
                    "random_model": {"best": float(best.mean()), "mean": float(mean.mean())},
                }
        return found


class RandomHeads:
    """Heads that know nothing, in two kinds. `regions`: each looks at regions drawn at random. `weights`: queries and
    keys are random linear functions of the states that the layer's own heads read; they look at like things alike, so
    that the best of many is better than the best of the others."""

    def __init__(self, layers: int, heads: int, hidden_size: int, count: int, device: str = "cpu") -> None:
        import numpy as np
        import torch

        from vbert.training.sampler import derive, generator

        self.count, self.layers, self.heads = count, layers, heads
        self.each, self.size = -(-count // layers), hidden_size // heads
        self.draws, self.expected = generator("random heads"), 0.0
        self.regions = np.zeros(count, np.int64)
        self.weights = torch.zeros(layers, self.each, dtype=torch.int64)
        draw = torch.Generator().manual_seed(derive("random heads"))
        self.queries, self.keys = (
            torch.randn(layers, hidden_size, self.each * self.size, generator=draw).to(device) for _ in range(2)
        )

    def look(self, phrases: Sequence[Tensor], regions: Sequence[Tensor], right: Tensor) -> None:
        """The states that each layer reads, [phrases, H] and [regions, H]; right: bool [phrases, regions]."""
        import torch

        chance = right.double().mean(1)
        self.expected += float(chance.sum())
        self.regions += (self.draws.random((self.count, len(chance))) < chance.numpy()).sum(1)
        for layer in range(self.layers):
            query = (phrases[layer] @ self.queries[layer]).view(-1, self.each, self.size).transpose(0, 1)
            key = (regions[layer] @ self.keys[layer]).view(-1, self.each, self.size).transpose(0, 1)
            looked = (query @ key.mT).argmax(-1).cpu()  # [heads, phrases]
            self.weights[layer] += right[torch.arange(len(right)), looked].sum(-1)

    def figures(self, phrases: int) -> dict[str, dict[str, float]]:
        """Of each kind the best of as many as the model has heads, the best of all `count`, and the mean."""
        own = self.layers * self.heads
        few = {"regions": self.regions[:own], "weights": self.weights[:, : self.heads].numpy()}
        every = {"regions": self.regions, "weights": self.weights.numpy()}
        return {
            kind: {
                "best_of_heads": float(few[kind].max()) / phrases,
                "best_of_count": float(hits.max()) / phrases,
                "mean": float(hits.mean()) / phrases,
            }
            for kind, hits in every.items()
        }
