"""Fine-tuning and prediction for any objective: rows → batches → the objective's model and loss."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Figures, Job, Stopped
from vbert.artifacts.store import durable
from vbert.data.examples import Examples
from vbert.device import device_of, of_rank
from vbert.errors import UserError
from vbert.model.config import text_limit
from vbert.model.start import Initialization
from vbert.model.trained import Model, write_model
from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import WordPieceEncoder
from vbert.objectives import DownstreamSettings, EvaluateSettings, Objective, load
from vbert.objectives.batches import Batch, ExampleRows, RegionInputs, image_groups, statistics
from vbert.regions.contract import check
from vbert.regions.shards import Shards
from vbert.training.loop import run_training
from vbert.training.ranks import Ranks
from vbert.training.sampler import derive

CHUNK = 2048  # examples in one file of predictions


class ObjectiveDataset:
    """Rows of examples as an objective's batches."""

    def __init__(
        self,
        objective: Objective,
        head: dict[str, Any],
        encoder: WordPieceEncoder,
        rows: ExampleRows,
        shards: Shards,
        box_input: str,
    ) -> None:
        self.objective, self.head, self.encoder, self.rows = objective, head, encoder, rows
        self.visuals = RegionInputs(shards, box_input, rows.replacements(head["images"]))

    def batch(self, indices: list[int]) -> tuple[Batch, list[dict[str, Any]]]:
        rows = self.rows[indices]
        texts = [self.objective.texts(row, self.encoder, self.head) for row in rows]
        visuals, visual_types = zip(*(self.visuals.of(row["image_ids"]) for row in rows), strict=True)
        packed = PackedBatch.of([ids for ids, _, _ in texts], [types for _, types, _ in texts], visuals, visual_types)
        at = packed.starts() + torch.tensor([place for _, _, place in texts])
        return Batch(packed, {"at": at, **self.objective.targets(rows, self.head)}), rows

    def outputs(self, model: nn.Module, indices: list[int], size: int) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """The model's outputs for the examples, `size` at once, without gradients."""
        device = next(model.parameters()).device
        with torch.no_grad():
            for start in range(0, len(indices), size):
                batch, rows = self.batch(indices[start : start + size])
                batch = batch.to(device)
                yield model(batch.packed, batch.tensors["at"]), rows


class Finetuning:
    """Fine-tuning for a downstream task, as a `Trainable` of the training loop."""

    def __init__(
        self, model: nn.Module, train: ObjectiveDataset, held_out: ObjectiveDataset, settings: DownstreamSettings
    ) -> None:
        self.model, self.train, self.held_out, self.settings = model, train, held_out, settings
        self.weights: dict[str, float] = {}
        ids = held_out.rows.column("example_id")
        chosen = sorted(range(len(ids)), key=lambda i: derive("validation", ids[i]))
        self.chosen = sorted(chosen[: settings.validation_examples])
        pooled = train.head.get("answer_at") != "mask"
        for name, parameter in model.named_parameters():
            if name.startswith("encoder.pooler."):  # DDP would wait for parameters that no loss reaches
                parameter.requires_grad_(pooled and settings.train_pooler)

    def size(self) -> int:
        return len(self.train.rows)

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        return self.train.batch([i for i, _ in items])[0]

    def counts(self, batch: Batch) -> dict[str, int]:
        return self.train.objective.counts(batch.tensors)

    def loss(self, batch: Batch, model: nn.Module) -> dict[str, Tensor]:
        return self.train.objective.loss(model(batch.packed, batch.tensors["at"]), batch.tensors, self.train.head)

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        if ranks.rank:
            return None
        objective, head = self.held_out.objective, self.held_out.head
        predictions, validated = [], []
        for outputs, rows in self.held_out.outputs(self.model, self.chosen, 256):
            predictions += objective.decode(outputs, rows, head)
            validated += rows
        figures = {}
        for name, each in objective.scores(validated, predictions).items():
            if values := [score for score in each if score is not None]:
                figures[f"validation/{name}"] = math.fsum(values) / len(values)
        return figures or None


def run_finetune(
    job: Job,
    examples: Examples,
    shards: Shards,
    start: Model | Initialization,
    plugin: Plugin,
    settings: DownstreamSettings,
    numerics: Numerics,
    seed: int,
) -> Figures:
    """Trains on the split `train`, validates on `val`, writes a `Model`."""
    torch.set_num_threads(numerics.threads)
    objective = load(plugin.name)
    train = ExampleRows(examples, shards, ["train"], objective.KINDS, settings.share, seed)
    held_out = ExampleRows(examples, shards, ["val"], objective.KINDS)
    head = {**_head(objective, train, start, settings), "objective": plugin.name, "images": settings.images}
    model, vocabulary, contract = _model(objective, head, train, start, shards, seed)
    head["max_text"] = text_limit(head["max_text"], model.encoder.config.max_positions)
    encoder = vocabulary.encoder()
    box_input = model.encoder.config.box_input
    training = ObjectiveDataset(objective, head, encoder, train, shards, box_input)
    validation = ObjectiveDataset(objective, head, encoder, held_out, shards, box_input)
    if isinstance(start, Initialization) and start.model.standardise:
        used = [image for images in train.column("image_ids") for image in images]
        model.encoder.set_statistics(*statistics([(training.visuals, used)]))
    trainable = Finetuning(model, training, validation, settings)
    best = f"validation/{objective.SELECTS}" if settings.select == "best" else None
    if best and not any(map(objective.labelled, held_out[trainable.chosen])):
        raise UserError(
            f"select: best, but there are no labelled held-out examples to select by in {examples.title} (split val); "
            "write select: last"
        )
    curves = run_training(job, trainable, settings, numerics, seed, best)
    if job.rank == 0:
        config = model.encoder.config
        write_model(
            job.directory,
            model=model,
            config=config,
            vocabulary=vocabulary,
            contract=contract,
            head=head,
            curves=curves,
        )
    return {"examples": len(train), "dropped": train.dropped + held_out.dropped, **last_figures(curves)}


