"""What a store knows of a model: the data behind it, its figures and their controls, the run that it is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.data.spec import dataset
from vbert.errors import BuildError, Damaged, UserError
from vbert.export.folder import is_export, read_record
from vbert.metrics.evaluation import Evaluation
from vbert.model.published import spec_of
from vbert.objectives.trained import Model
from vbert.regions.detector import detector_file

SPLITS = ("train", "val", "test")
UNKNOWN, NO_SPEC = "unknown: the store has no record of the recipe", "unknown: no spec says it"
ALIKE = ("objective", "types", "protocol")  # settings that a control has in common with what it is beside
# What a control was trained and evaluated with, by the fields of its entry.
SIDES = {
    ("images", "shuffled"): "other images' regions",
    ("images", "none"): "the text alone",
    ("text", "shuffled"): "other examples' texts",
    ("text", "none"): "the images alone",
}


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataUsed(_Fact):
    """A data set behind the model. images, texts: their number by split; spec: the name of its spec."""

    name: str
    uses: list[str]
    images: dict[str, int] = {}
    texts: dict[str, int] = {}
    spec: str | None = None
    title: str = ""
    licence: str = UNKNOWN
    homepage: str | None = None


class WeightsUsed(_Fact):
    """Weights that the model rests on and others published, or the detector of its features."""

    name: str
    what: str
    licence: str


class Figure(_Fact):
    """A metric with its 95 % interval, by the method `interval` in words, over `count` examples."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None
    interval: str = ""


class Result(_Fact):
    """An evaluation of the model, or, with `control`, of what was trained without one side of the examples."""

    name: str
    data: str
    split: str
    control: str = ""
    figures: dict[str, Figure]


class Facts(_Fact):
    """recipe: its name, and run: the record's id, where the store has one. settings: those of the last training;
    validation: its figures on the split `val`, and its loss."""

    title: str
    objective: str
    stage: str = ""
    fingerprint: str = ""
    recipe: str = ""
    run: str = ""
    settings: dict[str, Any] = {}
    seed: int | None = None
    validation: dict[str, float] = {}
    data: list[DataUsed] = []
    weights: list[WeightsUsed] = []
    results: list[Result] = []
    environment: dict[str, Any] = {}

    def made_from(self) -> dict[str, Any]:
        """For export.json."""
        return self.model_dump(mode="json")


def facts_of(model: Model) -> Facts:
    """What the model's store, or the one that it lies in, tells; little of a model in no store."""
    objective = str(model.head()["objective"])
    try:
        store, made = model.origin()
    except BuildError:
        return Facts(title=model.path.name, objective=objective)
    steps: Mapping[str, Any] = made.step["steps"]
    known = {print_: manifest for print_ in steps if (manifest := _record(store, steps[print_]["stage"], print_))}
    own = steps[made.step["build"]]
    names = {made.fingerprint, made.step["build"], *_aliases(store, made)}
    if imported := next((given for record in store.runs().values() if (given := _told(record, names))), None):
        return Facts.model_validate(imported)
    run, record = _run_of(store, names)
    specs = {name: entry.get("spec") for name, entry in record.get("resolved", {}).get("data", {}).items()}
    arguments, before = own["arguments"], list(_before(steps))
    return Facts(
        title=f"{own['stage']}[{own['label']}]" if own.get("label") else str(own["stage"]),
        objective=objective,
        stage=str(own["stage"]),
        fingerprint=made.fingerprint,
        recipe=str(record.get("recipe", "")),
        run=run,
        settings=dict(made.hashed["arguments"].get("settings") or {}),  # without names and places, which aren't hashed
        validation={name: value for name, value in made.figures.items() if isinstance(value, float)},
        seed=arguments.get("seed"),
        data=_joined(_data(steps, made.step["build"], known, specs), before),
        weights=list(dict.fromkeys((*_weights(steps, before), *(one for facts in before for one in facts.weights)))),
        results=_results(store, names, made.hashed["arguments"], set(record.get("steps", ()))),
        environment=made.environment,
    )


def _told(record: Mapping[str, Any], names: set[str]) -> Any:
    """Facts of an exported folder, which the run that imported it has kept."""
    return record.get("facts") if names & set(record.get("targets", ())) else None


def _record(store: Store, stage: str, fingerprint: str) -> Manifest | None:
    with suppress(Damaged):
        return store.manifest(stage, fingerprint)
    return None


