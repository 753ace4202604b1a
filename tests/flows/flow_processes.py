"""Toy flows in processes of their own, observed from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)])}


class Flows:
    """Starts `prefect_toy.py`, each in a process group of its own, and kills what is left of them."""

    def __init__(self, store: Path, environment: dict[str, str]) -> None:
        self.store, self.environment = store, ENVIRONMENT | environment
        self.started: list[subprocess.Popen[str]] = []

    def __call__(
        self, kind: str, *more: str, machine: dict[str, Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # Not as a script, which every Dask worker would import again.
            [
                sys.executable,
                "-c",
                "import prefect_toy; prefect_toy.main()",
                str(self.store),
                kind,
                json.dumps(options),
                json.dumps(machine or {}),
                *more,
            ],
            env=os.environ | self.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


def free(store: Path, fingerprint: str) -> bool:
    """Whether nobody holds the lock of a step."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(store / "locks" / f"{fingerprint}.lock", timeout=0):
            return True
    except Timeout:
        return False


def begun(fate: Path) -> list[str]:
    return (fate / "log").read_text().split()


def committed(store: Path, fingerprint: str) -> int:
    return len(list((store / "unfinished" / "toy_fragile" / fingerprint / "units").glob("*/unit.json")))
