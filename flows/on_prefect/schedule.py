"""Serving the pipeline of a recipe on a schedule."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL

from flows.on_prefect import HEARTBEAT
from flows.on_prefect.dask_units import check_installed
from flows.on_prefect.in_process import check_server
from flows.runs import origin
from vbert.artifacts.steps.stage import Machine
from vbert.errors import UserError


def schedule(
    pipeline: Flow[..., dict[str, float]],
    recipe: str,
    changes: Mapping[str, Any],
    store: str,
    machine: Machine,
    cron: str | None,
    every: str | None,
) -> None:
    """Serve the flow `pipeline` of a recipe against a running server, until SIGTERM or Ctrl-C.

    A run that is due while another runs is skipped. Raises UserError where no server runs.
    """
    interval = _interval(every) if every is not None else None
    if machine.units_on != "threads":
        check_installed(machine)
    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "a schedule needs a running Prefect server: `prefect server start`, then set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    check_server(url)
    _crash_zombies()
    name = Path(recipe).stem
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # for the runs' own processes
    runner = StoppableRunner(
        name=name, query_seconds=2, prefetch_seconds=2
    )  # with a longer look-ahead more runs would be skipped
    runner.add_flow(
        pipeline,
        name=name,
        interval=interval,
        cron=cron,
        parameters={
            "recipe": origin(recipe),
            "changes": dict(changes),
            "store": store,
            "machine": machine.model_dump(),
        },
        description=f"`{name}` into {store}",
        tags=[name],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )
    due = f"every {every}" if every is not None else f"at {cron}"
    print(f"serving pipeline/{name} on {url}, {due}; Ctrl-C ends it", file=sys.stderr, flush=True)
    runner.serve()


class StoppableRunner(Runner):
    """Prefect's runner, ended by SIGTERM as by Ctrl-C: the schedule is paused and its runs are ended.

    (Prefect's own handler stops the event loop that it interrupts, and once had not ended after 30 s.)
    """

    def serve(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        with suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._end = partial(loop.call_soon_threadsafe, task.cancel)
        await self.start()

    def handle_sigterm(self, *_: Any) -> None:
        self._end()


def _interval(every: str) -> timedelta:
    """`5s`, `30m`, `12h`, `1d`, `2w`."""
    match = re.fullmatch(r"(\d+) *([smhdw])", every.strip())
    if match is None or int(match[1]) == 0:
        raise UserError(f"--every {every!r}: give a number and a unit, for example 30m, 12h or 1d")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def _crash_zombies() -> None:
    """Create the server's automation that marks a flow run without heartbeats as crashed; once a server."""
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
