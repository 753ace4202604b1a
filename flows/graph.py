"""The graph of a recipe, once: it reads top to bottom and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from flows.checks import init_behind
from flows.entries import DataEntry, DetectorEntry, PretrainEntry
from flows.imported import imported
from flows.models import published, unknown
from flows.recipe import Recipe
from flows.reproduce import commands_to_reproduce
from tasks.bert import bert
from tasks.detector import detector
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.examples import examples
from tasks.explain import explain
from tasks.finetune import finetune
from tasks.generate import generate
from tasks.heads import heads
from tasks.images import images
from tasks.links import fetch_links, links
from tasks.overlaps import overlaps
from tasks.pretrain import pretrain
from tasks.regions import regions
from tasks.report import report
from tasks.vocabulary import bert_vocabulary, vocabulary
from tasks.weights import weights
from vbert.artifacts.making.plan import select, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.data import readers
from vbert.data.examples import Examples
from vbert.data.images import Images
from vbert.data.overlaps import Overlaps, PhotosOfSplits
from vbert.data.raw import RawFiles
from vbert.data.shapes.scenes import ShapesSettings
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec, LinksSpec, dataset
from vbert.data.yaml import is_yaml
from vbert.errors import UserError, nearest
from vbert.explain import methods_of
from vbert.explain.explanations import Explanations
from vbert.model.bert import HubSource, bert_source, model_names
from vbert.model.config import SIZES, ModelSettings
from vbert.model.published import PRETRAINED, is_published
from vbert.model.start import Initialization
from vbert.objectives import objective
from vbert.objectives.entry import DownstreamSettings
from vbert.objectives.grounding import GroundingSettings
from vbert.objectives.pretraining import OBJECTIVE
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.trained import Model
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.regions.detector import (
    TRAINED_HERE,
    DetectorFile,
    DetectorSpec,
    DetectorWeights,
    PretrainedDetector,
    detector_file,
)
from vbert.regions.shards import Shards
from vbert.report.page import EvaluatedEntry, Report, ReportSettings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class RecipeData:
    """A data set of the recipe: its photos, and the texts about them."""

    photos: Images
    texts: Examples | None


def graph(recipe: Recipe) -> Report:
    """The report-to-be of a recipe; behind it, every step of the experiment."""
    data, detector_weights, shards = preprocessed(recipe)
    trained: dict[tuple[str, int], Model] = {}
    for key, entry in recipe.pretrainings().items():
        for seed in recipe.seeds_of(entry):
            begun = start_for(recipe, entry, seed, trained, data)
            fresh = begun
            if isinstance(begun, Model) and not is_published(init_behind(recipe, entry.start) or ""):
                fresh = start_of(recipe, data)
            model = pretrain(
                {name: PretrainData(texts_of(data, name), shards[name]) for name in entry.data},
                None if isinstance(fresh, Model) else fresh.vocabulary,
                begun if isinstance(begun, Model) else begun.bert,
                ModelSettings() if isinstance(fresh, Model) else fresh.model,  # a model brings its own
                plain(entry, PretrainSettings),
                recipe.numerics.pretrain,
                seed,
                OBJECTIVE,
            )
            label = seeded(key or "pretrained", seed, entry.seeds) if key or entry.seeds else None
            trained[key, seed] = model.named(label) if label else model
    last = list(trained.values())[-1] if trained else None

    downstream: dict[str, EvaluatedEntry] = {}
    looks: dict[str, HeadAnalysis] = {}
    explained: dict[str, Explanations] = {}
    for key, task_entry in recipe.downstream.items():
        plugin = objective(task_entry.objective)
        texts, its_shards = texts_of(data, task_entry.data), shards[task_entry.data]
        for seed in recipe.seeds_of(task_entry):
            name = seeded(key, seed, task_entry.seeds)
            start = start_for(recipe, task_entry, seed, trained, data)
            given = None if task_entry.answers == "training" else download(located(task_entry.answers).pinned())
            model = finetune(
                texts,
                its_shards,
                start,
                plugin,
                task_entry,
                recipe.numerics.finetune,
                seed,
                given.named(f"{key} answers") if given else None,
                None if task_entry.teacher is None else trained_by(recipe, task_entry.teacher, seed, trained),
            ).named(name)
            trained[key, seed] = model
            zero_shot = task_entry.analysed() if isinstance(task_entry, GroundingSettings) else None
            for split in task_entry.evaluate.splits:
                if zero_shot is not None and isinstance(start, Model):
                    looked = heads(start, texts, its_shards, zero_shot, split, recipe.numerics.evaluate)
                    label = name if split == "test" else f"{name} {split}"
                    looks[f"{name}/{task_entry.data}/{split}"] = looked.named(label)
                evaluation = evaluate(
                    model, texts, its_shards, plugin, task_entry.evaluate, split, recipe.numerics.evaluate
                ).named(name if split == "test" else f"{name} {split}")
                downstream[f"{name}/{task_entry.data}/{split}"] = EvaluatedEntry(
                    model, evaluation, data[task_entry.data].photos, texts, its_shards
                )
                if (wanted := task_entry.explain) is not None:
                    methods, numerics = methods_of(wanted.methods), recipe.numerics.evaluate
                    measured = explain(model, texts, its_shards, plugin, wanted, methods, split, numerics)
                    label = name if split == "test" else f"{name} {split}"
                    explained[f"{name}/{task_entry.data}/{split}"] = measured.named(label)
    settings = ReportSettings(again=commands_to_reproduce(recipe))
    return report(
        recipe.name,
        overlaps_in(recipe, data),
        detector_weights,
        scenes_of(recipe, data),
        last,
        downstream,
        looks or None,
        settings,
        explained or None,
    )


def overlaps_in(recipe: Recipe, data: Mapping[str, RecipeData]) -> Overlaps | None:
    """The photos that are trained on and evaluated on; None where nothing is evaluated."""
    if not recipe.downstream:
        return None
    names = [name for entry in recipe.pretrainings().values() for name in entry.data]
    evaluated = list(dict.fromkeys(entry.data for entry in recipe.downstream.values()))
    trained = {name: PhotosOfSplits(data[name].photos, data[name].texts) for name in (*names, *evaluated)}
    specs = {name: dataset(entry.spec) for name, entry in recipe.data.items() if entry.spec is not None}
    reasons = {name: recipe.data[name].known_overlap or spec.known_overlap for name, spec in specs.items()}
    known = {name: reason for name, reason in reasons.items() if name in trained and reason}
    elsewhere: dict[str, str] = {}
    if (of := recipe.detector) is not None and of.train is not None:
        trained[f"the detector ({of.train.data})"] = PhotosOfSplits(data[of.train.data].photos)
    elif of is not None and of.weights is None:
        for source in detector_file(of.spec).trained_on:
            here = [name for name, spec in specs.items() if spec.collection().name == source]
            for name in here:
                trained[f"detector {of.spec} ({name})"] = PhotosOfSplits(data[name].photos)
            if not here:
                elsewhere[f"detector {of.spec}"] = source
    return overlaps(trained, {name: trained[name] for name in evaluated}, known, elsewhere)


def seeded(name: str, seed: int, seeds: Sequence[int]) -> str:
    """The name of an entry's run: `NAME@SEED` where the entry has several seeds."""
    return f"{name}@{seed}" if seeds else name


