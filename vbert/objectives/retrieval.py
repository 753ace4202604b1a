"""Image–text retrieval: the image of a text, and the texts of an image, among all of a split.

A cross-encoder scores pairs by the matching head, and the same encoder, reading either side alone, finds the pairs that
are worth it (a dual encoder). Trained on a right pair beside wrong ones; evaluated on all pairs, in blocks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vbert.artifacts.steps.settings import Wiring
from vbert.data.names import official_number
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
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vbert.artifacts.steps.stage import Figures
    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.retrieval import RetrievalModel, RetrievalOutputs
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.examined import Examined
    from vbert.objectives.retrieval_blocks import PairBlocks
    from vbert.objectives.retrieval_data import RetrievalDataset
    from vbert.objectives.sections import Section
    from vbert.training.ranks import Ranks

log = logging.getLogger("vbert.objectives")
KINDS = ("caption",)
SIDES = ("text_to_image", "image_to_text")
SELECTS = "text_to_image_r1"
WHILE_TRAINING = 32  # pairs a query that are scored in validation


class RetrievalEvaluateSettings(EvaluateSettings):
    """rerank: of each text's images and each image's texts, so many that are the dual encoder's best are ranked by the
    cross-encoder, the others behind them in the dual encoder's order; all: every pair is scored, a hundred times the
    work on COCO's 5,000 images."""

    rerank: int | Literal["all"] = Field(128, description="pairs a query that are scored; all: every pair")
    folds: int = Field(
        0, ge=0, description="so many consecutive parts in file order, whose figures are averaged (COCO 1K: 5); 0: none"
    )

    @model_validator(mode="after")
    def _some(self) -> RetrievalEvaluateSettings:
        if isinstance(self.rerank, int) and self.rerank < 1:
            raise ValueError("rerank: 1 pair a query or more, or all")
        return self

    def while_training(self) -> RetrievalEvaluateSettings:
        """A short list: all pairs of a thousand examples would take longer than training."""
        return RetrievalEvaluateSettings(rerank=min(WHILE_TRAINING, self.rerank) if self.rerank != "all" else "all")


class RetrievalSettings(DownstreamSettings):
    """Of examples of kind `caption`, one text of one image each; `types` leaves out texts that describe no image.

    negatives: random, drawn over the training examples; batch, in proportion to the dual encoder's similarity (ALBEF),
    among the part of the batch that a process computes at once, as are those that the dual encoder itself learns to
    tell apart; mined, the highest scores among `candidates` random ones, wrong images and wrong texts in turn (UNITER:
    31 of 399). Another text of an image is never one, nor is a text that the image has too.

    The loss is the cross entropy of the right pair in its group, or the mean over the wrong ones of what their
    probability to match lacks to be `margin` below the right one's (UNITER). Beside random wrong ones the first makes
    the score a measure of how much likelier a text is beside this image than beside any: one that is true of few images
    comes before one that is true of many.
    """

    loss: Literal["cross_entropy", "margin"] = Field("cross_entropy", description="over a right pair and wrong ones")
    margin: float = Field(0.2, gt=0, lt=1, description="of `loss: margin`")
    negatives: Literal["random", "batch", "mined"] = Field("random", description="wrong pairs beside a right one")
    wrong: int = Field(1, ge=1, description="wrong images, and as many wrong texts, of random and batch")
    mine_every: int = Field(200, ge=1, description="steps between two searches for mined ones")
    candidates: int = Field(399, ge=1, description="that are scored for a sample's mined ones")
    hard: int = Field(31, ge=1, description="of them that are trained on")
    dual: int = Field(256, ge=0, description="numbers of a vector of the dual encoder; 0: no dual encoder")
    validation_examples: int = Field(500, ge=0, description="held-out examples looked at while training")
    evaluate: Annotated[RetrievalEvaluateSettings, Wiring] = RetrievalEvaluateSettings()

    @model_validator(mode="after")
    def _dual(self) -> RetrievalSettings:
        if not self.dual and self.negatives == "batch":
            raise ValueError("negatives: batch are drawn by the dual encoder; dual is 0, so set it to 256")
        if not self.dual and self.evaluate.rerank != "all":
            raise ValueError("dual: 0 has no short list to rank; set evaluate.rerank to all, or dual to 256")
        if self.negatives == "mined" and self.hard > self.candidates:
            raise ValueError(f"hard: {self.hard} of {self.candidates} candidates; lower it or raise candidates")
        return self

    def unfit(self, part: int, positions: int | None) -> tuple[str, str] | None:
        """A part of one pair has no wrong one: the loss would be 0 at any weights."""
        if part > 1 or not self.steps or not (self.dual or self.negatives == "batch"):
            return None
        drawn = "negatives: batch are drawn" if self.negatives == "batch" else "the dual encoder learns"
        other = "" if self.negatives == "batch" else "; or write dual: 0 and evaluate.rerank: all"
        parts = "" if self.batch_size == 1 else f"{self.batch_size} over processes × accumulate leaves one pair, and "
        return "batch_size", f"{parts}{drawn} from the other pairs that a process computes at once: raise it{other}"


