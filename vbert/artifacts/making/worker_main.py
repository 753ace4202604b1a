"""The life of a child process: take a call, run it, answer, until the parent closes the connection.

`python -m vbert.artifacts.making.worker_main CONNECTION LIFELINE`, both file descriptors.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from vbert.errors import BuildError

PARENT_PATH = "VBERT_PARENT_PATH"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_parent: Connection | None = None
# Plain flags: a second SIGTERM may come while the first one is handled, and no lock survives that.
_stopping = False
_working = False


def stopping() -> bool:
    """Whether SIGTERM has come to this process."""
    return _stopping


def report(*arguments: Any, **named: Any) -> None:
    """Send progress to the parent; nothing happens in a process that has none."""
    if _parent is not None:
        _parent.send_bytes(pickle.dumps(("progress", (arguments, named))))


def _stop(*_: Any) -> None:
    global _stopping
    _stopping = True
    if not _working:
        os._exit(0)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns only when the parent's end closes
    os._exit(1)


def main() -> None:
    global _parent
    _parent = connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, _stop)
    sys.path[:] = list(dict.fromkeys([*os.environ.pop(PARENT_PATH, "").split(os.pathsep), *sys.path]))
    while _serve(connection):
        pass


def _serve(connection: Connection) -> bool:
    """One call. Its arguments and result are gone when it returns: an idle child holds no memory of them."""
    global _working
    try:
        message = connection.recv_bytes()
    except (EOFError, OSError):
        return False
    _working = True
    answer = _answer(message)
    _free_device()
    try:
        connection.send_bytes(answer)
    except OSError:
        return False
    _working = False
    return not _stopping


def _answer(message: bytes) -> bytes:
    try:
        function, arguments, env, umask = pickle.loads(message)
        if umask is not None:  # the caller's of now: that of a shared store is another
            os.umask(umask)
        for name in RANK_VARIABLES:  # of the call before
            os.environ.pop(name, None)
        os.environ.update(env)
        return pickle.dumps(("done", function(*arguments)))
    except BaseException as error:
        return _failure(error)


def _free_device() -> None:
    """Give back the memory of a GPU that torch holds for later: another process may need it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


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
    from vbert.artifacts.making import worker_main

    worker_main.main()  # not this module's own copy, `__main__`: what functions import must be the same module
