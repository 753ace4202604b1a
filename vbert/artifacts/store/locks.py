"""Locks of a store on a local path: one file a fingerprint, never deleted, and beside it who holds it."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbert.artifacts.store import durable
from vbert.artifacts.store.owner import Owner


@contextmanager
def held(locks: Path, fingerprint: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of a fingerprint in the directory `locks`; see `Store.lock`."""
    from filelock import FileLock, Timeout

    directory = durable.make_directories(locks, sync=False)
    path = directory / f"{fingerprint}.lock"
    if not path.exists():  # comes with its mode at once: one left unwritable would shut other users out for ever
        fresh = directory / f".{fingerprint}.{uuid.uuid4().hex}"
        fresh.touch()
        durable.open_file(fresh)
        with suppress(OSError):
            os.link(fresh, path)
        fresh.unlink()
    holder = directory / f"{fingerprint}.holder"
    lock = FileLock(path, mode=stat.S_IMODE(path.stat().st_mode), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting(Owner.describe(holder))
        lock.acquire()
    try:
        with suppress(OSError):
            Owner.current().write(holder)
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()
