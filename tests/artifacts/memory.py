"""Where the tests of the store work: they sync at every step, which costs nothing in memory."""

from __future__ import annotations

import os


def in_memory() -> str | None:
    """A directory that lives in memory, where this machine has one."""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) else None
