"""Local copies of the files of a remote store, within a size limit; those not used for longest go first."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from vbert.errors import BuildError, UserError

ROOT = "VBERT_CACHE"  # where remote stores are worked on and their files cached
LIMIT = "VBERT_CACHE_SIZE"  # bytes of finished artifacts kept here: `50GB`
DEFAULT_LIMIT = "100GB"
SPARE = 1 << 30  # bytes of the disk that are left alone
IN_USE = 600.0  # seconds for which a file that was asked for stays
FOLDERS = ("artifacts", "fetching")  # of a working directory: finished files, and those on their way
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def base_directory() -> Path:
    """`$VBERT_CACHE`, else `vbert` in the user's cache directory."""
    base = os.environ.get(ROOT) or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vbert"
    )
    return Path(base).absolute()


def working_directory(url: str, digest: str) -> Path:
    """Where the store of `url` is worked on, below the base directory."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2]).strip("-")[:60]
    return base_directory() / f"{name}-{digest[:12]}"


def limit() -> int:
    """Bytes. Raises UserError where `$VBERT_CACHE_SIZE` is no size."""
    given = os.environ.get(LIMIT) or DEFAULT_LIMIT
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", given.upper())
    if size is None:
        raise UserError(f"{LIMIT}={given!r} is no size; give one such as 50GB")
    return int(float(size[1]) * UNITS[size[2]])


def used(path: Path, info: os.stat_result) -> None:
    """Note that a file was asked for, in its time of access; the others stay (digests are remembered by them)."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), info.st_mtime_ns))


def make_room(root: Path, size: int) -> None:
    """Delete cached files, least recently used first, until `size` more bytes are within the limit.

    `root` is a working directory. What was asked for in the last minutes stays. Raises BuildError where that leaves no
    room.
    """
    files = []
    for path in (path for name in FOLDERS for path in (root / name).rglob("*")):
        with suppress(OSError):
            info = path.lstat()
            if not path.is_dir():
                files.append((max(info.st_atime, info.st_mtime), info.st_size, path))
    cached, old = sum(file[1] for file in files), time.time() - IN_USE
    at = root
    while not at.exists():
        at = at.parent
    disk = shutil.disk_usage(at)
    free = disk.free - min(SPARE, disk.total // 20)
    excess = max(cached + size - limit(), size - free)
    for accessed, bytes_, path in sorted(files):
        if excess <= 0 or accessed > old:
            break
        with suppress(OSError):
            path.unlink()
            excess -= bytes_
    if size and excess > 0:
        raise BuildError(
            f"no room for {size / 1e6:,.1f} MB more in {root}: {cached / 1e6:,.1f} MB of it are in use, the limit is "
            f"{limit() / 1e6:,.1f} MB ({LIMIT}) and {max(free, 0) / 1e6:,.1f} MB of the disk can be used; raise one"
        )
