"""Fine-tuning and prediction for any objective: rows → batches → the objective's model and loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vbert.artifacts.steps.settings import Numerics, Plugin
from vbert.artifacts.steps.stage import Figures, Job, Stopped
from vbert.artifacts.store import durable
from vbert.data.answers import answers_of
from vbert.data.examples import Examples
from vbert.data.raw import RawFiles
from vbert.device import device_of, of_rank
from vbert.errors import UserError, nearest
from vbert.model.config import text_limit
from vbert.model.int8 import refuse_int8
from vbert.model.start import Initialization
from vbert.objectives import DownstreamSettings, EvaluateSettings, Objective, load, same_task
from vbert.objectives.accepted import accepted_contract, notes
from vbert.objectives.batches import Batch, ExampleRows, image_groups
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.distillation import Teacher, check_teacher, taught_head
from vbert.objectives.entry import Rows
from vbert.objectives.statistics import statistics
from vbert.objectives.trained import Model, write_model
from vbert.regions.contract import check
from vbert.regions.shards import Shards
from vbert.training.loop import run_training
from vbert.training.ranks import Ranks
from vbert.training.sampler import derive

CHUNK = 2048  # examples in one file of predictions
ABSENT = {"answer": "", "score": 0.0, "quarantined": True}  # of an example without regions


class Finetuning:
    """Fine-tuning for a downstream task, as a `Trainable` of the training loop."""

    def __init__(
        self,
        model: nn.Module,
        train: ObjectiveDataset[Objective],
        held_out: ObjectiveDataset[Objective],
        settings: DownstreamSettings,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.train, self.held_out, self.settings = model, train, held_out, settings
        self.teacher = teacher
        self.weights: dict[str, float] = teacher.weights if teacher else {}
        ids = held_out.rows.column("example_id")
        chosen = sorted(range(len(ids)), key=lambda i: derive("validation", ids[i]))
        self.chosen = sorted(chosen[: settings.validation_examples])
        frozen = tuple(train.objective.frozen(train.head, settings))
        for name, parameter in model.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)

    def size(self) -> int:
        return len(self.train.rows)

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        return self.train.batch(items)[0]

    def counts(self, batch: Batch) -> dict[str, int]:
        counts = self.train.objective.counts(batch.tensors)
        return self.teacher.counts(counts, batch) if self.teacher else counts

    @property
    def mine_every(self) -> int:
        """Of `vbert.training.loop.Mines`."""
        return int(self.train.head.get("mine_every", 0))

    def mine(self, samples: Sequence[tuple[int, int]], ranks: Ranks) -> dict[str, Tensor]:
        return self.train.objective.mine(self.model, self.train, samples, ranks)

    def use_mined(self, samples: Sequence[tuple[int, int]], mined: Mapping[str, Tensor]) -> None:
        self.train.use_mined(samples, mined)

    def loss(self, batch: Batch, model: nn.Module) -> dict[str, Tensor]:
        outputs = model(batch.packed)
        losses = self.train.objective.loss(outputs, batch.tensors, self.train.head)
        return self.teacher.losses(losses, outputs, batch) if self.teacher else losses

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        if ranks.rank:
            return None
        objective, head = self.held_out.objective, self.held_out.head
        settings = self.settings.evaluate.while_training()
        predictions = list(objective.predict(self.model, self.held_out, self.chosen, settings))
        metrics = objective.metrics(self.held_out.rows[self.chosen], predictions, head)
        figures = {f"validation/{name}": metric.value() for name, metric in metrics.items()}
        return {name: value for name, value in figures.items() if value is not None} or None


def run_finetune(
    job: Job,
    examples: Examples,
    shards: Shards,
    start: Model | Initialization,
    plugin: Plugin,
    settings: DownstreamSettings,
    numerics: Numerics,
    seed: int,
    answers: RawFiles | None = None,
    teacher: Model | None = None,
) -> Figures:
    """Trains on the labelled examples of the split `train`, validates on `val`, writes a `Model`."""
    torch.set_num_threads(numerics.threads)
    objective = load(plugin.name)
    types, text = settings.types, settings.text
    train = ExampleRows(examples, shards, ["train"], objective.KINDS, settings.share, seed, types, text)
    seen = settings.evaluated_types()
    held_out = ExampleRows(
        examples, shards, ["val"], objective.KINDS, types=seen, text=text, evaluated=objective.evaluated
    )
    if not len(train):
        raise UserError(_no_examples(examples, objective, settings))
    unlabelled = train.keep(objective.labelled) if settings.steps else 0
    if seen and seen != types:
        _check_references(examples, objective, seen, settings.validation_examples)
    if not len(train):
        raise UserError(
            f"{examples.title}: none of the {unlabelled} training examples of {_asked_for(objective, settings)} has a "
            "label: look at the splits and the reader of the data"
        )
    head = {**_head(objective, train, start, settings, answers), "objective": plugin.name, "images": settings.images}
    if teacher is not None:
        head = taught_head(teacher, plugin.name, head, answers is not None)
    head |= ({"types": list(types)} if types else {}) | ({"text": text} if text != "own" else {})
    head |= {"evaluated_types": list(seen)} if seen and seen != types else {}
    model, vocabulary, contract = _model(objective, head, start, shards, seed, settings.accept_contract)
    head["max_text"] = text_limit(head["max_text"], model.encoder.config.max_positions)
    encoder = vocabulary.encoder()
    if teacher is not None:
        check_teacher(teacher, head, model.encoder.config, vocabulary, shards)
    box_input = model.encoder.config.box_input
    training = objective.dataset(objective, head, encoder, train, shards, box_input, seed)
    validation = objective.dataset(objective, head, encoder, held_out, shards, box_input)
    if isinstance(start, Initialization) and start.model.standardise:
        used = [image for images in train.column("image_ids") for image in images]
        model.encoder.set_statistics(*statistics([(training.visuals, used)]))
    taught = Teacher(teacher, objective, settings, numerics.precision == "bf16") if teacher else None
    trainable = Finetuning(model, training, validation, settings, taught)
    by = (settings.select_by or head.get("selects", objective.SELECTS)) if settings.select == "best" else None
    _check_held_out(examples, objective, held_out[trainable.chosen], head, by)
    bounds = objective.before(train, held_out, head, settings)
    best = f"validation/{by}" if by else None
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
    counts = {"examples": len(train), "dropped": train.dropped + held_out.dropped}
    noted = notes(start, shards.contract())
    return {**counts, **({"unlabelled": unlabelled} if unlabelled else {}), **bounds, **last_figures(curves), **noted}


def _check_held_out(examples: Examples, objective: Objective, rows: Rows, head: dict[str, Any], by: str | None) -> None:
    """Before the first step: that the held-out examples can be scored, and have the figure that selects the model."""
    wrong = [{"example_id": row["example_id"], **ABSENT} for row in rows]
    metrics = objective.metrics(rows, wrong, head)
    known = [name for name, metric in metrics.items() if metric.value() is not None]  # AUROC needs both labels
    if by and not known:
        raise UserError(
            f"select: best, but there are no labelled held-out examples to select by in {examples.title} (split val); "
            "write select: last"
        )
    if by and by not in known:
        hint = "" if by in metrics else nearest(by, known)
        raise UserError(
            f"select_by: the held-out examples of {examples.title} have no figure {by!r}, but {', '.join(known)}"
            + (f"; {hint}" if hint.startswith("did") else "; name one of these")
        )


def _head(
    objective: Objective,
    train: ExampleRows,
    start: Model | Initialization,
    settings: DownstreamSettings,
    answers: RawFiles | None,
) -> dict[str, Any]:
    """The head's description; answers: the file of its labels. With 0 steps the start's head is kept; raises UserError
    where it has none."""
    head = {"max_text": settings.max_text}
    if not settings.steps:
        if isinstance(start, Initialization) or start.head()["kind"] == "pretraining":
            raise UserError("steps: 0 evaluates the start as it is, and it has no answer head: train 1 step or more")
        trained_for = start.head().get("objective")
        if trained_for is not None and not same_task(trained_for, settings.objective):
            raise UserError(
                f"steps: 0 evaluates the start as it is, and its head is of objective {trained_for}, not "
                f"{settings.objective}: train 1 step or more"
            )
        return {**head, **start.head()}
    head |= objective.head(train, settings)
    if answers is None:
        return head
    if "labels" not in head:
        raise UserError(f"answers: {settings.objective} has no labels to give in a file; leave it out")
    (name,) = answers.members()
    return objective.relabelled(head, answers_of(answers.read(name), name), name)


def _model(
    objective: Objective,
    head: dict[str, Any],
    start: Model | Initialization,
    shards: Shards,
    seed: int,
    accepted: Sequence[str],
) -> tuple[Any, Any, Any]:
    """(model, vocabulary, contract): the objective's model, with what it keeps of the start. `head` takes note of what
    is `accepted` of the shards although the start's contract says other."""
    source: Any
    if isinstance(start, Initialization):
        source = start.build(shards.dim, seed)
        config, vocabulary = source.encoder.config, start.vocabulary
        contract, source_head = shards.contract().with_box_input(config.box_input), {}
    else:
        config, vocabulary = start.config(), start.vocabulary()
        contract, noted = accepted_contract(start, shards.contract(), accepted)
        source, source_head = start.load(), start.head()
        head |= noted
        refuse_int8(source, start.title, "train from")
    model: Any = objective.model(config, head, seed)
    objective.begin(model, head, source, source_head)
    return model, vocabulary, contract


