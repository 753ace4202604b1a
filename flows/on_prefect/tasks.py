"""Steps and their units as Prefect tasks, and the context that the tasks of one flow run share.

A finished step ends Cached. Only fingerprints travel between tasks; nothing of Prefect's caching or result storage is
used: locks, look-ups and resumption are the store's.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from contextvars import copy_context
from ctypes import c_ulong, py_object, pythonapi
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import Any, cast
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff
from prefect.transactions import Transaction
from prefect.utilities.annotations import quote

from flows.on_prefect.dask_units import DaskUnits, dask_units
from flows.on_prefect.view import figures_listed, outcome
from vbert.artifacts.making import workers
from vbert.artifacts.making.engine import Built, Engine
from vbert.artifacts.making.plan import Planned, foresee
from vbert.artifacts.making.work import Work
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures, Machine, Stopped
from vbert.errors import BuildError, Damaged, NotAccepted, UserError

MOST_UNITS = 300  # task runs of one stage; beyond, a task makes several units (a task run costs 5–10 ms and 12 KB)
CANCEL_SEEN = 3.0  # seconds between two checks whether the run is cancelled

# ---------------------------------------------------------------------- tasks


@task(cache_policy=NO_CACHE, persist_result=False)
def step(title: str, fingerprint: str) -> State[str]:
    """A step of the graph: found, adopted or built under our lock. Its state's data is the fingerprint."""
    return _ensured(fingerprint)


@task(cache_policy=NO_CACHE, persist_result=False)
def units(title: str, keys: list[str], works: list[Work]) -> State[list[Figures]]:
    """Some units of a step, each made and committed in a child process, of ours or of a Dask worker.

    The data are their figures.
    """
    return _made(works)


def _ensured(fingerprint: str) -> State[str]:
    # Not in `step` itself: decorated functions are sometimes pickled by value, with the globals they name.
    run = RUNS[str(flow_run.get_id())]
    artifact = run.artifacts[fingerprint]
    _tag(artifact)
    try:
        built = run.ensure(artifact)
        if built is None:
            return Completed(message=f"{artifact.title} can't be made again, and is not needed", data=fingerprint)
    except (Stopped, Exception) as error:
        if not run.stopping and not isinstance(error, Stopped):
            raise
        return Cancelled(message=f"{artifact.title}: stopped; the next run goes on from what is done")
    message = f"{outcome(built)} · {fingerprint} in {run.engine.store.location}"
    return Completed(name="Completed" if built.outcome == "built" else "Cached", message=message, data=fingerprint)


def _made(works: list[Work]) -> State[list[Figures]]:
    run = RUNS[str(flow_run.get_id())]
    try:
        figures = [run.make(work) for work in works]
    except (Stopped, Exception) as error:
        if not run.stopping and not isinstance(error, Stopped):
            raise
        return Cancelled(message="stopped")
    return Completed(message=figures_listed(figures[0]) if len(figures) == 1 else f"{len(figures)} units", data=figures)


def _tag(artifact: Artifact) -> None:
    """Stage and data set, as tags of the task run that calls this; they go to the server with its next state.

    Not as the task's own: for each of those the engine asks the server for a concurrency slot before the task begins,
    and a SQLite server that is asked twice at once answers 503, to be tried again after two seconds (measured).
    """
    context = TaskRunContext.get()
    if context is not None and artifact.step is not None:
        stage = artifact.step.stage
        labels = [artifact.label] if artifact.label else []
        context.task_run.tags = sorted({*context.task_run.tags, stage.name, *labels, *stage.tags})


