"""Python as another Unix user (tests that run as root): what root may read and write says nothing about others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.memory import in_memory

GROUP = 54400  # numbers without names: nothing needs to be added to the system

IN_ITS_OWN_MOUNTS = """
set -e
closed=$1 inside=$2 aside=$3; shift 3
mount --bind "$inside" "$aside"
mount -t tmpfs -o mode=755 tmpfs "$closed"
mkdir -p "$inside"
mount --bind "$aside" "$inside"
exec "$@"
"""


def why_not() -> str | None:
    """Why this machine can't run Python as another user; None where it can."""
    if os.getuid() != 0:
        return "needs root to become two other users"
    if shutil.which("setpriv") is None or (_closed() is not None and shutil.which("unshare") is None):
        return "needs setpriv and unshare (util-linux)"
    done = subprocess.run([*prefix(54321), sys.executable, "-c", "import pydantic"], capture_output=True, check=False)
    return None if done.returncode == 0 else f"this interpreter can't run as another user: {done.stderr!r}"


def prefix(uid: int, umask: int = 0o022) -> list[str]:
    """The command line before a command that makes it run as `uid`, in the group `GROUP` besides its own."""
    become = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--groups", str(GROUP)]
    command = [*become, "sh", "-c", f'umask {umask:03o}; exec "$@"', "sh"]
    closed = _closed()
    if closed is not None:  # an interpreter below /root: show it there, in mounts of this process alone
        aside = Path(tempfile.gettempdir()) / "interpreter"
        aside.mkdir(exist_ok=True)
        command = [
            "unshare",
            "-m",
            "bash",
            "-c",
            IN_ITS_OWN_MOUNTS,
            "bash",
            closed,
            sys.base_prefix,
            str(aside),
            *command,
        ]
    return command


def _closed() -> str | None:
    parents = [path for path in Path(sys.base_prefix).parents if not path.stat().st_mode & 0o001]
    return str(parents[-1]) if parents else None


@contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory of the group, reachable for all (pytest's own are its user's alone)."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "data").mkdir()
        os.chown(path / "data", 0, GROUP)
        (path / "data").chmod(0o2775)
        yield path / "data"


def python(uid: int, code: str, umask: int = 0o022, **environment: str) -> subprocess.Popen[str]:
    """Start `code` with the tests' modules at hand."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    given = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/", **environment}
    return subprocess.Popen(
        [*prefix(uid, umask), sys.executable, "-c", code],
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
