"""A full disk: found behind a failure, and told with how much room is missing."""

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
        elif (said := OF_RUST.search(str(error))) and int(said[1]) in FULL:
            return OSError(int(said[1]), os.strerror(int(said[1])))
        error = error.__cause__
    return None


def short_of_room(title: str, full: OSError, root: Path, sizes: Sequence[int] = (), units: int = 0) -> BuildError:
    """What to raise for `full`. `sizes`: bytes of each unit that is done; the rest of `units` are taken to be alike."""
    free = shutil.disk_usage(root).free
    said = f"{title}: no room left for {full.filename or 'its files'} (the store {root} has {free / 1e6:,.1f} MB free)"
    if sizes:
        need = (units - len(sizes)) * sum(sizes) / len(sizes)
        said += f"; {len(sizes)} of {units} units are done, the others need about {need / 1e6:,.1f} MB"
        said += f", so at least {(need - free) / 1e6:,.1f} MB more" if need > free else ""
    return BuildError(f"{said}; finished units and checkpoints are kept, the same command goes on from them")
