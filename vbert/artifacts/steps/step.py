"""A step: a stage and its arguments, all that says what will be made; and what it makes, known before it exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Generic, ParamSpec, Self, TypeVar, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from vbert.artifacts.steps.checked import checked
from vbert.artifacts.steps.fingerprint import canonical
from vbert.artifacts.steps.settings import as_before
from vbert.artifacts.store.digests import dumps, sha256
from vbert.errors import BuildError, UserError, nearest

P = ParamSpec("P")
A = TypeVar("A", bound="Product")
T = TypeVar("T")
Figures = dict[str, Any]  # the few numbers worth a line in a table

REGISTRY: dict[str, Stage[Any, Any]] = {}


class Product:
    """The product of a step, by its identity alone; `Artifact` adds where it lies and how it is read."""

    # Arguments of its step that the class reads through (`Images.open` reads its raw files): what it is given to needs
    # them too.
    through: ClassVar[Sequence[str]] = ()

    step: Step | None = None
    label: str | None = None

    def __init__(self, step: Step | None = None) -> None:
        self.step = step

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """An instance or, in the JSON of a step, its fingerprint, which the context turns into one."""

        def resolve(value: Any, info: core_schema.ValidationInfo) -> Any:
            return info.context(value["artifact"]) if info.context is not None and isinstance(value, dict) else value

        return core_schema.with_info_before_validator_function(resolve, core_schema.is_instance_schema(cls))

    def _copy(self, **changes: Any) -> Self:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy

    def named(self, label: str) -> Self:
        """The same artifact under an unhashed label: `regions[easy_vqa]`."""
        return self._copy(label=label)

    @property
    def fingerprint(self) -> str:
        if self.step is None:
            raise BuildError(f"a loose {type(self).__name__} has no fingerprint: it was opened by its directory")
        return self.step.fingerprint

    @property
    def stage_name(self) -> str:
        return self.step.stage.name if self.step else type(self).__name__

    @property
    def title(self) -> str:
        """`regions[easy_vqa]`, or `regions` without a label."""
        return f"{self.stage_name}[{self.label}]" if self.label else self.stage_name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Product) or type(self) is not type(other):
            return False
        return self.fingerprint == other.fingerprint if self.step and other.step else self is other

    def __hash__(self) -> int:
        return hash(self.fingerprint) if self.step else id(self)


@dataclass(frozen=True)
class Step:
    """A stage and its arguments."""

    stage: Stage[Any, Any]
    arguments: Mapping[str, Any]

    @cached_property
    def hashed(self) -> dict[str, Any]:
        """The JSON that the fingerprint is taken of; inputs by their fingerprints."""
        return self._payload(lambda product: product.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        return sha256(dumps(self.hashed))

    def resolved(self) -> str:
        """Like the fingerprint, but with inputs by the content they turned out to have; they must be built."""
        return sha256(dumps(self._payload(lambda artifact: artifact.content)))

    def _payload(self, identity: Callable[[Any], str]) -> dict[str, Any]:
        def identify(value: Any) -> str | None:
            return identity(value) if isinstance(value, Product) else None

        name = self.stage.name
        counted = {k: v for k, v in self.arguments.items() if not as_before(self.stage.hints[k], v)}
        arguments = {k: canonical(v, identify, f"{name}: {k}") for k, v in counted.items()}
        return {"stage": name, "version": self.stage.version, "arguments": arguments}

    def inputs(self, names: Sequence[str] | None = None) -> list[Any]:
        """The artifacts among the arguments (those called `names`), in their order, each once."""
        products: dict[str, Product] = {}

        def note(product: Product) -> Product:
            products.setdefault(product.fingerprint, product)
            return product

        map_products({k: v for k, v in self.arguments.items() if names is None or k in names}, note)
        return list(products.values())


def map_products(value: T, function: Callable[[Any], Product]) -> T:
    """`value` with every artifact in it (in mappings, sequences, frozen dataclasses) replaced by `function` of it."""
    out: Any = value
    if isinstance(value, Product):
        out = function(value)
    elif isinstance(value, Mapping):
        out = {k: map_products(v, function) for k, v in value.items()}
    elif isinstance(value, list | tuple):
        out = type(value)(map_products(v, function) for v in value)
    elif is_dataclass(value) and not isinstance(value, type):
        out = replace(value, **{f.name: map_products(getattr(value, f.name), function) for f in fields(value)})
    return out  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cost:
    """Amounts that the seconds and bytes of a step grow with, as dotted arguments: their product counts.

    A part behind an input is a figure of it (`images.images`), `*` sums over a mapping (`raws.*.bytes`). `bytes_are` is
    an argument that says the bytes outright.
    """

    seconds_by: tuple[str, ...] = ()
    bytes_by: tuple[str, ...] = ()
    bytes_are: str | None = None


@dataclass(frozen=True, eq=False)
class Stage(Generic[P, A]):
    """A kind of step. `version` is raised by hand when the stage starts to make something else.

    `retries`, `timeout` (seconds), `gpus` and `tags` say how to run it, `cost` how to estimate it; none is hashed.
    `through` is whether it reads through its inputs to theirs (pixels behind an index), so that those must be at hand
    too. `same_bits` is whether two builds of it must agree: not where times are part of what it makes. `early` is
    whether it checks what somebody gave, and so is made before what takes long. `shows` is whether it is about its
    inputs, so that a run that asks for it brings them back too, where it is finished and they are gone.
    """

    name: str
    makes: type[A]
    version: int
    function: Callable[..., Figures]
    retries: int = 0
    timeout: float | None = None
    gpus: int = 0
    tags: tuple[str, ...] = ()
    through: bool = True
    same_bits: bool = True
    early: bool = False
    shows: bool = False
    cost: Cost = Cost()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        try:
            bound = self.signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        bound.apply_defaults()
        given = dict(list(bound.arguments.items())[1:])
        arguments = {k: checked(v, self.hints[k], f"{self.name}: {k}") for k, v in given.items()}
        step = Step(self, arguments)
        step.fingerprint  # noqa: B018  refuses arguments without a stable form here, where they were given
        return self.makes(step)

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def hints(self) -> dict[str, Any]:
        hints = get_type_hints(self.function, include_extras=True)
        return {name: hints[name] for name in list(self.signature.parameters)[1:]}

    @property
    def module(self) -> str:
        return self.function.__module__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return find_stage, (self.module, self.name)


def find_stage(module: str, name: str) -> Stage[Any, Any]:
    """The stage `name` that importing `module` declares."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"stage {name!r}: no module {module!r} in this checkout ({error})") from None
    if name not in REGISTRY:
        raise UserError(f"module {module} declares no stage {name!r}; {nearest(name, REGISTRY)}")
    return REGISTRY[name]
