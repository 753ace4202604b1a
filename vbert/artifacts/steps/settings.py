"""Settings: the small frozen models a stage reads, and the marks their fields may carry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema


class Location:
    """`Annotated[str, Location]`: where, not what. Unhashed where a field `sha256` stands beside it and is set."""


class Wiring:
    """`Annotated[str, Wiring]`: a name that `graph()` resolves into an artifact. Never hashed."""


@dataclass(frozen=True)
class LocalPath:
    """`Annotated[str, LocalPath()]`: a file or folder, relative to the file that names it; a URL stays as it is. Of a
    mapping its values.

    `or_name`: what has no slash and doesn't end in .yaml is the name of something, and no path. With the `names` that
    there are, what is none of them and a file or folder that is there is that one. `unless`: a regular expression of
    what is no path although it has a slash.
    """

    or_name: bool = False
    names: Callable[[], Collection[str]] | None = None
    unless: str | None = None


@dataclass(frozen=True)
class Since:
    """`Annotated[float, Since(0.0)]`: a field, or a stage's parameter, added later; at this value the fingerprints of
    before stay."""

    value: Any


@dataclass(frozen=True)
class Removed:
    """`workers: ClassVar[Removed] = Removed(1, "…")`: a field that is no more; fingerprints hold it at `value` still.

    Whoever sets it is told the `remedy`, behind its name. The JSON of a step made before may have it, at `value`.
    """

    value: Any
    remedy: str


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


def removed(kind: type) -> dict[str, Removed]:
    """The fields of settings, or of what they are made from, that are `Removed`, by name."""
    return {
        name: mark for base in reversed(kind.__mro__) for name, mark in vars(base).items() if isinstance(mark, Removed)
    }


def as_before(annotation: Any, value: Any) -> bool:
    """Whether a parameter of a stage is marked `Since` its `value`: then it enters no fingerprint."""
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return any(isinstance(mark, Since) and mark.value == value for mark in marks)


def carries(marks: Sequence[Any], mark: type) -> bool:
    """Whether `mark` or an instance of it is among a field's marks."""
    return any(one is mark or isinstance(one, mark) for one in marks)


def _marked_inside(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        known = (Location, Wiring, LocalPath, Since, Acceptance)
        return any(carries(marks, mark) for mark in known) or _marked_inside(inner)
    return any(_marked_inside(part) for part in get_args(annotation))


class Settings(BaseModel):
    """A slice of the recipe. Everything in it is hashed, but for fields that carry one of the marks above."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, info in cls.model_fields.items():
            if _marked_inside(info.annotation):
                raise TypeError(f"{cls.__name__}.{name}: a mark belongs around the whole type, Annotated[X | None, …]")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The JSON of a step, which is read with a context, may have fields that are `Removed`, at their value."""
        schema = handler(source)
        if not (gone := removed(cls)):
            return schema

        def without(data: Any, info: core_schema.ValidationInfo) -> Any:
            if info.context is None or not isinstance(data, dict):
                return data
            return {name: value for name, value in data.items() if name not in gone or value != gone[name].value}

        # YAML comes as a text of JSON; with a validator before them, lists in it would be no tuples.
        python = core_schema.with_info_before_validator_function(without, schema)
        return core_schema.json_or_python_schema(schema, python)


class Numerics(Settings):
    """Choices that change bits. Same recipe, same bits holds at equal numerics."""

    threads: int = Field(1, ge=1, description="operator threads a process")
    processes: int = Field(1, ge=1, description="ranks (training): the batch is split over them")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of training; bf16 with fp32 weights")


class Plugin(Settings):
    """A reader, objective, detector backend or box rule: enters fingerprints as [name, version]."""

    name: str
    version: int