def _asked_for(objective: Objective, settings: DownstreamSettings) -> str:
    """What the examples must be, in words."""
    kinds = " or ".join(objective.KINDS)
    return f"kind {kinds}" + (f" with a question type among {', '.join(settings.types)}" if settings.types else "")


def _no_examples(examples: Examples, objective: Objective, settings: DownstreamSettings) -> str:
    """Why nothing is trained on, with the question types that there are."""
    columns = examples.table().select(["question_type", "kind", "split"]).to_pydict().values()
    rows = zip(*columns, strict=True)
    found = {str(type_) for type_, kind, split in rows if type_ and kind in objective.KINDS and split == "train"}
    unknown = [type_ for type_ in settings.types or () if type_ not in found]
    types = f"; types: {nearest(unknown[0], found)}" if unknown else ""
    return f"{examples.title}: no training examples of {_asked_for(objective, settings)}{types}"


def _check_references(examples: Examples, objective: Objective, references: Sequence[str], held_out: int) -> None:
    """Raises UserError for question types to evaluate by that no split has, or where none of them is held out."""
    columns = examples.table().select(["question_type", "kind", "split"]).to_pydict().values()
    rows = [(type_, split) for type_, kind, split in zip(*columns, strict=True) if kind in objective.KINDS]
    found, val = {str(type_) for type_, _ in rows if type_}, {type_ for type_, split in rows if split == "val"}
    if unknown := [type_ for type_ in references if type_ not in found]:
        hint = nearest(unknown[0], found) if found else "they have none: leave it out"
        raise UserError(f"{examples.title}: references: no examples with the question type {unknown[0]!r}; {hint}")
    if held_out and val and val.isdisjoint(references):
        there = ", ".join(sorted(str(type_) for type_ in val if type_)) or "none"
        raise UserError(
            f"{examples.title}: references: no held-out examples (split val) of {', '.join(references)}, but {there}; "
            "name one of these, or write validation_examples: 0"
        )


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
    """Predicts the examples of `split`; parts already in scratch are kept, each rank makes its share."""
    torch.set_num_threads(numerics.threads)
    check(model.contract(), shards.contract())
    objective, head, network = load(plugin.name), model.head(), model.load()
    device = of_rank(device_of(job.machine.device), job.rank)
    network = network.to(device)
    rows = evaluated_rows(examples, shards, split, objective, head)
    side = objective.dataset(objective, head, model.vocabulary().encoder(), rows, shards, model.config().box_input)
    folder = durable.make_directories(job.scratch / "predictions")
    with torch.autocast(device.type, torch.bfloat16, enabled=numerics.precision == "bf16"):
        parts = objective.parts(network, side, settings)
        parts = _Chunks(network, side, settings) if parts is None else parts
        for name, content in parts.before().items():
            _keep(folder / name, content, job.rank)
        for k in range(len(parts))[job.rank :: job.world]:
            target = folder / f"{k:06d}{parts.suffix}"
            if not target.exists():
                _keep(target, parts.make(k), job.rank)
            job.progress(parts.done(k), parts.total)
            if job.stopping:
                raise Stopped(f"stopped behind {parts.done(k)} of {parts.total} {parts.unit}")
    return parts.figures()


