"""The graph on Prefect: what the four flows do, running one of them here, serving one on a schedule.

The store is the truth; Prefect schedules, retries and shows.
"""

# ruff: noqa: E402

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

HEARTBEAT = 30  # seconds between two signs of life of a flow run, the shortest that Prefect allows

# Set before Prefect's first import. Without internet its telemetry logs errors; the terminal is for our own lines.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
}.items():
    os.environ.setdefault(_name, _value)

import httpx
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.runner import Runner
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.graph import cut, graph
from flows.prefect_tasks import running
from flows.prefect_view import View, logs_to_prefect, show_plan, show_results
from flows.recipe import Recipe, resolve
from vbert.artifacts.artifact import Artifact
from vbert.artifacts.build import Machine
from vbert.artifacts.errors import UserError
from vbert.artifacts.fingerprint import digest
from vbert.artifacts.graph import Built, Engine, Events, Planned, plan, walk
from vbert.artifacts.store import Store
from vbert.artifacts.verified import VARIABLE

# ---------------------------------------------------------------------- the body of the flows


@dataclass
class Here:
    """What a flow that runs in the command's own process is given beside its parameters, and what it gives back."""

    events: Events
    built: list[Built] = field(default_factory=list)


HERE: ContextVar[Here | None] = ContextVar("here", default=None)


def build(
    recipe: str | Recipe,
    changes: Mapping[str, Any] | None,
    store: str,
    machine: Machine | None,
    until: Sequence[str] = (),
) -> dict[str, float]:
    """Build a recipe up to its report, or to those stages of `until` that it has. Returns the metrics."""
    found = resolve(recipe, changes)
    whole = graph(found)
    stages = {name for artifact in walk(whole) for name in (artifact.stage_name, artifact.title)}
    targets = cut(found, [name for name in until if name in stages] or until) if until else [whole]
    return build_targets(targets, Store(store), machine or found.machine, found)


def build_targets(
    targets: Sequence[Artifact], store: Store, machine: Machine, recipe: Recipe | None = None
) -> dict[str, float]:
    """Build what the targets need and lack, within the flow run that this is called in."""
    here = HERE.get()
    title = recipe.name if recipe is not None else targets[0].title
    lines = [line for line in plan(targets, store) if line.status != "unneeded"]
    view = View(here.events if here is not None else Events())
    with logs_to_prefect(), _digests_shared(), _noted(store, recipe, targets, lines):
        show_plan(lines, recipe, title)
        try:
            with running(Engine(store, machine, view), lines) as run:
                run.steps(lines)
        finally:
            if here is not None:
                here.built = list(view.built.values())
        figures = metrics(targets, store)
        show_results(targets, store, figures, title)
    return figures


def metrics(targets: Sequence[Artifact], store: Store) -> dict[str, float]:
    """The numbers of the targets: `vqa/easy_vqa/test/accuracy` of a report, `regions[shapes]/images` of others."""
    found = {}
    for target in targets:
        prefix = "" if target.stage_name in ("report", "evaluate") else f"{target.title}/"
        for name, value in target.bound(store).figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[prefix + name] = value
    return found


def run_name() -> str:
    """`demo · 3fa2c1d0`: the recipe's name and the beginning of its digest; the flow run's name."""
    given = flow_run.get_parameters()
    try:
        recipe = resolve(given["recipe"], given["changes"])
    except UserError:  # the flow's body says so
        return str(given["recipe"])
    return f"{recipe.name} · {digest(recipe.model_dump(mode='json', exclude={'machine'}))[:8]}"


@contextmanager
def _digests_shared() -> Iterator[None]:
    """One file in which all processes of the run note what they have read and found whole."""
    if VARIABLE in os.environ:
        yield
        return
    with tempfile.NamedTemporaryFile(prefix="vbert-verified-") as verified:
        os.environ[VARIABLE] = verified.name
        try:
            yield
        finally:
            del os.environ[VARIABLE]


@contextmanager
def _noted(
    store: Store, recipe: Recipe | None, targets: Sequence[Artifact], lines: Sequence[Planned]
) -> Iterator[None]:
    """The run's record in the store, which `vbert gc` goes by; the command writes its own."""
    if recipe is None or HERE.get() is not None or all(line.status == "present" for line in lines):
        yield
        return
    began = time.time()
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "resolved": recipe.model_dump(mode="json"),
        "targets": [target.fingerprint for target in targets],
        "started": began,
        "kept": False,
        "flow_run": flow_run.get_id(),
    }
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{str(flow_run.get_id())[-8:]}"
    store.prepare()
    store.note_run(run_id, record | {"status": "running"})
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        store.note_run(run_id, record | {"status": outcome, "seconds": time.time() - began})