def _head(
    objective: Objective, train: ExampleRows, start: Model | Initialization, settings: DownstreamSettings
) -> dict[str, Any]:
    """The head's description. With 0 steps the start's head is kept; raises UserError where it has none."""
    head = {"max_text": settings.max_text}
    if not settings.steps:
        if isinstance(start, Initialization) or start.head()["kind"] == "pretraining":
            raise UserError("steps: 0 evaluates the start as it is, and it has no answer head: train 1 step or more")
        return {**head, **start.head()}
    return {**head, **objective.head(train[list(range(len(train)))], settings)}


def _model(
    objective: Objective,
    head: dict[str, Any],
    train: ExampleRows,
    start: Model | Initialization,
    shards: Shards,
    seed: int,
) -> tuple[Any, Any, Any]:
    """(model, vocabulary, contract): the start's encoder under the objective's head. Of the start's head,
    the rows of answers known to both are kept."""
    source: Any
    if isinstance(start, Initialization):
        source = start.build(shards.dim, seed)
        config, vocabulary = source.encoder.config, start.vocabulary
        contract = shards.contract().with_box_input(config.box_input)
        labels: list[str] = []
    else:
        config, vocabulary, contract = start.config(), start.vocabulary(), start.contract()
        check(contract, shards.contract())
        source, labels = start.load(), start.labels()
    model: Any = objective.model(config, head, seed)
    model.encoder.load_state_dict(source.encoder.state_dict())
    both = [k for k, label in enumerate(head["labels"]) if label in labels] if "labels" in head else []
    with torch.no_grad():
        for k in both:
            row = labels.index(head["labels"][k])
            model.answer.dense.weight[k] = source.answer.dense.weight[row]
            model.answer.dense.bias[k] = source.answer.dense.bias[row]
    return model, vocabulary, contract


def last_figures(curves: list[dict[str, float]]) -> Figures:
    """The last row's figures, for a line in a table."""
    if not curves:
        return {}
    return {
        name.removeprefix("validation/"): value for name, value in curves[-1].items() if "/" in name or name == "loss"
    }


def run_predict(
    job: Job,
    model: Model,
    examples: Examples,
    shards: Shards,
    plugin: Plugin,
    settings: EvaluateSettings,
    split: str,
    numerics: Numerics,
) -> Figures:
    """Predicts the examples of `split`; chunks already in scratch are kept, each rank makes its share."""
    torch.set_num_threads(numerics.threads)
    check(model.contract(), shards.contract())
    objective, head, network = load(plugin.name), model.head(), model.load()
    device = of_rank(device_of(job.machine.device), job.rank)
    network = network.to(device)
    rows = ExampleRows(examples, shards, [split], objective.KINDS)
    side = ObjectiveDataset(objective, head, model.vocabulary().encoder(), rows, shards, model.config().box_input)
    folder = durable.make_directories(job.scratch / "predictions")
    chunks = range(-(-len(rows) // CHUNK))
    for chunk in chunks[job.rank :: job.world]:
        target = folder / f"{chunk:06d}.jsonl"
        if not target.exists():
            indices = list(range(chunk * CHUNK, min(len(rows), (chunk + 1) * CHUNK)))
            lines = []
            with torch.autocast(device.type, torch.bfloat16, enabled=numerics.precision == "bf16"):
                for outputs, part in side.outputs(network, indices, settings.batch_size):
                    lines += [json.dumps(p, ensure_ascii=False) for p in objective.decode(outputs, part, head)]
            making = folder / f"{chunk:06d}.{job.rank}.part"
            making.unlink(missing_ok=True)
            durable.write_file(making, "".join(f"{line}\n" for line in lines).encode())
            durable.rename(making, target)
        job.progress(min(len(rows), (chunk + 1) * CHUNK), len(rows))
        if job.stopping:
            raise Stopped(f"stopped behind {min(len(rows), (chunk + 1) * CHUNK)} of {len(rows)} examples")
    return {}


def run_score(
    job: Job, examples: Examples, shards: Shards, plugin: Plugin, settings: EvaluateSettings, split: str
) -> Figures:
    """Scores the predictions in scratch and writes an `Evaluation` over all examples of the split. An example whose
    image is in quarantine counts as wrong and has an empty answer in the submission."""
    from vbert.metrics.evaluation import write_evaluation

    objective = load(plugin.name)
    table = ExampleRows(examples, shards, [split], objective.KINDS)
    rows = table.every.to_pylist()
    files = sorted((job.scratch / "predictions").glob("*.jsonl"))
    made = {p["example_id"]: p for path in files for p in map(json.loads, path.read_text("utf-8").splitlines())}
    absent = {"answer": "", "score": 0.0, "quarantined": True}
    predictions = [made.get(row["example_id"], {"example_id": row["example_id"], **absent}) for row in rows]
    scores = {
        name: [
            0.0 if score is not None and "quarantined" in p else score
            for score, p in zip(each, predictions, strict=True)
        ]
        for name, each in objective.scores(rows, predictions).items()
    }
    counts = {"examples": len(rows), "answered": len(made), "quarantined": table.dropped}
    metrics = write_evaluation(
        job.directory,
        predictions=predictions,
        scores=scores,
        groups=image_groups(table.every),
        resamples=settings.resamples,
        counts=counts,
        files=objective.submission(rows, predictions),
    )
    return {**counts, **metrics}