def labelled(row: Row) -> bool:
    return True


def head(rows: Iterable[Row], settings: RetrievalSettings) -> Head:
    """What training draws and computes; a trained model needs `dual` alone."""
    names = ["loss", "negatives", "dual"]
    names += ["margin"] if settings.loss == "margin" else []
    names += ["mine_every", "candidates", "hard"] if settings.negatives == "mined" else ["wrong"]
    return {"kind": "retrieval", **{name: getattr(settings, name) for name in names}}


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    import torch

    from vbert.model.retrieval import RetrievalModel
    from vbert.training.sampler import derive

    drawn = torch.Generator().manual_seed(derive(seed, "retrieval heads"))
    wrong = head["wrong"] if head["negatives"] == "batch" else 0
    return RetrievalModel(config, head["dual"], wrong, drawn)


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    """The encoder and the matching head; the dual encoder's projections too, where they are as large."""
    model.encoder.load_state_dict(source.encoder.state_dict())
    if hasattr(source, "matching"):
        model.matching.load_state_dict(source.matching.state_dict())
    if getattr(source, "dual", None) is not None and source_head.get("dual") == head["dual"]:
        model.dual.load_state_dict(source.dual.state_dict())


def dataset(*arguments: Any) -> RetrievalDataset:
    from vbert.objectives.retrieval_data import RetrievalDataset

    return RetrievalDataset(*arguments)


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    """The right pair, whose attention the report shows."""
    from vbert.objectives.batches import Input, sentence

    row = rows.row(i)
    return [Input(sentence(encoder, [(row["text"], "")], head["max_text"]), row["image_ids"][:1])]


def before(train: ExampleRows, held_out: ExampleRows, head: Head, settings: RetrievalSettings) -> Figures:
    """Says where fewer wrong pairs are there than are asked for."""
    if settings.steps and settings.negatives == "mined" and settings.candidates >= len(train):
        log.warning(
            "candidates: %d, but there are %d training examples: all wrong ones among them are scored, each once",
            settings.candidates,
            len(train),
        )
    return {}


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """None: what is right of a pair, its place in the batch says."""
    return {}


