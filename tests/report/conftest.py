"""One finished world for all tests of the report, and its pages; none of them changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.report_world import HOSTILE, World, make_world, write_page

from vbert.report.page import PAGE


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("page"), world)[0]


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a world in which every string is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    hurt = make_world(folder, HOSTILE)
    write_page(folder, hurt, title=f"toy{HOSTILE}", pretrained=hurt.pretrained)
    return folder / PAGE
