"""Settings: the small frozen models a stage reads, and the marks their fields may carry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A slice of the recipe. Everything in it is hashed, but for the fields marked below."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, info in cls.model_fields.items():
            if _marked_inside(info.annotation):
                raise TypeError(f"{cls.__name__}.{name}: a mark belongs around the whole type, Annotated[X | None, …]")


class Location:
    """`Annotated[str, Location]`: where, not what. Unhashed where a field `sha256` stands beside it and is set."""


class Wiring:
    """`Annotated[str, Wiring]`: a name that `graph()` resolves into an artifact. Never hashed."""


@dataclass(frozen=True)
class LocalPath:
    """`Annotated[str, LocalPath()]`: a file or folder, relative to the file that names it; a URL stays as it is.

    `or_name`: what has no slash and doesn't end in .yaml is the name of something, and no path. With the `names` that
    there are, what is none of them and a folder that is there is that folder.
    """

    or_name: bool = False
    names: Callable[[], Collection[str]] | None = None


@dataclass(frozen=True)
class Since:
    """`Annotated[float, Since(0.0)]`: a field added later; at this value the fingerprints of before stay."""

    value: Any


@dataclass(frozen=True)
class Acceptance:
    """`Annotated[float, Acceptance(0.01)]`: decides only whether what was made is accepted, never what is made.

    It enters fingerprints as `hashed`, whatever its value (None: not at all), so that changing it costs no work. The
    artifact's class compares it with the figures: see `Artifact.objection`.
    """

    hashed: Any = None


def least(bad: int, total: int) -> float:
    """The smallest share, in thousandths, that accepts `bad` of `total`."""
    share = ceil(1000 * bad / total) / 1000
    return share if bad / total <= share else share + 0.001


def carries(marks: Sequence[Any], mark: type) -> bool:
    """Whether `mark` or an instance of it is among a field's marks."""
    return any(found is mark or isinstance(found, mark) for found in marks)


def _marked_inside(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        known = (Location, Wiring, LocalPath, Since, Acceptance)
        return any(carries(marks, mark) for mark in known) or _marked_inside(inner)
    return any(_marked_inside(part) for part in get_args(annotation))


class Numerics(Settings):
    """What changes bits by choice. Same recipe, same bits holds at equal numerics."""

    threads: int = Field(1, ge=1, description="operator threads a process")
    processes: int = Field(1, ge=1, description="ranks (training): the batch is split over them")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of training; bf16 with fp32 weights")


class Plugin(Settings):
    """A reader, objective, detector backend or box rule: enters fingerprints as [name, version]."""

    name: str
    version: int
