"""A model of int8 beside the one it is made from: what it costs in accuracy, and what it gains in speed and size."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from vbert.artifacts.store.manifest import Manifest, environment
from vbert.artifacts.store.store import Store
from vbert.data.examples import Examples
from vbert.errors import BuildError, Damaged, UserError
from vbert.export.facts import SPLITS
from vbert.objectives.trained import WEIGHTS, Model
from vbert.regions.shards import Shards

if TYPE_CHECKING:
    from vbert.metrics.metric import Metric

BLOCK, SINGLY = 256, 64  # examples that one model answers before the other does; examples asked one by one
RESAMPLES, MOST = 2000, 10_000  # of the bootstrap; examples that are measured on by default


class Both(BaseModel):
    """A figure of the model in float32, and of the one in int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    fp32: float
    int8: float


class Int8Figures(BaseModel):
    """What was measured: `examples` of the `of` in `split` of `data`.

    difference: int8 − fp32 in the metric, paired by example, with its 95 % interval (low, high) by image; None where
    that is no mean over examples. same: the share of examples with the same answer. per_second: examples, BLOCK at
    once, their regions in memory; milliseconds: for one example alone, the median; both with `threads` threads. bytes:
    of the weights. why_not: why nothing but bytes was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: Both
    why_not: str = ""
    data: str = ""
    split: str = ""
    examples: int = 0
    of: int = 0
    metric: str = ""
    value: Both | None = None
    difference: tuple[float, float, float] | None = None
    same: float | None = None
    per_second: Both | None = None
    milliseconds: Both | None = None
    threads: int = 0
    processor: str = ""

    def lines(self) -> list[str]:
        """In words, a line each of accuracy, speed and size."""
        size = f"weights: {self.bytes.fp32 / 1e6:.2f} MB, in int8 {self.bytes.int8 / 1e6:.2f} MB"
        if self.per_second is None or self.milliseconds is None:
            return [f"accuracy and speed of int8 were not measured: {self.why_not}", size]
        where = f"{self.examples:,} of the {self.of:,} examples in {self.split} of {self.data}"
        said = ""
        if self.value is not None:
            said = f"{self.metric} {self.value.fp32:.4f}, in int8 {self.value.int8:.4f}"
        if self.difference is not None:
            points = [100 * one for one in self.difference]
            said += f": {points[0]:+.2f} points ({points[1]:+.2f} to {points[2]:+.2f}, paired, 95 %)"
        faster = self.per_second.int8 / self.per_second.fp32
        alone = self.milliseconds.fp32 / self.milliseconds.int8
        return [
            f"{said or 'no labels'}; {100 * (self.same or 0):.2f} % of answers are the same; {where}",
            f"speed: {self.per_second.fp32:,.0f} examples/s, in int8 {self.per_second.int8:,.0f} ({_times(faster)}); "
            f"one alone {self.milliseconds.fp32:.2f} ms, in int8 {self.milliseconds.int8:.2f} ms ({_times(alone)}); "
            f"{self.threads} thread{'s' * (self.threads > 1)}, {self.processor}",
            size,
        ]

    def card(self) -> str:
        """The section of the model card."""
        lines = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.lines())
        return (
            "## In int8\n\nThe linear layers are stored as 8-bit integers and computed so on a CPU (dynamic "
            "quantisation, each row by its own largest number). Measured beside the model in float32 when it was "
            f"exported:\n\n{lines}"
        )


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"slower: {ratio:.2f} times as fast"


class Evaluated(NamedTuple):
    """What a model was evaluated on."""

    examples: Examples
    shards: Shards
    data: str
    split: str


def int8_copy(model: Model, folder: Path) -> Model:
    """The model with its linear layers in int8, in a new folder. Raises UserError for one that is int8 already."""
    from safetensors.torch import save_file

    from vbert.export.folder import MODEL_FILES
    from vbert.model.int8 import is_int8, quantise

    network = model.load()
    if is_int8(network):
        raise UserError(f"{model.title} is of int8 already; leave --int8 out")
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        if name != WEIGHTS:
            shutil.copyfile(model.file(name), folder / name)
    tensors = {name: tensor.contiguous() for name, tensor in quantise(network).state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return Model.at(folder)


def measured(model: Model, int8: Model, most: int) -> Int8Figures:
    """Both models on the examples that the store says the model was evaluated on, `most` of them, drawn by name."""
    both = [one.file(WEIGHTS).stat().st_size for one in (model, int8)]
    size = Both(fp32=both[0], int8=both[1])
    if not most:
        return Int8Figures(bytes=size, why_not="as asked for")
    evaluated = evaluated_on(model)
    if isinstance(evaluated, str):
        return Int8Figures(bytes=size, why_not=evaluated)
    return _compared((model, int8), evaluated, size, most)


def evaluated_on(model: Model) -> Evaluated | str:
    """The examples and regions of an evaluation of the model, of `test` where there is one; else why there is none."""
    try:
        store, made = model.origin()
    except BuildError:
        return "no store is beside it, so that its examples aren't known"
    names = {made.fingerprint, made.step["build"]}
    names |= {one.fingerprint for one in store.manifests(made.stage) if one.alias_of == made.fingerprint}
    found = [one for one in store.manifests("evaluate") if one.hashed["arguments"]["model"]["artifact"] in names]
    if not found:
        return "the store has no evaluation of it"
    best = max(found, key=lambda one: SPLITS.index(one.hashed["arguments"]["split"]))
    arguments = best.hashed["arguments"]
    texts, rows = (_whole(store, best, arguments[name]["artifact"]) for name in ("examples", "shards"))
    if texts is None or rows is None:
        return "the examples or regions of its evaluation are no longer in the store"
    data = texts[1].label or "its data"
    return Evaluated(Examples.at(texts[0]), Shards.at(rows[0]), data, arguments["split"])


def _whole(store: Store, evaluate: Manifest, fingerprint: str) -> tuple[Path, Manifest] | None:
    stage = evaluate.step["steps"][fingerprint]["stage"]
    with suppress(Damaged, BuildError):
        manifest = store.manifest(stage, fingerprint)
        return None if manifest is None else (store.whole(manifest), manifest)
    return None


def _compared(models: tuple[Model, Model], on: Evaluated, size: Both, most: int) -> Int8Figures:
    import torch

    from vbert.objectives import load
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.objectives.downstream import evaluated_rows
    from vbert.training.sampler import derive

    head, config = models[0].head(), models[0].config()
    objective = load(head["objective"])
    rows = evaluated_rows(on.examples, on.shards, on.split, objective, head)
    side = ObjectiveDataset(objective, head, models[0].vocabulary().encoder(), rows, on.shards, config.box_input)
    networks = [model.load() for model in models]
    settings = _evaluation(head["objective"])
    if objective.parts(networks[0], side, settings) is not None:
        return Int8Figures(bytes=size, why_not=f"{head['objective']} isn't predicted example by example")
    ids = rows.column("example_id")
    chosen = sorted(sorted(range(len(ids)), key=lambda i: derive("int8", ids[i]))[:most])
    predicted: list[list[dict[str, Any]]] = [[], []]
    seconds = [0.0, 0.0]
    for number, start in enumerate(range(0, len(chosen), BLOCK)):
        block = chosen[start : start + BLOCK]
        side.batch([(i, None) for i in block])  # reads the regions, so that neither has to wait for them
        for k in ((0, 1), (1, 0))[number % 2]:
            begun = time.perf_counter()
            predicted[k] += objective.predict(networks[k], side, block, settings)
            seconds[k] += time.perf_counter() - begun
    alone = [[], []]  # type: list[list[float]]
    for i in chosen[:SINGLY]:
        for k in (0, 1):
            begun = time.perf_counter()
            list(objective.predict(networks[k], side, [i], settings))
            alone[k].append(time.perf_counter() - begun)
    pairs = zip(*predicted, strict=True)
    shown = rows[chosen]
    metrics = [objective.metrics(shown, its, head) for its in predicted]
    metric = head.get("selects", objective.SELECTS)
    values = [its[metric].value() if metric in its else None for its in metrics]
    known = values[0] is not None and values[1] is not None
    return Int8Figures(
        bytes=size,
        data=on.data,
        split=on.split,
        examples=len(chosen),
        of=len(rows),
        metric=metric,
        value=Both(fp32=values[0], int8=values[1]) if known else None,
        difference=_difference([its[metric] for its in metrics], shown) if known else None,
        same=sum(one["answer"] == other["answer"] for one, other in pairs) / max(1, len(chosen)),
        per_second=Both(fp32=len(chosen) / seconds[0], int8=len(chosen) / seconds[1]),
        milliseconds=Both(
            fp32=1000 * sorted(alone[0])[len(alone[0]) // 2], int8=1000 * sorted(alone[1])[len(alone[1]) // 2]
        ),
        threads=torch.get_num_threads(),
        processor=str(environment()["processor"]),
    )


def _evaluation(name: str) -> Any:
    from vbert.objectives import OBJECTIVES

    kind = OBJECTIVES[name].settings.model_fields["evaluate"].annotation
    assert kind is not None
    return kind()


def _difference(metrics: Sequence[Metric], rows: Sequence[dict[str, Any]]) -> tuple[float, float, float] | None:
    """int8 − fp32 with its interval, of metrics that are means over examples or their parts."""
    from vbert.metrics.metric import ExampleScores, PartScores
    from vbert.metrics.paired import paired_difference

    images, scores, groups = [row["image_ids"][0] for row in rows], [], []
    for metric in metrics:
        if isinstance(metric, PartScores):
            scores.append([score for parts in metric.scores for score in parts])
            groups = [images[i] for i in metric.counted()]
        elif isinstance(metric, ExampleScores) and metric.group is None:
            kept = [(score, image) for score, image in zip(metric.scores, images, strict=True) if score is not None]
            scores.append([score for score, _ in kept])
            groups = [image for _, image in kept]
        else:
            return None
    found = paired_difference([scores[1]], [scores[0]], groups, RESAMPLES)
    return found.value, found.low, found.high
