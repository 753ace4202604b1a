"""Fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for the tests of a module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-background-networking"]
        )
        yield started
        started.close()


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
            import vbert

            vbert.run(TINY, store=store, how="local")  # its children stay, with all they have imported
            (store / "whole").touch()
    return store


@pytest.fixture
def vbert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Run the command in this process, in a new folder: (exit code, stdout, stderr)."""
    from flows import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VBERT_STORE", raising=False)
    terminated, mask = signal.getsignal(signal.SIGTERM), os.umask(0o022)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vbert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, terminated)
    os.umask(mask)


@pytest.fixture
def demo_folder(finished_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the recipe `demo` is the tiny one, and done."""
    import flows.recipe

    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text(f"name: tiny\n{Path(TINY).read_text()}")
    monkeypatch.setattr(flows.recipe, "RECIPES", tmp_path / "recipes")
    shutil.copytree(finished_store, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