def _aliases(store: Store, made: Manifest) -> Iterator[str]:
    for manifest in store.manifests(made.stage):
        if manifest.alias_of == made.fingerprint:
            yield manifest.fingerprint


def _run_of(store: Store, names: set[str]) -> tuple[str, Mapping[str, Any]]:
    """The last run with a recipe that the model is part of."""
    found: tuple[str, Mapping[str, Any]] = "", {}
    for name, record in store.runs().items():
        if names & set(record.get("steps", ())) and record.get("resolved"):
            found = name, record
    return found


def _inputs(value: Any) -> Iterator[str]:
    """The fingerprints in arguments as JSON."""
    if isinstance(value, dict):
        if set(value) == {"artifact"}:
            yield value["artifact"]
        else:
            for inner in value.values():
                yield from _inputs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _inputs(inner)


def _data(
    steps: Mapping[str, Any], build: str, known: Mapping[str, Manifest], specs: Mapping[str, str | None]
) -> list[DataUsed]:
    """Data sets by name, in the order of their use: the model's own training first, then what it started from."""
    uses: dict[str, list[str]] = {}
    counts: dict[str, dict[str, dict[str, int]]] = {}

    def note(fingerprint: str, use: str) -> None:
        step = steps[fingerprint]
        name = str(step["label"] or step["stage"])
        if use not in uses.setdefault(name, []):
            uses[name].append(use)
        manifest = known.get(fingerprint)
        what = "images" if step["stage"] == "images" else "texts"
        figures = manifest.figures if manifest else {}
        counts.setdefault(name, {})[what] = {split: figures[split] for split in SPLITS if figures.get(split)}
        if what == "texts":
            note(step["arguments"]["images"]["artifact"], use)

    for fingerprint in _nearest_first(steps, build):
        step = steps[fingerprint]
        if step["stage"] in ("finetune", "pretrain"):
            use = "pre-training" if step["stage"] == "pretrain" else "fine-tuning"
            for part in _inputs({k: v for k, v in step["arguments"].items() if k in ("examples", "data")}):
                if steps[part]["stage"] == "examples":
                    note(part, use if fingerprint == build or not step.get("label") else f"{use} ({step['label']})")
        elif step["stage"] == "detector":
            note(step["arguments"]["images"]["artifact"], "training of the detector")
    return [_data_used(name, its, counts[name], specs.get(name)) for name, its in uses.items()]


def _nearest_first(steps: Mapping[str, Any], build: str) -> list[str]:
    order = [build]
    for fingerprint in order:  # it grows
        order += dict.fromkeys(other for other in _inputs(steps[fingerprint]["arguments"]) if other not in order)
    return order


def _data_used(name: str, uses: list[str], counts: Mapping[str, dict[str, int]], spec: str | None) -> DataUsed:
    common: dict[str, Any] = {"name": name, "uses": uses, **counts}
    if spec is None:
        return DataUsed(**common)
    try:
        found = dataset(spec)
        photos = found.collection()
    except UserError:
        return DataUsed(**common, spec=spec)
    licence = found.licence if photos is found else f"{found.licence}; its photos ({photos.name}): {photos.licence}"
    return DataUsed(**common, spec=found.name, title=found.title, licence=licence, homepage=found.homepage)


def _weights(steps: Mapping[str, Any], before: Sequence[Facts]) -> Iterator[WeightsUsed]:
    for step in steps.values():
        arguments, label = step["arguments"], str(step.get("label") or "")
        if step["stage"] in ("detector", "weights"):
            spec = arguments["spec"].get("spec", arguments["spec"])  # of one that starts from weights, beside these
            licence = NO_SPEC
            with suppress(UserError):
                licence = detector_file(spec["name"]).licence
            how = "trained here" if step["stage"] == "detector" else "published weights"
            if step["stage"] == "weights" and _path_of(steps, arguments["files"]):
                how = "weights from a file"
            yield WeightsUsed(name=spec["name"], what=f"detector, {how}", licence=licence)
        elif step["stage"] in ("bert", "checkpoint"):
            licence = NO_SPEC
            with suppress(UserError):
                licence = spec_of(label).licence
            if before and _path_of(steps, arguments.get("source")):
                licence = "those of its data and weights, told here"
            what = (
                "BERT that training started from"
                if step["stage"] == "bert"
                else "VisualBERT that training started from"
            )
            yield WeightsUsed(name=label or step["stage"], what=what, licence=licence)


