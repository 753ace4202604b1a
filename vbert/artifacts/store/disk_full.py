"""A full disk: recognised behind a failure, and reported with how much room is missing."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vbert.errors import BuildError

FULL = (errno.ENOSPC, errno.EDQUOT)
OF_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors' errors are no OSErrors, the number stands in their text


def no_room(error: BaseException | None) -> OSError | None:
    """The full disk or quota behind a failure, also where other errors were raised from it."""
    while error is not None:
        if isinstance(error, OSError):
            if error.errno in FULL:
                return error
        elif (number := OF_RUST.search(str(error))) and int(number[1]) in FULL:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__
    return None


def short_of_room(title: str, full: OSError, root: Path, sizes: Sequence[int] = (), units: int = 0) -> BuildError:
    """The error to raise for `full`. `sizes`: bytes of each finished unit; the other `units` count as alike."""
    free = shutil.disk_usage(root).free
    message = (
        f"{title}: no room left for {full.filename or 'its files'} (the store {root} has {free / 1e6:,.1f} MB free)"
    )
    if sizes:
        need = (units - len(sizes)) * sum(sizes) / len(sizes)
        message += f"; {len(sizes)} of {units} units are done, the others need about {need / 1e6:,.1f} MB"
        message += f", so at least {(need - free) / 1e6:,.1f} MB more" if need > free else ""
    return BuildError(f"{message}; finished units and checkpoints are kept, the same command goes on from them")
