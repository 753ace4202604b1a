"""Who is at work: host, boot, process and its start, so that a dead builder can be told from a live one."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process, named so that its number being used again does not mislead. `since` in seconds since 1970."""

    host: str
    boot: str
    pid: int
    started: str
    since: float

    @classmethod
    def current(cls) -> Owner:
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or "", time.time())

    def write(self, path: Path) -> None:
        """A hint for others, not synced: a lost one reads as an owner unknown."""
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.chmod(0o664)
        os.replace(fresh, path)

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def dead(self) -> bool:
        """Provably: on this host, of an earlier boot or with its process gone."""
        if self.host != socket.gethostname():
            return False
        return self.boot != _boot() or _started(self.pid) != self.started

    def is_current(self) -> bool:
        return (self.host, self.boot, self.pid, self.started) == (
            socket.gethostname(),
            _boot(),
            os.getpid(),
            _started(os.getpid()),
        )

    def said(self) -> str:
        return f"process {self.pid} on {self.host}, since {time.strftime('%H:%M:%S', time.localtime(self.since))}"

    @classmethod
    def describe(cls, path: Path) -> str:
        owner = cls.read(path)
        return "another builder" if owner is None else owner.said()


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """The process's start in clock ticks since boot (field 22 of /proc/<pid>/stat); None where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
