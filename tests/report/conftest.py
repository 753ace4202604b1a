"""One finished world for all tests of the report; none of them changes it."""

from __future__ import annotations

import pytest
from report.report_world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))
