"""Running a flow in this process, on a running server or on one that lives as long as the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from prefect import Flow
from prefect.context import get_settings_context
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.on_prefect import own_server, profiles
from flows.on_prefect.body import IN_PROCESS, InProcess
from flows.recipe import Recipe
from vbert.artifacts.making.engine import Built, Events
from vbert.artifacts.making.plan import plan
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Machine, Stopped
from vbert.artifacts.store.store import Store
from vbert.errors import UserError


def run_on_prefect(
    pipeline: Flow[..., dict[str, float]],
    recipe: Recipe,
    targets: Sequence[Artifact],
    store: Store,
    machine: Machine,
    events: Events,
    changes: Mapping[str, Any] | None = None,
) -> list[Built]:
    """Run the flow `pipeline` in this process, on the server of `PREFECT_API_URL` or one that lives as long as the run.

    `changes` are those that made the recipe, for the run's name and tags. Raises the error of the first failed step,
    Stopped where the run was cancelled, UserError where the server does not answer.
    """
    until = [target.title for target in targets if target.stage_name != "report"]
    with in_this_process(targets, store, events, changes) as caller:
        pipeline(recipe, None, store.location, machine, until)
    return caller.built


@contextmanager
def in_this_process(
    targets: Sequence[Artifact], store: Store, events: Events, changes: Mapping[str, Any] | None = None
) -> Iterator[InProcess]:
    """Flows called in this context report to `events` and put their results into `InProcess.built`."""
    url = PREFECT_API_URL.value()
    if url:
        own_server.stop_unneeded()
        check_server(url)
    else:
        message = "starting a Prefect server for this run alone (10–20 s); `prefect server start` runs one that stays"
        events.message(targets[0], message)
        own_server.start(partial(events.message, targets[0]))
    caller = InProcess(events, changes or {})
    token = IN_PROCESS.set(caller)
    # The heartbeat's thread is waited for up to a second at the end: not worth it for a run that only looks.
    quick = all(line.status in ("present", "unneeded") for line in plan(targets, store))
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if quick else {}):
            yield caller
    except CancelledRun:
        raise caller.stopped or Stopped from None
    finally:
        IN_PROCESS.reset(token)


def check_server(url: str) -> None:
    """Raises UserError where no Prefect server answers at `url`."""
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UserError(
            f"no Prefect server answers at {url} ({type(error).__name__}); start one with `prefect server start`, "
            f"{_unset()}, or give --local"
        ) from None


def _unset() -> str:
    """The command that removes the server's URL from a variable or a profile."""
    if "PREFECT_API_URL" in os.environ:
        return "unset PREFECT_API_URL"
    profile = get_settings_context().profile
    return f"`prefect config unset PREFECT_API_URL` (it stands in the profile {profile.name!r} of {profiles()})"
