"""Settings: the small frozen models a stage reads, and the marks their fields may carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A slice of the recipe. Everything in it is hashed, but for the fields marked below."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Location:
    """`Annotated[str, Location]`: where, not what. Unhashed where a field `sha256` stands beside it and is set."""


class Wiring:
    """`Annotated[str, Wiring]`: a name that `graph()` resolves into an artifact. Never hashed."""


@dataclass(frozen=True)
class Since:
    """`Annotated[float, Since(0.0)]`: a field added later; at this value the fingerprints of before stay."""

    value: Any


class Numerics(Settings):
    """What changes bits by choice. Same recipe, same bits holds at equal numerics."""

    threads: int = Field(1, ge=1, description="operator threads a process")
    processes: int = Field(1, ge=1, description="ranks (training): the batch is split over them")
    precision: Literal["fp32", "bf16"] = "fp32"


class Plugin(Settings):
    """A reader, objective, detector backend or box rule: enters fingerprints as [name, version]."""

    name: str
    version: int
