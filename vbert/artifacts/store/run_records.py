"""Records of runs, as far as the store goes by them: what stands in `runs/` may be of anybody."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class RunRecord(BaseModel):
    """The fields that `gc` and `vbert runs` rest on; others are as whoever wrote them."""

    model_config = ConfigDict(extra="allow")
    recipe: str | None = None
    started: float = 0.0
    seconds: float = 0.0
    status: str = "done"
    kept: bool = False
    targets: list[str] = []
    steps: dict[str, Any] | list[str] | None = None
    changes: dict[str, Any] | None = None
    resolved: dict[str, Any] | None = None


def run_record(data: bytes | None) -> dict[str, Any]:
    """The record in these bytes; empty where they are none."""
    try:
        record: dict[str, Any] = json.loads(data or b"{}")
        RunRecord.model_validate(record, strict=True)
    except (ValueError, ValidationError):
        return {}
    return record
