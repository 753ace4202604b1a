"""The store's own I/O: each function leaves what it did on the disk, and in the operation log of a test.

Publishing survives a power loss only if every one of these is called in the right order; `observe` lets a test record
them and enumerate the crash states that the order allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Observer = Callable[..., None]
_observer: Observer | None = None

FILE_MODE = 0o444  # published files: guards against mistakes
SHARED_FILE = 0o664  # files that several users of one store write
# Setgid: what is made in it stays with the store's group. Published directories too: one that only its maker may write
# could be neither set aside nor collected by anyone else.
SHARED_DIRECTORY = 0o2775
MOMENTS, MOMENT = 25, 0.02  # how often, and after how many seconds, what is not allowed is tried again


def observe(observer: Observer | None) -> None:
    """Have every operation reported as `observer(name, *paths)` (tests)."""
    global _observer
    _observer = observer


def _log(operation: str, *paths: Path) -> None:
    if _observer is not None:
        _observer(operation, *paths)


def open_mode(path: Path, mode: int) -> None:
    """Give `path` the mode whatever the umask; another user's file stays as it is."""
    try:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    except PermissionError:
        pass


def make_directories(path: Path, sync: bool = True) -> Path:
    """`mkdir -p`, group-writable; every directory made is synced into its parent.

    Without `sync`, or where another process made one and has not come that far, `settle` sees to it.
    """
    path = Path(path)
    if patiently(path.is_dir):
        return path
    make_directories(path.parent, sync)
    try:
        patiently(path.mkdir)
    except FileExistsError:
        return path
    _log("mkdir", path)
    open_mode(path, SHARED_DIRECTORY)
    if sync:
        sync_directory(path.parent)
    return path


def patiently(function: Callable[[], T]) -> T:
    """Its result; asked again for a moment where it is not allowed.

    A directory that another user makes has the mode of that user's umask until its own is set.
    """
    for _ in range(MOMENTS):
        try:
            return function()
        except PermissionError:
            time.sleep(MOMENT)
    return function()


def make_fresh(path: Path) -> Path:
    """A new directory in an existing one, not yet synced: what is built in it is synced when it is published."""
    path.mkdir()
    _log("mkdir", path)
    open_mode(path, SHARED_DIRECTORY)
    return path


def write_file(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """A new file, synced. A failed write leaves no file behind; FileExistsError leaves alone the one that stands."""
    out = open(path, "xb")  # noqa: SIM115  closed below, where a failure is known not to be of another's file
    try:
        with out:
            out.write(data)
            out.flush()
            os.fchmod(out.fileno(), mode)
            _log("write", path)
            os.fsync(out.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    _log("fsync", path)


def hint(path: Path, document: Any) -> None:
    """A small JSON file that nothing rests on: replaced whole, not synced."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    fresh.write_text(json.dumps(document))
    fresh.chmod(SHARED_FILE)
    fresh.replace(path)


def sync_file(path: Path, mode: int = FILE_MODE) -> None:
    """Flush a file that others wrote to the disk, and make it read-only."""
    _log("write", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)
    _log("fsync", path)


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    _log("syncdir", path)


def sync_tree(root: Path) -> None:
    """Every directory of a tree, bottom-up, open to the group whatever the umask of who made it."""

    def failed(error: OSError) -> None:
        raise error  # os.walk would pass over what can't be listed

    for directory, _, _ in os.walk(root, topdown=False, onerror=failed):
        open_mode(Path(directory), SHARED_DIRECTORY)
        sync_directory(Path(directory))


def move(source: Path, target: Path) -> None:
    """Rename, not yet synced. OSError (EEXIST, ENOTEMPTY) where a directory stands in the way of one."""
    os.rename(source, target)
    _log("rename", source, target)


def rename(source: Path, target: Path) -> None:
    """Rename, synced into both directories; those must last already. A file replaces a file."""
    move(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


_settled: set[tuple[Path, int]] = set()  # (directory, inode) whose name is known to last


def settle(path: Path, root: Path) -> None:
    """Make the name of `path` last, and those of the directories above it up to `root`, which lasts already.

    Whoever acknowledges does it, not only who made them: a maker may have been killed before its sync.
    """
    sync_directory(path.parent)
    for directory in path.parents:
        if directory == root:
            return
        known = directory, directory.stat().st_ino
        if known not in _settled:
            sync_directory(directory.parent)
            _settled.add(known)


def settle_root(root: Path) -> None:
    """Make the names of `root` and of all above it on its file system last."""
    device = root.stat().st_dev
    for above in root.parents:
        if above.stat().st_dev != device:
            return
        with suppress(PermissionError):  # one this user may pass through but not read is not this user's making
            sync_directory(above)


def link(source: Path, target: Path) -> None:
    """A second name of a synced file; a copy where the file system has no links."""
    try:
        os.link(source, target)
        _log("link", source, target)
    except FileExistsError:
        raise
    except OSError:  # no links here, or not to another user's file
        shutil.copyfile(source, target)
        sync_file(target)


def acknowledge(what: Path) -> None:
    """From here on the caller has been told that `what` is published."""
    _log("acknowledge", what)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Delete a tree, read-only parts too; what is gone already is fine."""
    for directory, _, _ in os.walk(path):
        with suppress(FileNotFoundError):  # another builder clears the same away
            open_mode(Path(directory), SHARED_DIRECTORY)
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)
        _log("remove", path)
