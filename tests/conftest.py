"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = str(Path(__file__).parent / "tiny.yaml")
sys.path.insert(0, str(Path(__file__).parent))  # `from artifacts.toy import …`


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
