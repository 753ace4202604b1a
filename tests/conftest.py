"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store of `tests/tiny.yaml`, built once a run and shared by its workers. Copy it; don't change it."""
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    store = shared / "finished-store"
    with FileLock(shared / "finished-store.lock"):
        if not (store / "whole").exists():
            done = subprocess.run(
                [sys.executable, "-m", "flows.cli", "run", TINY, "--store", str(store), "--local"],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            (store / "whole").touch()
    return store


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that reach the one Prefect server of this run and its workers. It ends when the run does."""
    from filelock import FileLock
    from prefect_server import start

    worker = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if worker else tmp_path_factory.getbasetemp()
    home, url = shared / "prefect", shared / "prefect-url"
    with FileLock(shared / "prefect.lock"):
        if not url.exists():
            url.write_text(start(home, lives_with=os.getppid() if worker else os.getpid()))
    return {"PREFECT_API_URL": url.read_text(), "PREFECT_HOME": str(home)}
