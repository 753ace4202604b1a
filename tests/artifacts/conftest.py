"""What the tests of the store share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts.memory import in_memory
from artifacts.s3 import S3Server, Site, serving
from artifacts.world import BucketWorld, PathWorld, World


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory."""
    with tempfile.TemporaryDirectory(dir=in_memory(), prefix="vbert-test-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto is the S3 server of these tests")
    with serving() as server:
        yield server


@pytest.fixture
def site(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server.requests.clear()
    yield Site(server, tmp_path / "machines", monkeypatch)
    server.around = lambda environ, answer: answer()


@pytest.fixture(params=["path", "bucket"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A store of either kind: what holds for both is tested once."""
    if request.param == "path":
        return PathWorld(tmp_path / "store")
    return BucketWorld(request.getfixturevalue("site"))
