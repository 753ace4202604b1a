"""Units on Dask: a thread waits for a unit as for a child process, and a worker makes the unit in a child.

The task runs stay with the flow, in its process: a worker needs the store and this checkout, but no Prefect and no way
to its server. (`prefect-dask` runs Prefect's engine in every worker instead; its futures are gone as soon as they are
cancelled, even with units at work, so that the step's lock could not wait for them.)
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vbert.artifacts.making import workers
from vbert.artifacts.making.work import Work, run_works
from vbert.artifacts.making.workers import CALLER, DEVICES, ChildDied
from vbert.artifacts.steps.stage import Figures, Machine
from vbert.errors import BuildError, UserError

if TYPE_CHECKING:
    from distributed import Client, Future

SECONDS = 10  # for a scheduler to answer


def check_installed(machine: Machine) -> None:
    """Raises UserError where Dask, on which the machine's units are to be made, is not installed."""
    if find_spec("distributed") is None:
        raise UserError(
            f"machine.units_on is {machine.units_on}, but Dask is not installed: `pip install -e '.[dask]'` in the "
            "checkout brings it (with `-c constraints.txt`, the versions tested); or set units_on to threads"
        )


@dataclass
class DaskUnits:
    """Makes the units of one run on Dask. Its methods may be called from several threads."""

    client: Client
    at_once: int  # units submitted to the scheduler at a time
    ours: bool  # the cluster was made for this run
    _caller: str = field(default_factory=lambda: uuid.uuid4().hex)
    _futures: set[Future[Any]] = field(default_factory=set)
    _stopping: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)

    def make(self, work: Work) -> Figures:
        """Runs `work()` on a worker. The scheduler replaces a dead worker; after several deaths ChildDied is raised."""
        from distributed.scheduler import KilledWorker

        at = self.client.scheduler.address if self.client.scheduler else "its address"
        try:
            if self._stopping or self.client.status != "running":
                raise CancelledError
            # Bytes, since Dask searches arguments for its own futures.
            key = f"{work.key}-{uuid.uuid4().hex}"
            future = self.client.submit(made, pickle.dumps(work), self._caller, self.ours, key=key, pure=False)
            self._futures.add(future)
            try:
                return future.result()
            finally:
                self._futures.discard(future)
        except KilledWorker as error:
            died = f"{error.allowed_failures + 1} Dask workers in a row died at it (out of memory?)"
            raise ChildDied(f"unit {work.key}: {died}; the last was {error.last_worker.address}") from None
        except CancelledError:
            if self._stopping:
                self._stopped.wait()  # its worker may still be at work, and the caller's lock must last until its end
                raise BuildError(f"unit {work.key}: stopped") from None
            raise BuildError(f"unit {work.key}: the Dask scheduler at {at} is gone; finished units are kept") from None

    def stop(self) -> None:
        """Stop this run's units and end their children; returns when none is at work on any worker."""
        self._stopping = True
        try:
            if self.client.status == "running":  # otherwise the scheduler is gone, and so are its workers
                self.client.cancel(list(self._futures))  # type: ignore[no-untyped-call]
                self.client.run(leave_off, self._caller, on_error="ignore")
        except (OSError, CancelledError):  # gone by now
            pass
        finally:
            self._stopped.set()

    def run_works(self, title: str, works: Sequence[Work], done: Callable[[Figures], None]) -> None:
        """The engine's runner of units where there is no Prefect."""
        run_works(title, works, done, self.make, self.at_once)


@contextmanager
def dask_units(machine: Machine, say: Callable[[str], None]) -> Iterator[DaskUnits]:
    """Dask as `machine.units_on` has it: a cluster of `units_at_once` workers that ends with the context, or a
    scheduler that runs already, with all its workers' threads.

    Raises UserError where Dask is not installed or no scheduler answers.
    """
    check_installed(machine)
    from distributed import LocalCluster

    ours = machine.units_on == "dask"
    if ours:
        # Over TLS with keys of its own: whoever reaches a scheduler can run any code as its user.
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=machine.units_at_once,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls",
            security=True,
            dashboard_address=None,
            memory_limit=0,  # the work is in the workers' children, which the limit would not see
        )
    else:
        cluster = None
    try:
        with _client(machine.units_on if cluster is None else cluster) as client:
            threads = sum(client.nthreads().values())
            if threads == 0:
                say(f"no worker at {machine.units_on} yet; `dask worker {machine.units_on}` starts one")
            units = DaskUnits(client, machine.units_at_once if ours else max(threads, machine.units_at_once), ours)
            try:
                yield units
            finally:
                units.stop()  # also at the end of the work: idle children would occupy memory of a shared worker
    finally:
        if cluster is not None:
            cluster.close()


def _client(at: Any) -> Client:
    from distributed import Client

    try:
        return Client(at, timeout=SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise UserError(
            f"no Dask scheduler answers at {at} ({type(error).__name__}); `dask scheduler` starts one, "
            f"`dask worker {at}` its workers; or set units_on to dask or threads"
        ) from None


# ---------------------------------------------------------------------- in a worker

_at_work: list[str] = []  # the callers whose units are being made in this process
_stopped: set[str] = set()  # callers that have stopped


def made(work: bytes, caller: str, ours: bool) -> Figures:
    """Make a unit in a child of this worker, which keeps one child a thread."""
    from distributed import get_worker

    worker = get_worker()
    unit: Work = pickle.loads(work)
    if not unit.unfinished.is_dir():
        host = socket.gethostname()
        raise UserError(
            f"the Dask worker on {host} does not see the store ({unit.unfinished}): give all workers the same path"
        )
    devices = workers.cuda_devices()
    if ours and len(devices) > 1:  # the workers of our own cluster are numbered
        os.environ[DEVICES] = devices[int(worker.name) % len(devices)]
    _at_work.append(caller)
    token = CALLER.set(caller)
    try:
        if caller in _stopped:
            raise BuildError(f"unit {unit.key}: stopped")
        return replace(unit, machine=unit.machine.model_copy(update={"units_at_once": worker.state.nthreads}))()
    finally:
        CALLER.reset(token)
        _at_work.remove(caller)


async def leave_off(caller: str) -> None:
    """End the children of this caller, those at work too; returns when none of its units is being made here."""
    _stopped.add(caller)
    while True:
        await asyncio.to_thread(workers.terminate_all, caller)
        if caller not in _at_work:
            return
        await asyncio.sleep(0.05)