def _step_again(_: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry: not after a user's mistake or a stage's own error."""
    dead = isinstance(state.data, workers.ChildDied)
    return not _stopping(task_run) and (dead or not isinstance(state.data, UserError | BuildError))


def _unit_again(_: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a unit: a dead child raises BuildError, so these are retried; the step repairs damage."""
    return not _stopping(task_run) and not isinstance(state.data, UserError | Damaged)


def _stopping(task_run: TaskRun) -> bool:
    run = RUNS.get(str(task_run.flow_run_id))
    return run is None or run.stopping


def _step_task(artifact: Artifact, on_gpu: bool) -> Task[..., Any]:
    assert artifact.step is not None
    stage = artifact.step.stage
    return step.with_options(
        name=stage.name,
        description=(stage.function.__doc__ or "").strip() or None,
        task_run_name=f"{artifact.title} {artifact.fingerprint[:6]}",
        tags={"gpu"} if stage.gpus and on_gpu else None,  # `prefect concurrency-limit create gpu 1` bounds these
        retries=stage.retries,
        retry_delay_seconds=exponential_backoff(2)(stage.retries) or 0,
        retry_jitter_factor=0.5,
        retry_condition_fn=_step_again,
    )


def _units_task(title: str, works: Sequence[Work]) -> Task[..., Any]:
    retries = works[0].retries
    return units.with_options(
        name=f"{title.partition('[')[0]} unit",
        task_run_name=f"{title} {works[0].key}" + (f"…{works[-1].key}" if len(works) > 1 else ""),
        retries=retries,
        retry_delay_seconds=exponential_backoff(1)(retries) or 0,
        retry_jitter_factor=0.5,
        retry_condition_fn=_unit_again,
    )


# ---------------------------------------------------------------------- one flow run


@dataclass
class FlowContext:
    """The context that the tasks of one flow run share in this process."""

    engine: Engine
    artifacts: dict[str, Artifact]
    pool: ThreadPoolTaskRunner[Any]  # the one bounded runner for the units of all steps
    dask: DaskUnits | None = None
    spare: frozenset[str] = frozenset()  # fingerprints of steps that are not needed: see `Planned.spare`
    stopping: bool = False
    _threads: dict[str, int] = field(default_factory=dict)  # fingerprint → the thread that builds it
    _units: list[PrefectConcurrentFuture[Any]] = field(default_factory=list)

    def steps(self, lines: Sequence[Planned]) -> None:
        """Submit every step once its inputs are done, finished ones too; at most `steps_at_once` build at a time.

        After a failure no step is started; the failure is raised when the running steps have ended.
        """
        futures: dict[str, PrefectConcurrentFuture[Any]] = {}
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        waiting, done, building = list(lines), set[str](), set[str]()
        has_gpu = _has_gpu(self.engine.machine)
        failed: PrefectConcurrentFuture[Any] | None = None
        refused: NotAccepted | None = None
        while True:
            for line in list(waiting) if failed is None and refused is None else []:
                artifact, fingerprint, present = line.artifact, line.artifact.fingerprint, line.status == "present"
                behind = [source.fingerprint for source in _inputs(artifact) if source.fingerprint in self.artifacts]
                full = len(building) >= self.engine.machine.steps_at_once
                if not done.issuperset(behind) or (full and not present):
                    continue
                waiting.remove(line)
                building |= set() if present else {fingerprint}
                after = [futures[other] for other in behind]
                futures[fingerprint] = cast(
                    "PrefectConcurrentFuture[Any]",
                    _step_task(artifact, has_gpu and not present).submit(artifact.title, fingerprint, wait_for=after),
                )
                futures[fingerprint].add_done_callback(partial(_note, ended, fingerprint))
            if len(done) == len(futures):
                break
            fingerprint = ended.get()
            done.add(fingerprint)
            building.discard(fingerprint)
            state = _final(futures[fingerprint])
            if failed is None and (state is None or not state.is_completed()):
                failed = futures[fingerprint]
            elif refused is None:
                try:
                    foresee(self.artifacts[fingerprint], self.artifacts.values(), self.engine.store)
                except NotAccepted as error:
                    refused = error
        if self.stopping:
            raise Stopped
        if failed is not None:
            failed.result()
        if refused is not None:
            raise refused

    def ensure(self, artifact: Artifact) -> Built | None:
        """`Engine.ensure` (for spare steps, `bring_back`), interrupted by `stop`: then it raises Stopped."""
        self._threads[artifact.fingerprint] = threading.get_ident()
        try:
            if self.stopping:
                raise Stopped
            spare = artifact.fingerprint in self.spare
            return self.engine.bring_back(artifact) if spare else self.engine.ensure(artifact)
        finally:
            self._threads.pop(artifact.fingerprint, None)

    def make_units(self, title: str, works: Sequence[Work], done: Callable[[Figures], None]) -> None:
        """The engine's runner of units: tasks on the shared pool. All end before their step releases its lock."""
        share = ceil(len(works) / MOST_UNITS)
        groups = [works[first : first + share] for first in range(0, len(works), share or 1)]
        token = Transaction.__var__.set(
            cast("Transaction", None)
        )  # otherwise a failed step shows its finished units as RolledBack
        try:
            futures = [self._submit(title, group) for group in groups]
        finally:
            Transaction.__var__.reset(token)
        errors: list[BaseException] = []
        for future in futures:
            state = _final(future)
            if state is not None and state.is_completed():
                for figures in future.result():
                    done(figures)
            elif state is not None:
                errors.append(cast("BaseException", future.result(raise_on_failure=False)))
                for other in futures:
                    other.wrapped_future.cancel()  # running ones continue to their end
        for error in errors:
            if isinstance(error, UserError | Damaged):
                raise error
        if self.stopping:
            raise Stopped
        if errors:
            problem = f"{len(errors)} of {len(futures)} units failed, then no more were begun; the first"
            raise BuildError(f"{title}: {problem}: {errors[0]}") from errors[0]

    def make(self, work: Work) -> Figures:
        return work() if self.dask is None else self.dask.make(work)

    def _submit(self, title: str, works: Sequence[Work]) -> PrefectConcurrentFuture[Any]:
        alone = [replace(work, retries=0) for work in works]  # retries are Prefect's, which shows them
        parameters = {"title": title, "keys": [work.key for work in works], "works": quote(alone)}
        future = self.pool.submit(_units_task(title, works), parameters)
        self._units.append(future)
        return future

    def stop(self) -> None:
        """Stop: children at a checkpoint; waiting and working threads by an exception raised in them."""
        self.stopping = True
        for future in self._units:
            future.wrapped_future.cancel()
        if self.dask is not None:
            self.dask.stop()
        workers.terminate_all()
        began = time.monotonic()
        for second in range(int(workers.GRACE)):
            while self._threads and time.monotonic() < began + second + 1:
                time.sleep(0.02)
            for ident in list(self._threads.values()):
                pythonapi.PyThreadState_SetAsyncExc(c_ulong(ident), py_object(Stopped))


RUNS: dict[str, FlowContext] = {}  # flow run id → its run, for the tasks in this process


@contextmanager
def running(engine: Engine, lines: Sequence[Planned]) -> Iterator[FlowContext]:
    """A `FlowContext` under this flow run's id. An early end stops its steps and children first."""
    run_id = str(flow_run.get_id())
    with _units_on(engine, lines) as dask:
        at_once = engine.machine.units_at_once if dask is None else dask.at_once
        pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=at_once)
        with pool:
            spare = frozenset(line.artifact.fingerprint for line in lines if line.spare)
            artifacts = {line.artifact.fingerprint: line.artifact for line in lines}
            run = RUNS[run_id] = FlowContext(engine, artifacts, pool, dask, spare)
            engine.run_units = run.make_units
            try:
                with _cancellable(run, run_id):
                    yield run
            except BaseException:
                run.stop()
                raise
            finally:
                del RUNS[run_id]


