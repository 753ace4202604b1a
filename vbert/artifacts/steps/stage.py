"""`@stage`: a function whose signature is the declaration of a step.

The first parameter, `build`, is where and how and is never hashed; every other parameter is what, and all of it is.
Calling a stage runs nothing: it returns the artifact-to-be.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from vbert.artifacts.steps.artifact import Artifact, Step
from vbert.artifacts.steps.typed import checked, decoded, encoded
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    from vbert.artifacts.making.build import Build

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)
Figures = dict[str, Any]  # the few numbers worth a line in a table

REGISTRY: dict[str, Stage[Any, Any]] = {}


@dataclass(frozen=True)
class Cost:
    """What the seconds and bytes of a step grow with, as dotted arguments: their product counts.

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


def stage(
    name: str,
    *,
    makes: type[A],
    version: int,
    retries: int = 0,
    timeout: float | None = None,
    gpus: int = 0,
    tags: tuple[str, ...] = (),
    through: bool = True,
    same_bits: bool = True,
    early: bool = False,
    shows: bool = False,
    cost: Cost = Cost(),
) -> Callable[[Callable[Concatenate[Build, P], Figures]], Stage[P, A]]:
    """Declare a stage. Its name is explicit and unique, so renaming the function changes no fingerprint."""

    def declare(function: Callable[Concatenate[Build, P], Figures]) -> Stage[P, A]:
        other = REGISTRY.get(name)
        if other is not None and (other.module, other.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise TypeError(f"two stages are called {name!r}: one in {other.module}, one in {function.__module__}")
        declared: Stage[P, A] = Stage(
            name, makes, version, function, retries, timeout, gpus, tags, through, same_bits, early, shows, cost
        )
        REGISTRY[name] = declared
        return declared

    return declare


def find_stage(module: str, name: str) -> Stage[Any, Any]:
    """The stage `name` that importing `module` declares."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"stage {name!r}: no module {module!r} in this checkout ({error})") from None
    if name not in REGISTRY:
        raise UserError(f"module {module} declares no stage {name!r}; {nearest(name, REGISTRY)}")
    return REGISTRY[name]


def steps_as_json(target: Artifact) -> dict[str, Any]:
    """The step that makes `target` and every step behind it, as JSON: `{"build": fingerprint, "steps": {...}}`."""
    steps: dict[str, Any] = {}

    def add(artifact: Artifact) -> None:
        if artifact.fingerprint in steps or artifact.step is None:
            return
        for needed in artifact.step.inputs():
            add(needed)
        step = artifact.step
        arguments = {k: encoded(v) for k, v in step.arguments.items()}
        steps[artifact.fingerprint] = {
            "module": step.stage.module,
            "stage": step.stage.name,
            "version": step.stage.version,
            "label": artifact.label,
            "arguments": arguments,
        }

    add(target)
    return {"build": target.fingerprint, "steps": steps}


def artifact_from_json(document: Mapping[str, Any]) -> Artifact:
    """The artifact-to-be that `steps_as_json` wrote, checked against this checkout's stages.

    Raises UserError where a stage has another version here, or where the fingerprints don't come out the same.
    """
    made: dict[str, Artifact] = {}

    def make(fingerprint: str) -> Artifact:
        """Inputs first, in whatever order the steps stand: a manifest's keys are sorted."""
        if fingerprint in made:
            return made[fingerprint]
        entry = document["steps"][fingerprint]
        known = find_stage(entry["module"], entry["stage"])
        if known.version != entry["version"]:
            raise UserError(
                f"step {entry['stage']}: made with version {entry['version']} of the stage, this checkout has "
                f"{known.version}; check out the commit it was made with"
            )
        arguments = {name: decoded(value, known.hints[name], make) for name, value in entry["arguments"].items()}
        artifact: Artifact = known(**arguments)
        if entry["label"]:
            artifact = artifact.named(entry["label"])
        if artifact.fingerprint != fingerprint:
            raise UserError(
                f"step {artifact.title}: its arguments now have the fingerprint {artifact.fingerprint[:8]}, the "
                f"file says {fingerprint[:8]}; check out the commit it was made with"
            )
        made[fingerprint] = artifact
        return artifact

    try:
        return make(document["build"])
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise UserError(f"not a step file: {type(error).__name__} {error}; `vbert path RECIPE STAGE --step`") from error
