"""Models by a name in data_specs/models, a folder, an artifact's path or a repository of the hub: as artifacts-to-be,
and ready to be asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Self, TypeVar, cast

from tasks.checkpoint import checkpoint
from tasks.download import download
from tasks.weights import weights
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.store import Store, default_root
from vbert.data.names import given_path
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.data.yaml import is_yaml
from vbert.errors import UserError, near
from vbert.export.folder import DETECTOR, is_export
from vbert.inference import visualbert
from vbert.inference.elsewhere import REPOSITORIES
from vbert.inference.found import found
from vbert.model.bert import COMMIT, HubSource, ModelSpec, model_names
from vbert.model.published import (
    PublishedSpec,
    hub_source,
    is_hub,
    is_own,
    is_published,
    published_spec,
    spec_of,
    spec_of_hub,
)
from vbert.objectives.published import CheckpointSettings
from vbert.objectives.trained import Model
from vbert.regions.detector import DetectorWeights, detector_file, detector_names


def published(where: str, max_positions: int | None = None, wanted: str | None = None) -> Model:
    """The model-to-be of a published VisualBERT: a name in data_specs/models or a .yaml of your own, a folder, or a
    repository of the Hugging Face hub at a commit (`uclanlp/visualbert-vqa@e3da2db…`).

    max_positions: rows that its table of positions is extended to. wanted: the objective that it must have a head for.
    Raises UserError for what is no VisualBERT, with the nearest name.

    >>> published("uclanlp_visualbert_vqa").title
    'checkpoint[uclanlp_visualbert_vqa]'
    """
    if is_hub(where):
        spec = spec_of_hub(where)
        if spec is not None:
            return _of_spec(spec, where, hub_source(where), max_positions, wanted)
        settings = CheckpointSettings(name=where, form="transformers", max_positions=max_positions, wanted=wanted)
        return checkpoint(hub_source(where), settings).named(where)
    if is_yaml(where) or where in model_names():
        spec = published_spec(where)
        return _of_spec(spec, spec.name, spec.source, max_positions, wanted)
    folder = Path(os.path.expanduser(where))
    if not folder.is_dir():
        raise unknown(where)
    if not is_published(where):
        raise UserError(
            f"{where}: no VisualBERT: it holds neither a model written here (head.json, contract.json) nor a "
            "config.json whose model_type is visual_bert"
        )
    form = "vbert" if is_own(folder) else "transformers"
    name = folder.resolve().name
    called = "model" if form == "vbert" else name  # an exported folder is known by its content alone
    settings = CheckpointSettings(name=called, form=form, max_positions=max_positions, wanted=wanted)
    source = Source(path=os.path.abspath(folder), file=called)
    return checkpoint(_files(source, name, "weights"), settings).named(name)


def unknown(where: str) -> UserError:
    """The error for what is no model at all; it knows repositories of the hub that have a spec, or lack a commit."""
    from flows.recipe import recipe_names

    repository = "/".join(Path(where).parts[-2:])
    of_hub = spec_of_hub(f"{repository}@{'0' * COMMIT}") if is_hub(f"{repository}@{'0' * COMMIT}") else None
    if of_hub is not None:
        return UserError(
            f"no folder {where}; of the repository {repository} on the hub write {of_hub.name}, the spec of it, or "
            f"give its commit: {repository}@COMMIT"
        )
    alike = near(repository.replace("/", "_").replace("-", "_"), model_names())
    hints = [alike] if alike.startswith("near") else []
    if "/" in where:
        hints.append("of the Hugging Face hub write OWNER/NAME@COMMIT")
    if where in recipe_names():
        hints = [f"{where} is a recipe: `vbert path {where} 'finetune[ENTRY]'` names the folder of a model of it"]
    said = "".join(f"; {hint}" for hint in hints)
    return UserError(f"{where}: no such folder, and no model of that name in data_specs/models{said}")


def _of_spec(
    spec: PublishedSpec, name: str, source: HubSource | Source, max_positions: int | None, wanted: str | None
) -> Model:
    settings = CheckpointSettings(
        name=name,
        form=spec.form,
        objective=spec.objective,
        semantics=spec.semantics,
        contract=spec.contract(),
        labels=spec.labels,
        positive=spec.positive,
        answers_digest=spec.answers.digest if spec.answers else None,
        sizes=spec.sizes,
        max_positions=max_positions,
        wanted=wanted,
    )
    words = None if spec.vocabulary is None else spec_of(spec.vocabulary)
    if words is not None and not isinstance(words, ModelSpec):
        raise UserError(f"{spec.name}: vocabulary: {spec.vocabulary} is no BERT; name one")
    return checkpoint(
        source if isinstance(source, HubSource) else _files(source, spec.name, "weights"),
        settings,
        None if words is None else _of_bert(words),
        None if spec.answers is None else _files(spec.answers.source, spec.name, "answers"),
    ).named(name)


def _of_bert(spec: ModelSpec) -> RawFiles | HubSource:
    return spec.source if isinstance(spec.source, HubSource) else _files(spec.source, spec.name, "vocabulary")


def _files(source: Source, name: str, what: str) -> RawFiles:
    return download(source.placed(None, f"{name} {what}", of="model").pinned()).named(
        name if what == "weights" else f"{name} {what}"
    )


class VisualBert(visualbert.VisualBert):
    __doc__ = visualbert.VisualBert.__doc__

    store: Store | None = None  # where a model that was given by its name is kept

    @classmethod
    def load(cls, where: str | os.PathLike[str], *, device: str = "auto", store: str | None = None) -> Self:
        """From an exported folder; the path of an artifact of the stages `finetune`, `pretrain` or `checkpoint`, whose
        detector its store knows; a name in data_specs/models, or a repository of the Hugging Face hub at a commit.
        Raises UserError for anything else, with the nearest name.

        device: auto (a GPU if there is one), cpu or cuda. store: where the model of a name is kept, once fetched; by
        default `$VBERT_STORE`, else `./store`.
        """
        text = given_path(where, "the model")
        if Path(text).is_dir() and (is_export(Path(text)) or not is_published(text) or is_own(Path(text))):
            return super().load(text, device=device)
        if (instead := REPOSITORIES.get(text)) is not None:
            raise UserError(f"there is no model {text!r}, on the hub either; the nearest is {instead}")
        model = built(published(text), Store(store or default_root()))
        asked = cls(model, None, device)
        asked.store = model.store
        return asked

    def detector_of(self) -> DetectorWeights | None:
        """Of a published model the detector that its contract names, fetched when the first image is given."""
        name = self.contract.detector
        if self.detector is None and self.store is not None and name in detector_names():
            file = detector_file(name)
            if file.import_only is None:
                raws = {key: download(source.pinned()).named(f"{name} {key}") for key, source in file.weights.items()}
                self.detector = built(weights(raws, file.spec()).named(name), self.store)
        return self.detector


A = TypeVar("A", bound=Artifact)


def built(artifact: A, store: Store) -> A:
    """The artifact, built in the store if it isn't there."""
    from flows.terminal import Terminal
    from vbert.artifacts.making.engine import Engine
    from vbert.artifacts.steps.stage import Machine

    if store.manifest(artifact.stage_name, artifact.fingerprint) is None:
        with Terminal() as terminal:
            Engine(store, Machine(), terminal).ensure_all([artifact])
    return artifact.bound(store)


class ModelInStore(NamedTuple):
    """A model and its detector as artifacts, or artifacts-to-be, of a store; `read`: the model as it is now."""

    store: Store
    model: Model
    detector: DetectorWeights
    read: Model


def model_in(where: str, store: str | None) -> ModelInStore:
    """where: an exported folder, or the path of an artifact of the store. Raises UserError where the model's detector
    isn't known."""
    path = Path(where)
    read, detector = found(path)
    if detector is None:
        raise UserError(
            f"{where}: the detector of its features isn't known, or not in its store: no image can be looked at"
        )
    if is_export(path):
        raw = download(Source(path=os.path.abspath(path / DETECTOR)).pinned()).named("detector")
        looks = weights({"weights": raw}, detector.spec()).named(detector.spec().name)
        return ModelInStore(Store(store or default_root()), published(where), looks, read)
    model, looked = cast(Model, Model.at(path).made()), cast(DetectorWeights, detector.made())
    at = model.store
    assert at is not None
    if store is not None and Store(store).location != at.location:
        raise UserError(f"{where} is of the store {at.location}: leave out --store, or export it and give that folder")
    return ModelInStore(at, model, looked, read)