def preprocessed(recipe: Recipe) -> tuple[Mapping[str, RecipeData], DetectorWeights | None, Mapping[str, Shards]]:
    """The chain up to region features: the data sets, the detector, and each data set's shards."""
    data = {name: data_set(name, entry, recipe) for name, entry in recipe.data.items()}
    shards = {
        name: imported(entry.features, name, photos_of(entry)).named(name)
        for name, entry in recipe.data.items()
        if entry.features
    }
    if recipe.detector is None:
        return data, None, shards
    detector_weights = detector_of(recipe.detector, recipe, data)
    rule = recipe.regions.resolved(detector_file(recipe.detector.spec))
    for name, part in data.items():
        if name not in shards:
            shards[name] = regions(part.photos, detector_weights, rule, recipe.numerics.regions).named(name)
    return data, detector_weights, shards


def data_set(name: str, entry: DataEntry, recipe: Recipe) -> RecipeData:
    """A data set's photos and texts, fetched or generated; photos shared with another spec come from that spec's
    sources."""
    if entry.folder is not None:
        source = located(entry.folder)
        if source.path is not None:  # other files beside the photos are ignored: the reader takes images only
            source = source.model_copy(update={"only": "images"})
        raws = {"folder": download(source.pinned()).named(name)}
        return RecipeData(images(raws, readers.reader("folder"), recipe.limit).named(name), None)
    assert entry.spec is not None, "the recipe's own check"
    spec = dataset(entry.spec)
    collection = spec.collection()
    for key in entry.files:
        known = [*spec.sources, *collection.sources]
        if key not in known:
            raise UserError(f"data.{name}.files: the spec has no source {key!r}; {nearest(key, known)}")
    own = sources_of(spec, entry)
    sources = own if collection is spec else sources_of(collection, entry)
    accepted = {} if entry.unusable_boxes is None else {"unusable_boxes": entry.unusable_boxes}
    photos = images(
        {key: sources[key] for key in collection.read_by("images")},
        collection.reader("images"),
        recipe.limit,
        collection.reading("images").model_copy(update=accepted),
    ).named(name)
    if spec.examples is None:
        return RecipeData(photos, None)
    raws = {key: own[key] for key in spec.read_by("examples")}
    reading = spec.reading("examples").model_copy(update=accepted)
    return RecipeData(photos, examples(raws, photos, spec.reader("examples"), reading).named(name))


