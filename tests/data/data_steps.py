"""Steps of the data stages, and their building."""

from __future__ import annotations

from typing import Any

from tasks.download import download
from tasks.examples import examples
from tasks.images import images
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.store import Store
from vbert.data.examples import Examples
from vbert.data.images import Images
from vbert.data.spec import DatasetSpec


def described(spec: DatasetSpec, limit: int | None = None) -> tuple[Images, Examples]:
    """The data set's artifacts-to-be, as the graph makes them."""
    of = spec.collection()
    photos = {name: download(of.sources[name].pinned()).named(name) for name in of.read_by("images")}
    texts = {name: download(spec.sources[name].pinned()).named(name) for name in spec.read_by("examples")}
    index = images(photos, of.reader("images"), limit, of.reading("images"))
    return index, examples(texts, index, spec.reader("examples"), spec.reading("examples"))


def built(store: Store, *wanted: Artifact, workers: int = 1) -> list[Any]:
    Engine(store, Machine(loader_workers=workers)).ensure_all(wanted)
    return [artifact.bound(store) for artifact in wanted]


def same(found: object, golden: str, where: str) -> None:
    assert digest(found) == golden, (
        f"{where} makes something else: raise the version there, then put {digest(found)} here"
    )