def _keep(target: Path, content: bytes, rank: int) -> None:
    """A file that is whole or absent."""
    making = target.with_name(f"{target.name}.{rank}.part")
    making.unlink(missing_ok=True)
    durable.write_file(making, content)
    durable.rename(making, target)


class _Chunks:
    """The predictions of CHUNK examples a part, as JSON lines."""

    suffix, unit = ".jsonl", "examples"

    def __init__(self, model: nn.Module, side: ObjectiveDataset[Objective], settings: EvaluateSettings) -> None:
        self.model, self.side, self.settings, self.total = model, side, settings, len(side.rows)

    def __len__(self) -> int:
        return -(-self.total // CHUNK)

    def before(self) -> dict[str, bytes]:
        return {}

    def figures(self) -> Figures:
        return {}

    def make(self, k: int) -> bytes:
        indices = list(range(k * CHUNK, self.done(k)))
        predictions = self.side.objective.predict(self.model, self.side, indices, self.settings)
        return "".join(f"{json.dumps(p, ensure_ascii=False)}\n" for p in predictions).encode()

    def done(self, k: int) -> int:
        return min(self.total, (k + 1) * CHUNK)


def evaluated_rows(
    examples: Examples, shards: Shards, split: str, objective: Objective, head: dict[str, Any]
) -> ExampleRows:
    """The examples of the split that the model answers, as `head` says."""
    return ExampleRows(
        examples,
        shards,
        [split],
        objective.KINDS,
        types=head.get("evaluated_types", head.get("types")),
        text=head.get("text", "own"),
        evaluated=objective.evaluated,
    )


def run_score(
    job: Job, model: Model, examples: Examples, shards: Shards, plugin: Plugin, settings: EvaluateSettings, split: str
) -> Figures:
    """Scores the predictions in scratch and writes an `Evaluation` over all examples of the split. An example whose
    image is in quarantine counts as wrong; the submission says nothing of it, or, where an answer must be, an empty
    one."""
    from vbert.metrics.evaluation import write_evaluation

    objective, head = load(plugin.name), model.head()
    table = evaluated_rows(examples, shards, split, objective, head)
    rows = table.every.to_pylist()
    files = {path.name: path for path in sorted((job.scratch / "predictions").iterdir()) if path.suffix != ".part"}
    made = {p["example_id"]: p for p in objective.joined(files, table)}
    predictions = [made.get(row["example_id"], {"example_id": row["example_id"], **ABSENT}) for row in rows]
    counts = {"examples": len(rows), "answered": len(made), "quarantined": table.dropped}
    metrics = write_evaluation(
        job.directory,
        predictions=predictions,
        metrics=objective.metrics(rows, predictions, head),
        images=image_groups(table.every),
        resamples=settings.resamples,
        counts=counts,
        files=objective.submission(rows, predictions, head),
    )
    return {**counts, **metrics}