def photos_of(entry: DataEntry) -> str:
    """The name of the spec of the photos; that of a plain folder is "folder"."""
    return "folder" if entry.spec is None else dataset(entry.spec).collection().name


def sources_of(spec: DatasetSpec, entry: DataEntry | None = None) -> Mapping[str, RawFiles]:
    """The raw files of a spec, a step a source; sizes that the recipe gives replace those of the generator."""
    if spec.generate is None:
        several, given = len(spec.sources) > 1, entry.files if entry else {}
        placed = {key: source.placed(given.get(key), f"{spec.name} {key}") for key, source in spec.sources.items()}
        raws = {
            key: download(source.pinned()).named(f"{spec.name} {key}" if several else spec.name)
            for key, source in placed.items()
        }
        return raws if spec.links is None else {"links": linked(spec.name, spec.links, raws, entry)}
    own = {"spec", "files", "known_overlap", "features", "unusable_boxes", "dead_links"}  # not the generator's
    changed = entry.model_dump(exclude=own, exclude_none=True) if entry else {}
    try:
        settings = ShapesSettings.model_validate({**spec.generate, **changed})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the sizes together"
        raise UserError(f"data set with spec {spec.name!r}: {field}: {fault['msg']}; mend it in the recipe") from None
    return {"generated": generate(settings).named(spec.name)}


def linked(name: str, spec: LinksSpec, raws: Mapping[str, RawFiles], entry: DataEntry | None) -> RawFiles:
    """The photos behind the lists of links that the sources hold."""
    fetch = spec.fetch
    if entry is not None and entry.dead_links is not None:
        fetch = fetch.model_copy(update={"dead": entry.dead_links})
    lists = {key: raws[key] for key in spec.sources or raws}
    return fetch_links(links(lists, spec.list).named(name), fetch).named(name)


def texts_of(data: Mapping[str, RecipeData], name: str) -> Examples:
    texts = data[name].texts
    if texts is None:
        raise UserError(f"data set {name!r} has no examples, only images: it can't be trained on")
    return texts


def detector_of(entry: DetectorEntry, recipe: Recipe, data: Mapping[str, RecipeData]) -> DetectorWeights:
    """The detector, trained on one of the recipe's data sets or with given weights."""
    file = detector_file(entry.spec)
    if entry.train is None:
        return weights_of(file, entry.weights)
    if file.backend not in TRAINED_HERE:
        raise UserError(
            f"detector {file.name}: backend {file.backend!r} trains no detector; leave out detector.train and give "
            f"weights, or train one of backend {' or '.join(TRAINED_HERE)}"
        )
    photos = data[entry.train.data].photos
    start = file.start if entry.start is None else located(entry.start)
    spec: DetectorSpec | PretrainedDetector = file.spec()
    if start is not None:
        spec = PretrainedDetector(file.spec(), download(start.pinned()).named(f"{file.name} start"))
    return detector(photos, spec, entry.train, recipe.numerics.detector, recipe.seed)


def weights_of(file: DetectorFile, own: str | None = None) -> DetectorWeights:
    """The detector with its published weights; `own`: a file or URL in place of them. Raises UserError for none."""
    if file.import_only:
        raise UserError(f"detector {file.name} can't be run from images: {file.import_only}")
    trained_here = own is not None and (Path(os.path.expanduser(own)) / "detector.json").is_file()  # has its own names
    sources = {} if trained_here else dict(file.weights)
    if own is not None:
        sources["weights"] = located(own)
    if "weights" not in sources:
        raise UserError(f"detector {file.name} has no published weights: train it (detector.train) or give weights")
    raws = {key: download(source.pinned()).named(f"{file.name} {key}") for key, source in sources.items()}
    return weights(raws, file.spec()).named(file.name)