def _path_of(steps: Mapping[str, Any], arguments: Any) -> str | None:
    """The local file or folder that arguments were downloaded from."""
    for fingerprint in _inputs(arguments):
        source = steps[fingerprint]["arguments"].get("source")
        if isinstance(source, dict) and source.get("path"):
            return str(source["path"])
    return None


def _before(steps: Mapping[str, Any]) -> Iterator[Facts]:
    """Of models that training started from: what the exported folder, or the store that such a model lies in, tells."""
    for step in steps.values():
        path = _path_of(steps, step["arguments"].get("source")) if step["stage"] == "checkpoint" else None
        if path is None:
            continue
        folder = Path(path)
        with suppress(UserError, BuildError, ValidationError):
            if is_export(folder):
                yield Facts.model_validate(read_record(folder).made_from)
            elif (folder / "head.json").is_file():
                yield facts_of(Model.at(folder))


def _joined(own: list[DataUsed], before: Sequence[Facts]) -> list[DataUsed]:
    """Data sets of the model, and of what its training started from."""
    joined = {one.name: one for one in own}
    for facts in before:
        for one in facts.data:
            uses = [f"{use}, of {facts.title}" for use in one.uses]
            known = joined.get(one.name)
            images, texts = (one.images, one.texts) if known is None else (known.images, known.texts or one.texts)
            told = {"uses": [*(known.uses if known else []), *uses], "images": images, "texts": texts}
            joined[one.name] = (known or one).model_copy(update=told)
    return list(joined.values())


def _results(store: Store, names: set[str], own: Mapping[str, Any], run: set[str]) -> list[Result]:
    """Evaluations of the model, and of its controls on the same examples: those of its own run, if it has any."""
    examples = (own.get("examples") or {}).get("artifact")
    found: list[Result] = []
    controls: dict[tuple[str, str], tuple[bool, str, Result]] = {}
    for manifest in store.manifests("evaluate"):
        arguments = manifest.hashed["arguments"]
        trained, data, split = arguments["model"]["artifact"], arguments["examples"]["artifact"], arguments["split"]
        if trained in names:
            found += _result(store, manifest, data)
        elif data == examples and (control := _control(store, trained, own)):
            rank = manifest.fingerprint in run, manifest.created
            if (control, split) not in controls or rank > controls[control, split][:2]:
                for result in _result(store, manifest, data, control):
                    controls[control, split] = (*rank, result)
    splits = {result.split for result in found}
    found.sort(key=lambda result: (result.data, -SPLITS.index(result.split) if result.split in SPLITS else 0))
    return found + [result for _, _, result in controls.values() if result.split in splits]


def _control(store: Store, fingerprint: str, own: Mapping[str, Any]) -> str:
    """What a model of the same task was trained without, in words; "" for one that is no control."""
    manifest = _record(store, "finetune", fingerprint)
    arguments = manifest.hashed["arguments"] if manifest else {}
    settings, like = arguments.get("settings", {}), own.get("settings", {})
    if any(settings.get(name) != like.get(name) for name in ALIKE):
        return ""
    return ", ".join(words for (side, shown), words in SIDES.items() if settings.get(side) == shown)


def _result(store: Store, manifest: Manifest, data: str, control: str = "") -> Sequence[Result]:
    with suppress(Damaged, BuildError):
        whole = store.manifest(manifest.stage, manifest.fingerprint)
        evaluation = Evaluation.at(store.whole(whole)) if whole else None
        if evaluation is not None and (values := evaluation.metrics()):
            texts = _record(store, "examples", data)
            figures = dict(_figures(values, evaluation))
            name, split = manifest.label or "evaluate", str(manifest.hashed["arguments"]["split"])
            label = str(texts.label or "") if texts else ""
            return [Result(name=name, data=label, split=split, control=control, figures=figures)]
    return []


def _figures(values: Mapping[str, float], evaluation: Evaluation) -> Iterable[tuple[str, Figure]]:
    intervals, counts = evaluation.intervals(), evaluation.counts()
    for name, value in values.items():
        bounds = intervals.get(name)
        within: dict[str, Any] = {}
        if bounds is not None:
            within = {"low": bounds.low, "high": bounds.high, "interval": bounds.in_words}
        yield name, Figure(value=value, count=counts.get(name), **within)