@contextmanager
def _cancellable(run: FlowContext, run_id: str) -> Iterator[None]:
    """Ask the server every few seconds whether the run is cancelled, and stop it then.

    Where a runner or worker started this process, that one does so.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(CANCEL_SEEN):
            with suppress(Exception):  # a server that is away for a moment must not end the work
                state = client.read_flow_run(UUID(run_id)).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    run.stop()
                    return

    with get_client(sync_client=True) as client:
        watcher = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextmanager
def _units_on(engine: Engine, lines: Sequence[Planned]) -> Iterator[DaskUnits | None]:
    """Dask, where the machine's units are to be made there and something is missing."""
    if engine.machine.units_on == "threads" or all(line.status == "present" for line in lines):
        yield None
        return
    with dask_units(engine.machine, lambda sentence: engine.events.message(lines[0].artifact, sentence)) as dask:
        yield dask


def _has_gpu(machine: Machine) -> bool:
    """Whether work on this machine would use a GPU, found out without torch."""
    return machine.device == "cuda" or (machine.device == "auto" and bool(workers.cuda_devices()))


def _inputs(artifact: Artifact) -> list[Artifact]:
    return artifact.step.inputs() if artifact.step else []


def _note(ended: queue.SimpleQueue[str], fingerprint: str, _: object) -> None:
    ended.put(fingerprint)


def _final(future: PrefectConcurrentFuture[Any]) -> State[Any] | None:
    """Wait for the final state; None where the task never started."""
    try:
        future.wait()  # before this, `state` would be the server's current one
    except CancelledError:
        return None
    return future.state
