"""A finished artifact in a folder of the user's: linked from the store, or copied where that can't be."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store import durable
from vbert.artifacts.store.disk_full import no_room
from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.errors import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def hand_out(artifact: Artifact, out: Path, kept: re.Pattern[str] | None = None) -> None:
    """Make the folder `out` hold the artifact's files, all of them or none; what it held before is replaced, but for
    the files there whose names are `kept`.

    Files are hard links where the file system allows: they take no room and, like the store's, are read-only. Whatever
    fails, `out` is as it was before. Raises UserError where it can't be replaced.
    """
    with replaced(out) as making:
        for name in artifact.names():
            target = making / name
            target.parent.mkdir(parents=True, exist_ok=True)
            durable.link(artifact.file(name), target)
        for path in out.iterdir() if kept is not None and out.is_dir() else ():
            if kept is not None and kept.fullmatch(path.name):
                durable.link(path, making / path.name)


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A new folder to be filled, which then takes the place of `out`, whole; where that fails `out` is as before.

    Raises UserError where it can't be written.
    """
    out = out.resolve()  # of a link, what it leads to is replaced
    making = out.with_name(f".{out.name}.{uuid4().hex}")
    record = making.with_name(making.name + SUFFIX)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_dead(out.parent, f".{out.name}")
        Owner.current().write(record)
        making.mkdir()
        yield making
        if out.exists():
            exchange(making, out)
        else:
            making.rename(out)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror}); give another folder") from error
    except Exception as error:
        if (full := no_room(error)) is not None:
            raise UserError(f"{out} can't be written ({full.strerror}); give another folder") from error
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)  # after an exchange, what `out` held before
        record.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> None:
    """Give two things each other's names, at once where the system can (Linux: renameat2).

    Elsewhere `other` is without a name for a moment; where `one` can't take its place it gets it back.
    """
    if _renameat2(one, other):
        return
    aside = other.with_name(f"{one.name}.before")
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)


def _renameat2(one: Path, other: Path) -> bool:
    """Exchange by the kernel; False where it, or the file system, doesn't know how. Raises OSError."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))