def mine(
    model: RetrievalModel, side: RetrievalDataset, samples: Sequence[tuple[int, int]], ranks: Ranks
) -> dict[str, Tensor]:
    from vbert.objectives.retrieval_mining import mined

    return {"rows": mined(model, side, samples, ranks)}


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Groups, or wrong pairs of `loss: margin`; and queries of the dual encoder."""
    examples = len(tensors["example"])
    return {"matching": examples * int(tensors["terms"]), "dual": 2 * examples}


def loss(outputs: RetrievalOutputs, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """matching: of the groups; dual: InfoNCE both ways (ALBEF's ITC without momentum), with pairs that are alike left
    out."""
    import torch
    import torch.nn.functional as F

    scores, valid = outputs.scores, outputs.valid
    target = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    if head["loss"] == "margin":
        likely = scores.sigmoid()
        lacks = F.relu(head["margin"] + likely[:, 1:] - likely[:, :1])
        losses = {"matching": (lacks * valid[:, 1:]).sum()}
    else:
        losses = {"matching": F.cross_entropy(scores.masked_fill(~valid, -torch.inf), target, reduction="sum")}
    if outputs.similarities is not None:
        own = torch.arange(len(scores), device=scores.device)
        barred = tensors["alike"] & (own != own[:, None])
        known = outputs.similarities.masked_fill(barred, -torch.inf)
        losses["dual"] = F.cross_entropy(known, own, reduction="sum") + F.cross_entropy(known.mT, own, reduction="sum")
    return losses


def parts(model: RetrievalModel, side: RetrievalDataset, settings: EvaluateSettings) -> PairBlocks:
    """The pairs of all texts and images of the split."""
    from vbert.objectives.retrieval_blocks import PairBlocks

    return PairBlocks(model, side, range(len(side.rows)), settings)


def joined(files: Mapping[str, Path], rows: ExampleRows) -> list[Prediction]:
    from vbert.objectives.retrieval_blocks import read_blocks
    from vbert.objectives.retrieval_ranks import predictions

    plan, blocks = read_blocks(files)
    return predictions(plan, blocks, rows.column("example_id"), _names(rows.column("image_ids")))


def predict(
    model: RetrievalModel, side: RetrievalDataset, indices: Sequence[int], settings: EvaluateSettings
) -> Iterator[Prediction]:
    """Among the texts and images of these examples alone, in memory."""
    from vbert.objectives.retrieval_blocks import PairBlocks, block_rows
    from vbert.objectives.retrieval_ranks import predictions

    of = PairBlocks(model, side, indices, settings)
    made = [block_rows(of.plan, k, of.make(k)) for k in range(len(of))]
    ids, images = [side.ids[i] for i in indices], _names([[side.images[i]] for i in indices])
    yield from predictions(of.plan, lambda: iter(made), ids, images)


def _names(image_ids: Sequence[Sequence[str]]) -> list[str]:
    """The images of examples, each once, in their order."""
    return list(dict.fromkeys(its[0] for its in image_ids))


def examined(
    inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
) -> list[Examined]:
    """The pair of the text and its own image."""
    from vbert.model.heads import MATCH
    from vbert.objectives.examined import Examined

    return [Examined(inputs[0], MATCH)]


def explained(model: Any, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """Match minus mismatch logit of the pair, or the other way round."""
    from vbert.objectives.examined import log_odds

    return log_odds(model.matching(model.encoder.pool(model.encoder(batch), batch)), targets)


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    """Recall of the image by text (text_to_image_r1, …), of a text by image, median ranks and rsum; the share of
    queries, of both sides, that are tied. text_to_image_r1 also by question type, and of `unique` texts. `…/folds`:
    within each fold, averaged."""
    from vbert.metrics import retrieval as figures
    from vbert.metrics.metric import ExampleScores, PartScores, by_part

    if not any("text_to_image" in p or "quarantined" in p for p in predictions):
        return {}
    texts = {i: p["text_to_image"]["rank"] if "text_to_image" in p else None for i, p in enumerate(predictions)}
    first = {row["image_ids"][0]: i for i, row in reversed(list(enumerate(rows)))}
    images = {
        i: predictions[i]["image_to_text"]["rank"] if "image_to_text" in predictions[i] else None
        for i in sorted(first.values())
    }
    found = figures.metrics(texts, images, len(rows))
    main = found["text_to_image_r1"]
    assert isinstance(main, ExampleScores)
    unique = ["unique" if row["unique"] else None for row in rows]
    level = [[float(p[side]["tied"] > 0) for side in SIDES if side in p] for p in predictions]
    found["tied"] = PartScores(level)
    if many := sum(map(sum, level)):
        log.info("%d queries have a wrong candidate that is level with the truth, and counts as better", many)
    found |= by_part(
        "text_to_image_r1", main.scores, question_type=[row["question_type"] for row in rows], unique=unique
    )
    return found | _within_folds(predictions)


def _within_folds(predictions: Predictions) -> dict[str, Metric]:
    """The figures of each fold, averaged over folds; empty without these."""
    from vbert.metrics import retrieval as figures

    sides: list[dict[int, tuple[int, int]]] = [{}, {}]
    for side, places in zip(SIDES, sides, strict=True):
        for i, p in enumerate(predictions):
            if fold := p.get(side, {}).get("fold"):
                places[i] = fold["number"], fold["rank"]
    numbers = sorted({number for number, _ in sides[0].values()})
    found: dict[str, Metric] = {}
    each = []
    for number in numbers:
        texts, images = ({i: r for i, (its, r) in places.items() if its == number} for places in sides)
        each.append(figures.metrics(texts, images, len(predictions)))
    for name in each[0] if each else ():
        found[f"{name}/folds"] = _mean([fold[name] for fold in each], len(predictions))
    return found


def _mean(each: Sequence[Metric], examples: int) -> Metric:
    """The mean of the folds' values of a metric."""
    from vbert.metrics.means import mean
    from vbert.metrics.metric import SetMetric

    def of(times: NDArray[np.int64]) -> float | None:
        values = [_counted(metric, times) for metric in each]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None

    return SetMetric(of, range(examples))


def _counted(metric: Metric, times: NDArray[np.int64]) -> float | None:
    """A metric of examples that count several times."""
    from vbert.metrics.metric import ExampleScores, SetMetric

    if isinstance(metric, SetMetric):
        return metric.of(times[list(metric.examples)])
    assert isinstance(metric, ExampleScores)
    counted = metric.counted()
    shares = times[counted]
    if not shares.sum():
        return None
    return float(
        sum(n * float(metric.scores[i] or 0) for i, n in zip(counted, shares.tolist(), strict=True)) / shares.sum()
    )


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    """rankings.jsonl: `{"text_id", "images": [best first]}` and `{"image_id", "texts": [best first]}`, a line a query,
    by official ids: of a text the last part of its example's, of an image the number at the end of its file's name."""
    lines: list[dict[str, Any]] = []
    for row, p in zip(rows, predictions, strict=True):
        if "text_to_image" in p:
            images = [official_number(name) for name in p["text_to_image"]["top"]]
            lines.append({"text_id": official_text(row["example_id"]), "images": images})
        if "image_to_text" in p:
            texts = [official_text(name) for name in p["image_to_text"]["top"]]
            lines.append({"image_id": official_number(row["image_ids"][0]), "texts": texts})
    return {"rankings.jsonl": "".join(f"{json.dumps(line)}\n" for line in lines).encode()}


def sections(rows: Rows, predictions: Predictions, head: Head) -> list[Section]:
    """The recalls that shorter lists would give; their pairs are at most so many, as some stand on two lists."""
    from vbert.objectives.sections import WorkTable

    sides = [[p[side] for p in predictions if side in p] for side in SIDES]
    if not all(sides):
        return []
    (captions, images), every = map(len, sides), len({row["text"] for row in rows}) * len(sides[1])
    lists: list[tuple[str, int, list[list[int]]]] = []
    for size in sides[0][0].get("shorter", {}):
        if all(size in one.get("shorter", {}) for side in sides for one in side):
            ranks = [[one["shorter"][size] for one in side] for side in sides]
            lists.append((f"the best {size}", int(size) * (captions + images), ranks))
    if (longest := sides[1][0]["among"]) == captions:
        lists.append(("all", every, [[one["rank"] for one in side] for side in sides]))
    elif f"the best {longest}" not in [what for what, _, _ in lists]:
        ranks = [[one["rank"] for one in side] for side in sides]
        lists.append((f"the best {longest}", longest * (captions + images), ranks))
    table = [
        (what, min(pairs, every), [sum(rank <= k for rank in side) / len(side) for side in ranks for k in (1, 5, 10)])
        for what, pairs, ranks in lists
    ]
    names = [f"{side} R@{k}" for side in ("text → image", "image → text") for k in (1, 5, 10)]
    title = "What the cross-encoder ranks of each query, by the dual encoder's order, and what is found"
    return [WorkTable(title, "ranked", "pairs", names, table, "pairs_per_second")]


def official_text(example_id: str) -> int | str:
    """`test/00012/00000391895` → 391895; what is no number stays whole."""
    last = example_id.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() and "/caption/" not in example_id else example_id


def frozen(head: Head, settings: DownstreamSettings) -> Sequence[str]:
    return () if settings.train_pooler else ("encoder.pooler.",)