def located(where: str) -> Source:
    """The source of a file or folder, given as a URL or a path."""
    return Source(url=where) if "://" in where else Source(path=os.path.abspath(os.path.expanduser(where)))


def scenes_of(recipe: Recipe, data: Mapping[str, RecipeData]) -> Images | None:
    """The photos the detector was trained on, which the report shows held-out ones of."""
    training = recipe.detector.train if recipe.detector else None
    return data[training.data].photos if training else None


def start_of(
    recipe: Recipe, data: Mapping[str, RecipeData], init: str | None = None, wanted: str | None = None
) -> Model | Initialization:
    """The start of pre-training and of its controls: sizes and a vocabulary, a BERT, or a published VisualBERT.

    init: the BERT or VisualBERT, in place of `model`'s. wanted: the objective that a VisualBERT must have a head for.
    """
    sizes = plain(recipe.model, ModelSettings)
    if init := init or recipe.model.init:
        positions = recipe.model.extended() if init == recipe.model.init else None
        if is_published(init):
            return published(init, positions, wanted)
        if not is_yaml(init) and init not in model_names() and not Path(os.path.expanduser(init)).is_dir():
            raise UserError(f"model.init: {unknown(init).message}")
        sizes = ModelSettings.model_validate(sizes.model_dump(exclude=set(SIZES)))  # the BERT's; these are of others
        source, name = bert_source(init)
        bert_weights = bert(
            source if isinstance(source, HubSource) else download(source.pinned()).named(name), positions
        ).named(name)
        return Initialization(bert_vocabulary(bert_weights), sizes, bert_weights)
    texts = [name for entry in recipe.pretrainings().values() for name in entry.data]
    read = dict.fromkeys([*texts, *(entry.data for entry in recipe.downstream.values())])
    return Initialization(vocabulary({name: texts_of(data, name) for name in read}, recipe.vocabulary), sizes)


def start_for(
    recipe: Recipe,
    entry: PretrainEntry | DownstreamSettings,
    seed: int,
    trained: Mapping[tuple[str, int], Model],
    data: Mapping[str, RecipeData],
) -> Model | Initialization:
    """The start of a training with `seed`: of an earlier one with several seeds, the one with the same seed."""
    wanted = PRETRAINED if isinstance(entry, PretrainEntry) else None if entry.steps else entry.objective
    if entry.start is None or entry.start == "none":
        start = start_of(recipe, data, wanted=wanted)
        if isinstance(entry, DownstreamSettings) and entry.model is not None:
            assert isinstance(start, Initialization), "the recipe's own check"
            return Initialization(start.vocabulary, entry.model.beside(start.model))
        return start
    if recipe.trained(entry.start) is None:
        return start_of(recipe, data, entry.start, wanted)
    return trained_by(recipe, entry.start, seed, trained)


def trained_by(recipe: Recipe, name: str, seed: int, trained: Mapping[tuple[str, int], Model]) -> Model:
    """The model of the training `name`; of one with several seeds, that of the same seed."""
    training = recipe.trained(name)
    assert training is not None, "the recipe's own check"
    seeds = recipe.seeds_of(training)
    return trained[recipe.started_by(name), seed if len(seeds) > 1 else seeds[0]]


def plain(settings: S, kind: type[S]) -> S:
    """The fields of `settings` that belong to `kind`, the stage's settings, without the recipe's own."""
    return kind.model_validate({name: getattr(settings, name) for name in kind.model_fields})


def cut(recipe: Recipe, until: Sequence[str]) -> list[Artifact]:
    """The artifacts at which to stop: `regions` (all of them) or `regions[easy_vqa]`; before those that are trained
    or evaluated, whether their photos overlap."""
    whole = walk(graph(recipe), *preprocessed(recipe)[2].values())  # including regions that no training reads
    chosen = [a for name in until for a in select(whole, name)]
    if any(a.stage_name in ("pretrain", "finetune", "evaluate") for a in chosen):
        chosen = [*(a for a in whole if a.stage_name == "overlaps"), *chosen]
    return list({a.fingerprint: a for a in chosen}.values())
