"""The pool: long-lived child processes that run functions for a builder, and die with it.

A child is a fresh interpreter (`python -m vbert.artifacts.making.worker_main`): nothing of the parent's memory, threads
or `__main__` comes along. Functions and arguments travel as pickles between processes of one user over a socket pair.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vbert.artifacts.making.worker_main import PARENT_PATH
from vbert.errors import BuildError

GRACE = 30.0  # seconds a child has to write its checkpoint after SIGTERM
DEVICES = "CUDA_VISIBLE_DEVICES"
CALLER: ContextVar[str] = ContextVar("caller", default="")  # whose calls these are, where a process serves several


class ChildDied(BuildError):
    """A child ended without an answer: killed, out of memory, or crashed in native code."""


class Overdue(BuildError):
    """A call was not answered before its deadline. (A TimeoutError would be the function's own.)"""


_alive: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """One child process; one call at a time. Of the CUDA devices it sees `device` alone, where one is given."""

    def __init__(self, device: str | None = None) -> None:
        self.device, self.caller = device, ""
        self.made_units = False  # and so keeps what units want loaded
        ours, theirs = socket.socketpair()
        alive, self._lifeline = os.pipe()  # the child sees its end close when this process is gone, however it went
        environment = os.environ | {PARENT_PATH: os.pathsep.join(p or os.getcwd() for p in sys.path)}
        environment |= {} if device is None else {DEVICES: device}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vbert.artifacts.making.worker_main", str(theirs.fileno()), str(alive)],
            pass_fds=(theirs.fileno(), alive),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        os.close(alive)
        self._connection = Connection(ours.detach())
        _alive.add(self)

    def start(self, function: Callable[..., Any], arguments: tuple[Any, ...], env: Mapping[str, str]) -> None:
        self.caller = CALLER.get()
        try:
            self._connection.send_bytes(pickle.dumps((function, arguments, dict(env), _umask())))
        except (OSError, EOFError):
            raise ChildDied(self._epitaph()) from None

    def result(self, progress: Callable[..., None] | None, deadline: float | None) -> Any:
        """The started call's result; its exception is raised here. Raises ChildDied, Overdue."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not wait([self._connection], left):
                raise Overdue(f"no answer from child process {self.process.pid} in time")
            try:
                kind, value = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                raise ChildDied(self._epitaph()) from None
            if kind == "progress":
                if progress is not None:
                    progress(*value[0], **value[1])
            elif kind == "done":
                return value
            else:
                raise value

    def _epitaph(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code is None:
            return f"child process {self.process.pid} closed its connection"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
        else:
            how = f"ended with exit code {code}"
        return f"child process {self.process.pid} {how}"

    def close(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        self._connection.close()
        with suppress(OSError):
            os.close(self._lifeline)
            self._lifeline = -1


class Workers:
    """Workers kept for the next call, at most `keep` idle ones: what they have loaded (torch, a detector) stays.

    With `devices`, child i sees number i mod n of them alone, and one that replaces a dead child sees that one's.
    """

    def __init__(self, keep: int, devices: Sequence[str] = ()) -> None:
        self._keep = keep
        self._devices = devices
        self._idle: list[Worker] = []
        self._all: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._lock = threading.Lock()

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        progress: Callable[..., None] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """One call in one child, which may keep what it loads. Raises what the function raises, ChildDied, Overdue."""
        with self.borrowed(1) as (child,):
            child.made_units = True
            child.start(function, arguments, {})
            return child.result(progress, None if timeout is None else time.monotonic() + timeout)

    @contextmanager
    def borrowed(self, count: int) -> Iterator[list[Worker]]:
        """`count` children, started where none is idle; after an exception they are not used again."""
        with self._lock:
            idle = [self._idle.pop() for _ in range(min(count, len(self._idle)))]
        children = [child for child in idle if child.process.poll() is None]
        for child in idle:
            if child not in children:
                child.close()  # died between two calls
        try:
            while len(children) < count:
                children.append(self._new())
            yield children
        except BaseException:
            for child in children:
                child.close()
            raise
        with self._lock:
            room = max(0, self._keep - len(self._idle))
            self._idle += children[:room]
        for child in children[room:]:
            child.close()

    def _new(self) -> Worker:
        with self._lock:
            taken = [child.device for child in self._all if child.process.poll() is None]
            child = Worker(min(self._devices, key=taken.count, default=None))
            self._all.add(child)
            return child

    def release(self) -> None:
        """Idle children that have made units go, and what they keep on a device with them."""
        with self._lock:
            idle = [child for child in self._idle if child.made_units]
            self._idle = [child for child in self._idle if not child.made_units]
        for child in idle:
            child.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()


_pools: dict[tuple[int, tuple[str, ...]], Workers] = {}
_pools_lock = threading.Lock()


def pool(count: int, devices: Sequence[str] = ()) -> Workers:
    """This process's children: torch and a detector are loaded once and used by every stage.

    With several `devices` (CUDA), each child sees one of them; these children are not used for other calls.
    """
    pinned = tuple(devices) if len(devices) > 1 else ()
    with _pools_lock:
        return _pools.setdefault((count, pinned), Workers(count, pinned))  # no process starts before its first call


def release() -> None:
    """A detector that idle children keep for the next unit would take room on a GPU from what comes now."""
    with _pools_lock:
        pools = list(_pools.values())
    for each in pools:
        each.release()


def terminate(children: Sequence[Worker]) -> None:
    """Ask all to leave off at a checkpoint, then wait for them; those that take too long are killed."""
    for child in children:
        with suppress(OSError):
            child.process.terminate()
    deadline = time.monotonic() + GRACE  # of all together: whoever asked waits no longer for several
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.close()


def terminate_all(caller: str | None = None) -> None:
    """Have every child of this process leave off, whoever borrowed it: for a run that is stopped from outside.

    With `caller`, those that its calls were the last to use.
    """
    running = [child for child in list(_alive) if child.process.poll() is None]
    terminate([child for child in running if caller in (None, child.caller)])


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Variables that torch.distributed reads (its `env://` rendezvous); none for one process."""
    if world == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, by the names CUDA_VISIBLE_DEVICES takes; told without torch."""
    named = os.environ.get(DEVICES)
    if named is None:
        return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _umask() -> int | None:
    """This process's umask, told without changing it; None where the system doesn't say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("Umask:")[2].split()[0], 8)
    return None


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
