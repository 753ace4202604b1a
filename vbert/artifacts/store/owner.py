"""Who is at work: host, boot, PID namespace, process and its start, so that dead builders are told from live ones."""

from __future__ import annotations

import glob
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from vbert.artifacts.store import durable
from vbert.artifacts.store.durable import open_file

SUFFIX = ".owner"  # behind the name of what is being made: the record of who makes it
GRACE = 7 * 86_400.0  # seconds for which what may be of somebody at work is left alone
INITIAL = "pid:[4026531836]"  # the PID namespace outside all containers: PROC_PID_INIT_INO, linux/proc_ns.h


@dataclass(frozen=True)
class Owner:
    """A process, named so that its number being used again does not mislead. `since` in seconds since 1970.

    Two containers may share a host name, and number their processes alike: `namespace` is the PID namespace as
    /proc/self/ns/pid names it, unique within a boot; `machine` is /etc/machine-id. Both "" where there is none to read.
    """

    host: str
    boot: str
    pid: int
    started: str
    since: float
    namespace: str = ""
    machine: str = ""

    @classmethod
    def current(cls) -> Owner:
        started = _started("self") or ""
        return cls(socket.gethostname(), _boot(), os.getpid(), started, time.time(), _namespace(), _machine())

    def write(self, path: Path) -> None:
        """A hint for others, not synced: a lost one reads as an owner unknown."""
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            fresh.write_text(json.dumps(asdict(self)))
            open_file(fresh)
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def alive(self) -> bool | None:
        """True and False are certain; None where it can't be told from here: of another machine, or container.

        Another boot under the same host name is an earlier one only where no container is in play: those of one name
        and one image, machine-id included, may run on many machines.
        """
        here = Owner.current()
        if (self.host, self.namespace) != (here.host, here.namespace) or not self.boot or not self.namespace:
            return None
        if self.boot == here.boot:
            return _started(str(self.pid)) == self.started if _sees_processes() else None
        return False if self.namespace == INITIAL and self.machine == here.machine != "" else None

    def dead(self) -> bool:
        """Provably: its process is gone, or of an earlier boot."""
        return self.alive() is False

    def is_current(self) -> bool:
        here = Owner.current()
        mine = here.host, here.boot, here.namespace, here.pid, here.started
        return (self.host, self.boot, self.namespace, self.pid, self.started) == mine

    def sentence(self) -> str:
        return f"process {self.pid} on {self.host}, since {time.strftime('%H:%M:%S', time.localtime(self.since))}"

    @classmethod
    def describe(cls, path: Path) -> str:
        owner = cls.read(path)
        return "another builder" if owner is None else owner.sentence()


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@lru_cache(maxsize=1)
def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def untouched(grace: float, *things: Path) -> bool:
    """Whether the youngest of those that exist was last touched `grace` seconds ago, or earlier."""
    newest = 0.0
    for path in things:
        with suppress(OSError):
            newest = max(newest, path.lstat().st_mtime)
    return time.time() - newest >= grace


def clear_dead(folder: Path, prefix: str) -> None:
    """Remove what killed builders left in `folder`: things called `prefix`.… beside whose name, with `.owner`, stands
    who made them, where that one is provably gone."""
    for record in folder.glob(f"{glob.escape(prefix)}.*{SUFFIX}"):
        owner = Owner.read(record)
        if owner is not None and owner.dead():
            made = record.with_name(record.name.removesuffix(SUFFIX))
            if made.is_file():
                made.unlink(missing_ok=True)
            else:
                durable.remove_tree(made)
            record.unlink(missing_ok=True)


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _sees_processes() -> bool:
    """Whether /proc numbers processes as this one's PID namespace does: one that was not mounted anew does not."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _started(process: str) -> str | None:
    """The start in clock ticks since boot (field 22 of /proc/<process>/stat); None where the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