# ---------------------------------------------------------------------- running a flow here


def run_on_prefect(
    recipe: Recipe, targets: Sequence[Artifact], store: Store, machine: Machine, events: Events
) -> list[Built]:
    """Run the pipeline flow in this process, on the server of `PREFECT_API_URL` or one that lives as long as the run.

    Raises what the first failed step raised, UserError where the server does not answer.
    """
    from flows.pipeline import pipeline

    until = [target.title for target in targets if target.stage_name != "report"]
    with in_this_process(targets, store, events) as here:
        pipeline(recipe, None, str(store.root), machine, until)
    return here.built


@contextmanager
def in_this_process(targets: Sequence[Artifact], store: Store, events: Events) -> Iterator[Here]:
    """Flows called in this context tell `events` what they do and leave in `Here.built` what they built."""
    url = PREFECT_API_URL.value()
    if url:
        _check_server(url)
    else:
        said = "starting a Prefect server for this run alone (10–20 s); `prefect server start` runs one that stays"
        events.said(targets[0], said)
    here = Here(events)
    token = HERE.set(here)
    # The heartbeat's thread is waited for up to a second at the end: not worth it for a run that only looks.
    quick = all(line.status in ("present", "unneeded") for line in plan(targets, store))
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if quick else {}):
            yield here
    finally:
        HERE.reset(token)


def _check_server(url: str) -> None:
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise UserError(
            f"no Prefect server answers at {url} ({type(error).__name__}); start one with `prefect server start`, "
            "unset PREFECT_API_URL, or give --local"
        ) from None


# ---------------------------------------------------------------------- a schedule


def schedule(
    recipe: str, changes: Mapping[str, Any], store: str, machine: Machine, cron: str | None, every: str | None
) -> None:
    """Serve the pipeline of a recipe against a running server, until SIGTERM or Ctrl-C.

    A run that is due while another is at work is left out. Raises UserError where no server runs.
    """
    from flows.pipeline import pipeline

    interval = _interval(every) if every is not None else None
    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "a schedule needs a running Prefect server: `prefect server start`, then set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    _check_server(url)
    _crash_zombies()
    name = Path(recipe).stem
    where = str(Path(recipe).absolute()) if recipe.endswith((".yaml", ".yml")) else recipe
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # for the runs' own processes
    runner = _Served(name=name, query_seconds=2, prefetch_seconds=2)  # looked ahead further, more would be left out
    runner.add_flow(
        pipeline,
        name=name,
        interval=interval,
        cron=cron,
        parameters={"recipe": where, "changes": dict(changes), "store": store, "machine": machine.model_dump()},
        description=f"`{name}` into {store}",
        tags=[name],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )
    due = f"every {every}" if every is not None else f"at {cron}"
    print(f"serving pipeline/{name} on {url}, {due}; Ctrl-C ends it", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        asyncio.run(runner.start())


class _Served(Runner):
    def handle_sigterm(self, *_: Any) -> None:
        """As Ctrl-C, which pauses the schedule and ends its runs. (Prefect's own awaits nothing that it stops.)"""
        signal.raise_signal(signal.SIGINT)


def _interval(every: str) -> timedelta:
    """`5s`, `30m`, `12h`, `1d`, `2w`."""
    found = re.fullmatch(r"(\d+) *([smhdw])", every.strip())
    if found is None or int(found[1]) == 0:
        raise UserError(f"--every {every!r}: give a number and a unit, for example 30m, 12h or 1d")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[found[2]]
    return timedelta(**{unit: int(found[1])})


def _crash_zombies() -> None:
    """Have the server mark a flow run as crashed when its heartbeats end without an end; made once a server."""
    name = "vbert: a run without heartbeats has crashed"
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(name):
            return
    ends = ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")
    Automation(
        name=name,
        description=f"Flow runs whose process was killed; signs of life come every {HEARTBEAT} s",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={f"prefect.flow-run.{end}" for end in ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its process is gone")],
    ).create()
