"""The body of the four flows: plan, run the steps as tasks, and show recipe, plan and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from textwrap import shorten
from typing import Any, ParamSpec, cast

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.graph import cut, graph
from flows.on_prefect.tasks import running
from flows.on_prefect.view import PrefectView, fill_plan, logs_to_prefect, show_plan, show_results, tag_run
from flows.recipe import Recipe, resolve
from flows.runs import metrics, origin, record_run, run_id
from vbert.artifacts.making.engine import Built, Engine, Events
from vbert.artifacts.making.plan import Planned, plan, refuse, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.stage import Machine, Stopped
from vbert.artifacts.store.digests import digests_shared
from vbert.artifacts.store.store import Store, default_root
from vbert.errors import UserError

P = ParamSpec("P")


@dataclass
class InProcess:
    """Input and output of a flow that runs in the command's own process, beside its parameters."""

    events: Events
    changes: Mapping[str, Any] = field(default_factory=dict)  # the recipe's changes on the command line
    stopped: BaseException | None = None  # the exception that cancelled the run
    built: list[Built] = field(default_factory=list)


IN_PROCESS: ContextVar[InProcess | None] = ContextVar("in_process", default=None)


def _cancelled_if_stopped(body: Callable[P, dict[str, float]]) -> Callable[P, dict[str, float]]:
    """End a flow that Ctrl-C or the server stops as Cancelled."""

    @wraps(body)
    def cancellable(*args: P.args, **kwargs: P.kwargs) -> dict[str, float]:
        try:
            return body(*args, **kwargs)
        except (Stopped, KeyboardInterrupt) as stopped:
            caller = IN_PROCESS.get()
            if caller is not None:
                caller.stopped = stopped
            how = "Ctrl-C" if isinstance(stopped, KeyboardInterrupt) else "cancelled"
            state: State[Any] = Cancelled(message=f"{how}: finished work is kept; the next run goes on from there")
            return cast("dict[str, float]", state)  # a flow ends in the state that it returns

    return cancellable


@_cancelled_if_stopped
def build(
    recipe: str | Recipe,
    changes: Mapping[str, Any] | None,
    store: str,
    machine: Machine | None,
    until: Sequence[str] = (),
) -> dict[str, float]:
    """Build a recipe up to its report, or to those stages of `until` that it has. Returns the metrics.

    store: "" is the command's own, `$VBERT_STORE` or ./store.
    """
    resolved = resolve(recipe, changes)
    whole = graph(resolved)
    stages = {name for artifact in walk(whole) for name in (artifact.stage_name, artifact.title)}
    targets = cut(resolved, [name for name in until if name in stages] or until) if until else [whole]
    record_fields: dict[str, Any] = {"until": until}
    if isinstance(recipe, str):
        record_fields |= {"source": origin(recipe), "changes": changes or {}}
    return build_targets(targets, Store(store or default_root()), machine or resolved.machine, resolved, record_fields)


@_cancelled_if_stopped
def build_targets(
    targets: Sequence[Artifact],
    store: Store,
    machine: Machine,
    recipe: Recipe | None = None,
    record_fields: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Build the targets' missing steps within the current flow run; `asked`: further fields of its record."""
    caller = IN_PROCESS.get()
    title = recipe.name if recipe is not None else targets[0].title
    lines = [line for line in plan(targets, store) if line.status != "unneeded"]
    view = PrefectView(caller.events if caller is not None else Events())
    with logs_to_prefect(), digests_shared(), _recorded(store, recipe, targets, lines, record_fields or {}):
        tag_run(changes_listed((record_fields or {}).get("changes")))
        table = show_plan(lines, recipe, title, store)
        refuse(lines)
        try:
            with running(Engine(store, machine, view), lines) as run:
                run.steps(lines)
        finally:
            if caller is not None:
                caller.built = list(view.built.values())
            fill_plan(table, lines, view.built)
        figures = metrics(targets, store)
        show_results(targets, store, figures, title)
    return figures


def changes_listed(changes: Mapping[str, Any] | None) -> list[str]:
    """`["seed=1"]`: the recipe's changes, by the flow's parameter or on the command line."""
    caller = IN_PROCESS.get()
    given = {**(caller.changes if caller is not None else {}), **(changes or {})}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def run_name() -> str:
    """`demo · 3fa2c1d0 · seed=1`: the recipe's name, the beginning of its digest, its changes; the flow run's name."""
    given = flow_run.get_parameters()
    try:
        recipe = resolve(given["recipe"], given["changes"])
    except UserError:  # the flow's body raises it
        return str(given["recipe"])
    recipe_digest = digest(recipe.model_dump(mode="json", exclude={"machine"}))[:8]
    changes = shorten(" ".join(changes_listed(given["changes"])), 80, placeholder=" …")
    return f"{recipe.name} · {recipe_digest}" + (f" · {changes}" if changes else "")


@contextmanager
def _recorded(
    store: Store,
    recipe: Recipe | None,
    targets: Sequence[Artifact],
    lines: Sequence[Planned],
    record_fields: Mapping[str, Any],
) -> Iterator[None]:
    """The run's record in the store, where the command doesn't write its own."""
    if recipe is None or IN_PROCESS.get() is not None:
        yield
        return
    run = run_id(recipe.name, str(flow_run.get_id())[-8:])
    builds = any(line.status != "present" for line in lines)
    with record_run(store, run, recipe, targets, builds, **record_fields, flow_run=flow_run.get_id()):
        yield
