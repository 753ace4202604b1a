"""Published VisualBERTs as artifacts-to-be: by a name in data_specs/models, a folder, or a repository of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.checkpoint import checkpoint
from tasks.download import download
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.data.yaml import is_yaml
from vbert.errors import UserError, nearest
from vbert.model.bert import HubSource, ModelSpec, model_names
from vbert.model.published import (
    PublishedSpec,
    hub_source,
    is_hub,
    is_own,
    is_published,
    published_names,
    published_spec,
    spec_of,
    spec_of_hub,
)
from vbert.objectives.published import CheckpointSettings
from vbert.objectives.trained import Model


def published(where: str, max_positions: int | None = None) -> Model:
    """The model-to-be of a published VisualBERT: a name in data_specs/models or a .yaml of your own, a folder, or a
    repository of the Hugging Face hub at a commit (`uclanlp/visualbert-vqa@e3da2db…`).

    max_positions: rows that its table of positions is extended to. Raises UserError for what is no VisualBERT, with the
    nearest name.

    >>> published("uclanlp_visualbert_vqa").title
    'checkpoint[uclanlp_visualbert_vqa]'
    """
    if is_hub(where):
        spec = spec_of_hub(where)
        if spec is not None:
            return _of_spec(spec, where, hub_source(where), max_positions)
        settings = CheckpointSettings(name=where, form="transformers", max_positions=max_positions)
        return checkpoint(hub_source(where), settings).named(where)
    if is_yaml(where) or where in model_names():
        spec = published_spec(where)
        return _of_spec(spec, spec.name, spec.source, max_positions)
    folder = Path(os.path.expanduser(where))
    if not folder.is_dir():
        near = nearest(where, published_names())
        raise UserError(f"no model {where!r}: neither a name in data_specs/models ({near}) nor a folder")
    if not is_published(where):
        raise UserError(
            f"{where}: no VisualBERT: it holds neither a model written here (head.json, contract.json) nor a "
            "config.json whose model_type is visual_bert"
        )
    form = "vbert" if is_own(folder) else "transformers"
    name = folder.resolve().name
    settings = CheckpointSettings(name=name, form=form, max_positions=max_positions)
    return checkpoint(_files(Source(path=os.path.abspath(folder)), name, "weights"), settings).named(name)


def _of_spec(spec: PublishedSpec, name: str, source: HubSource | Source, max_positions: int | None) -> Model:
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
