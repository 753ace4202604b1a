"""`vbert.run`: the command `vbert run`, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from flows.recipe import Recipe, machine_of, resolve
from vbert.artifacts.making.plan import only, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.store import Store, default_root
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    from flows.running import How

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class Finished:
    """The results of a run.

    `metrics` are those of the report (`vqa/easy_vqa/test/accuracy`), or the figures of the stages that the run was to
    stop at (`regions[shapes]/images`); `warnings` are doubts about trained models; `report` is the page's path, None
    where the run stopped before it. `artifacts` are these and all their inputs, inputs first; one that was no longer
    needed may be absent from the store, and raises an error when it is read.

    >>> done = vbert.run("demo")
    >>> list(done.metrics)
    ['vqa/easy_vqa/test/accuracy', ...]
    >>> model = done.artifact("finetune[vqa]", vbert.Model)
    """

    run_id: str
    metrics: dict[str, float]
    warnings: list[str]
    report: Path | None
    artifacts: tuple[Artifact, ...] = field(repr=False)

    def artifact(self, title: str, kind: type[A]) -> A:
        """The artifact called `title`, as `vbert status` lists them: `regions[easy_vqa]`, or `detector`.

        Raises UserError where there is none, where there are several, and where it is of another kind.
        """
        artifact = only(self.artifacts, title)
        if not isinstance(artifact, kind):
            raise UserError(f"{artifact.title} is of the kind {type(artifact).__name__}, not {kind.__name__}")
        return artifact


def run(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    changes: Mapping[str, Any] | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    until: str | Sequence[str] = (),
    how: How = "auto",
) -> Finished:
    """Build the missing artifacts of a recipe, and print progress on standard error.

    Killed and called again, it goes on. Raises UserError for a mistake in what is given, BuildError where a stage
    fails, both with what to do next.

    >>> done = vbert.run("demo", changes={"seed": 0}, store="store")
    >>> done.report.name
    'report.html'
    >>> done = vbert.run("demo", until="regions[shapes]", how="local")
    >>> done.artifact("regions[shapes]", vbert.Shards).dim
    256

    Args:
        recipe: a shipped recipe's name, a YAML file, or a `vbert.Recipe`.
        changes: dotted fields and their values, `{"pretrain.steps": 600}`; those of `machine` too.
        store: where artifacts are, a directory or URL; else `$VBERT_STORE`, else `./store`.
        until: the stage, or stages, to stop at; else the report.
        how: `local` builds in this process, `prefect` as a flow; `auto` as a flow if something is missing.
    """
    from flows.running import How, RecipeRun
    from flows.runs import metrics, origin

    if how not in get_args(How):
        raise UserError(f"vbert.run: how={how!r}; {nearest(how, get_args(How))}")
    given = recipe if isinstance(recipe, Recipe) else os.fspath(recipe)
    resolved = resolve(given, changes)
    if not isinstance(store, Store):
        store = Store(default_root() if store is None else os.fspath(store))
    stages = [until] if isinstance(until, str) else until
    running = RecipeRun(resolved, store, machine_of(resolved, ()), stages)
    if isinstance(given, Recipe):  # the record holds it whole
        running.run(how, "", None)
    else:
        running.run(how, origin(given), dict(changes or {}))
    targets = [target.bound(store) for target in running.targets]
    pages = [target.file("report.html") for target in targets if target.stage_name == "report"]
    return Finished(
        running.run_id,
        metrics(targets, store),
        running.warnings(),
        pages[0] if pages else None,
        tuple(artifact.bound(store) for artifact in walk(*targets)),
    )
