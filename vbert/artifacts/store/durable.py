"""I/O of the store that lasts: synced files, directories and renames, open to whom the directory they lie in is.

Publishing survives a power loss only if these are called in the right order: a test records the system calls and
enumerates the crash states that their order allows.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# The directory that files lie in says whose they are. One with a group of its own (setgid and group-writable, as
# `--shared` makes it) is shared: what is made in it is open to the group as the directory is, whatever the umask, and
# published directories too, or nobody else could set them aside or collect them. Elsewhere the user's umask holds.
READ, WRITE = 0o444, 0o666  # published files are read-only: a guard against mistakes
GROUP = stat.S_ISGID | stat.S_IRWXG
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that has none
RETRIES, PAUSE = 25, 0.02  # tries of what is not allowed, seconds between two


def shared(directory: Path) -> int | None:
    """The mode of a directory that its group shares; None where it is its user's alone."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    return mode if mode & GROUP == GROUP else None


def _open_mode(path: Path, mode: int) -> None:
    """Give `path` the mode whatever the umask; another user's file stays as it is."""
    try:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    except PermissionError:
        pass


def open_directory(path: Path) -> None:
    """Have a directory just made be shared as the one above it is."""
    mode = shared(path.parent)
    if mode is not None:
        _open_mode(path, mode)


def open_file(path: Path, wanted: int = WRITE) -> None:
    """Give a file just made the rights `wanted` (READ or WRITE) to those whom the directory it lies in is open to."""
    _open_mode(path, _file_mode(path, wanted))


def _file_mode(path: Path, wanted: int) -> int:
    # Not the file's own, made with the umask: what a library makes as a temporary file is its user's alone.
    return wanted & stat.S_IMODE(path.parent.stat().st_mode)


def share(root: Path) -> None:
    """Open all that stands below `root` to its group as it is to its user; what is made there later will be.

    A directory comes after all in it: one that is shared is so whole, wherever an earlier try was killed.
    """
    for directory, _, names in os.walk(root, topdown=False):
        for path in (*(Path(directory) / name for name in names), Path(directory)):
            with suppress(FileNotFoundError):  # a builder at work takes away what it made
                if not path.is_symlink():
                    mode = stat.S_IMODE(path.stat().st_mode)
                    _open_mode(path, mode | (mode & stat.S_IRWXU) >> 3 | (stat.S_ISGID if path.is_dir() else 0))


_open_to_group = 0  # how many builds into shared stores this process is at
_umask = 0o022  # the user's own, meanwhile
_umask_lock = threading.Lock()


@contextmanager
def group_umask(directory: Path) -> Iterator[None]:
    """Where the directory is shared: what others' libraries write meanwhile, checkpoints, is open to the group too.

    What child processes are called for meanwhile is too.
    """
    global _open_to_group, _umask
    if shared(directory) is None:
        yield
        return
    with _umask_lock:
        if not _open_to_group:
            _umask = os.umask(0o002)
        _open_to_group += 1
    try:
        yield
    finally:
        with _umask_lock:
            _open_to_group -= 1
            if not _open_to_group:
                os.umask(_umask)


def make_directories(path: Path, sync: bool = True) -> Path:
    """`mkdir -p`, shared as the one above is; every directory made is synced into its parent.

    Without `sync`, or where another process made one and has not come that far, `sync_parents` sees to it.
    """
    path = Path(path)
    if retry_permission(path.is_dir):
        return path
    make_directories(path.parent, sync)
    try:
        retry_permission(path.mkdir)
    except FileExistsError:
        return path
    _lasting.discard((path, path.stat().st_ino))
    open_directory(path)
    if sync:
        sync_directory(path.parent)
    return path


def retry_permission(function: Callable[[], T]) -> T:
    """Call `function`, again for a moment where it is not allowed.

    A directory that another user makes has the mode of that user's umask until its own is set.
    """
    try:
        return function()
    except PermissionError:
        from vbert.retry import attempts

        for attempt in attempts(PermissionError, RETRIES, first=PAUSE, longest=PAUSE, jitter=0):
            with attempt:
                result = function()
        return result


def make_fresh(path: Path) -> Path:
    """A new directory in an existing one, not yet synced: what is built in it is synced when it is published."""
    path.mkdir()
    _lasting.discard((path, path.stat().st_ino))
    open_directory(path)
    return path


def write_file(path: Path, data: bytes, mode: int = READ) -> None:
    """A new file, synced. A failed write leaves no file behind; FileExistsError leaves alone the one that stands."""
    out = open(path, "xb")  # noqa: SIM115  closed below, where a failure is known not to be of another's file
    try:
        with out:
            out.write(data)
            out.flush()
            os.fchmod(out.fileno(), _file_mode(path, mode))
            os.fsync(out.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def hint(path: Path, document: Any) -> None:
    """A small JSON file that nothing rests on: replaced whole, not synced."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    fresh.write_text(json.dumps(document))
    open_file(fresh)
    fresh.replace(path)


def sync_file(path: Path, wanted: int = READ) -> None:
    """Flush a file that others wrote to the disk, and make it read-only, or what is `wanted`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        mode = _file_mode(path, wanted)
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Every directory of a tree, bottom-up; all are shared where `root` is, whatever the umask of who made them."""

    def failed(error: OSError) -> None:
        raise error  # os.walk would pass over what can't be listed

    mode = shared(root)
    for directory, _, _ in os.walk(root, topdown=False, onerror=failed):
        if mode is not None:
            _open_mode(Path(directory), mode)
        sync_directory(Path(directory))


def move(source: Path, target: Path) -> None:
    """Rename, not yet synced. OSError (EEXIST, ENOTEMPTY) where a directory stands in the way of one."""
    os.rename(source, target)


def rename(source: Path, target: Path) -> None:
    """Rename, synced into both directories; those must last already. A file replaces a file."""
    move(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


# (directory, inode) whose name is known to last. One that is removed and made again may get the inode it had.
_lasting: set[tuple[Path, int]] = set()


def sync_parents(path: Path, root: Path) -> None:
    """Make the name of `path` last, and those of the directories above it up to `root`, which lasts already.

    Whoever reports the thing as published does it, not only its maker, who may have been killed before its sync.
    """
    sync_directory(path.parent)
    for directory in path.parents:
        if directory == root:
            return
        known = directory, directory.stat().st_ino
        if known not in _lasting:
            sync_directory(directory.parent)
            _lasting.add(known)


def sync_above(root: Path) -> None:
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
    except FileExistsError:
        raise
    except OSError:  # no links here, or not to another user's file
        shutil.copyfile(source, target)
        sync_file(target)


def name_once(source: Path, target: Path) -> bool:
    """Give a synced file a second name, unless something has that name: False.

    Where the file system has no links the one name is changed for the other, which the caller's lock makes safe.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():
            return False
        os.rename(source, target)
    return True


def remove_tree(path: Path) -> None:
    """Delete a tree, read-only parts too; what is gone already is fine."""
    for directory, _, _ in os.walk(path):
        with suppress(FileNotFoundError):  # another builder clears the same away
            at = Path(directory)
            _open_mode(at, stat.S_IMODE(at.stat().st_mode) | stat.S_IRWXU)
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)
