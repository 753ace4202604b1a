"""One server for the tests that don't end it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serve.serving import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running(
        bytes=3_000_000, pixels=1_000_000, waiting=2, seconds=2.0, HEADER_SECONDS=1.0, BODY_SECONDS=1.5, LOADING=30.0
    ) as one:
        yield one
