"""What axe-core finds wrong with a page that a browser shows."""

from __future__ import annotations

from typing import Any

import pytest


def violations(page: Any) -> list[str]:
    """One line a rule that is broken, with the first place where it is. Skips where the package isn't there."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{one['id']} ({len(one['nodes'])}): {one['nodes'][0]['html'][:200]}" for one in found]
