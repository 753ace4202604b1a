"""Long-lived child processes that run functions for a builder, and die with it.

A child is a fresh interpreter (`python -m vbert.artifacts.children`), so nothing of the parent's memory, threads or
`__main__` comes along. Functions and arguments travel as pickles between processes of one user over a socket pair.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from vbert.artifacts.errors import BuildError

PARENT_PATH = "VBERT_PARENT_PATH"
GRACE = 30.0  # seconds a child has to write its checkpoint after SIGTERM


class ChildDied(BuildError):
    """A child ended without an answer: killed, out of memory, or crashed in native code."""


class Stopped(BaseException):
    """SIGTERM came, and the work left off at a checkpoint; the same command goes on from there."""


class Child:
    """One child process; one call at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        alive, self._lifeline = os.pipe()  # the child sees its end close when this process is gone, however it went
        environment = os.environ | {PARENT_PATH: os.pathsep.join(p or os.getcwd() for p in sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vbert.artifacts.children", str(theirs.fileno()), str(alive)],
            pass_fds=(theirs.fileno(), alive),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        os.close(alive)
        self._connection = Connection(ours.detach())

    def start(self, function: Callable[..., Any], arguments: tuple[Any, ...], env: Mapping[str, str]) -> None:
        try:
            self._connection.send_bytes(pickle.dumps((function, arguments, dict(env))))
        except (OSError, EOFError):
            raise ChildDied(self._epitaph()) from None

    def result(self, progress: Callable[..., None] | None, deadline: float | None) -> Any:
        """The started call's result; its exception is raised here. Raises ChildDied, TimeoutError."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not wait([self._connection], left):
                raise TimeoutError
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

    def terminate(self) -> None:
        """Ask it to leave off at a checkpoint; kill it when it takes too long."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.close()

    def close(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        self._connection.close()
        with suppress(OSError):
            os.close(self._lifeline)
            self._lifeline = -1


class Children:
    """At most `count` children; a call takes an idle one, a dead one is replaced at the next call."""

    def __init__(self, count: int) -> None:
        self._idle: queue.LifoQueue[Child | None] = queue.LifoQueue()
        self._busy: set[Child] = set()
        for _ in range(count):
            self._idle.put(None)

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        progress: Callable[..., None] | None = None,
        timeout: float | None = None,
    ) -> Any:
        child = self._idle.get() or Child()
        self._busy.add(child)
        keep: Child | None = None
        try:
            child.start(function, arguments, {})
            result = child.result(progress, None if timeout is None else time.monotonic() + timeout)
            keep = child
            return result
        except (ChildDied, TimeoutError, KeyboardInterrupt, SystemExit):
            child.close()
            raise
        except BaseException:
            keep = child  # the function's own exception: the child is well
            raise
        finally:
            self._busy.discard(child)
            self._idle.put(keep)

    def close(self) -> None:
        for child in list(self._busy):
            child.close()
        while True:
            try:
                child_or_none = self._idle.get_nowait()
            except queue.Empty:
                return
            if child_or_none is not None:
                child_or_none.close()


@contextmanager
def ranks(count: int) -> Iterator[list[Child]]:
    """`count` fresh children for the ranks of one job, gone at the end."""
    children = [Child() for _ in range(count)]
    try:
        yield children
    finally:
        for child in children:
            child.close()


def terminate(children: Sequence[Child]) -> None:
    """Ask all to leave off at a checkpoint, then wait for each; one that takes too long is killed."""
    for child in children:
        with suppress(OSError):
            child.process.terminate()
    for child in children:
        child.terminate()


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torch.distributed reads (its `env://` rendezvous)."""
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------------- in the child

_parent: Connection | None = None
_stopping = threading.Event()
_working = threading.Event()


def stopping() -> bool:
    """Whether SIGTERM has come to this process."""
    return _stopping.is_set()


def report(*arguments: Any, **named: Any) -> None:
    """Send progress to the parent; nothing happens in a process that has none."""
    if _parent is not None:
        _parent.send_bytes(pickle.dumps(("progress", (arguments, named))))


def _stop(*_: Any) -> None:
    _stopping.set()
    if not _working.is_set():
        os._exit(0)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns only when the parent's end closes
    os._exit(1)


def main() -> None:
    """A child's life: take a call, run it, answer, until the parent closes the connection."""
    global _parent
    _parent = connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, _stop)
    sys.path[:] = list(dict.fromkeys([*os.environ.pop(PARENT_PATH, "").split(os.pathsep), *sys.path]))
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        _working.set()
        try:
            function, arguments, env = pickle.loads(message)
            os.environ.update(env)
            answer = pickle.dumps(("done", function(*arguments)))
        except BaseException as error:
            answer = _failure(error)
        _working.clear()
        try:
            connection.send_bytes(answer)
        except OSError:
            return


def _failure(error: BaseException) -> bytes:
    """The exception with the child's traceback as a note; one that can't travel becomes a BuildError."""
    trace = traceback.format_exc()
    error.add_note(f"in the child process:\n{trace}")
    try:
        message = pickle.dumps(("failed", error))
        pickle.loads(message)
    except Exception:
        return pickle.dumps(("failed", BuildError(f"{type(error).__name__}: {error}\n{trace}")))
    return message


if __name__ == "__main__":
    from vbert.artifacts import children

    children.main()  # not this module's own copy, `__main__`: what functions import must be the same module
