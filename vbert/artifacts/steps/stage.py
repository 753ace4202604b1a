"""`@stage`: a function whose signature is the declaration of a step, and what such a function is given.

The first parameter, `build`, is where and how and is never hashed; every other parameter is what, and all of it is.
Calling a stage runs nothing: it returns the artifact-to-be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, TypeVarTuple

from pydantic import AfterValidator, Field

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.step import REGISTRY, Cost, Figures, Stage
from vbert.artifacts.store import durable

__all__ = ["Build", "Cost", "Figures", "Job", "Machine", "Make", "Stopped", "stage"]

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)
U = TypeVar("U")
Ts = TypeVarTuple("Ts")  # of a function that a child runs, what comes behind its `Job`
NO_COST = Cost()
SCHEDULER = r"(tcp|tls)://[^\s/@]+:[0-9]+"


def _units_on(value: str) -> str:
    if value not in ("threads", "dask") and not re.fullmatch(SCHEDULER, value):
        raise ValueError(f"{value!r} is neither threads nor dask nor a Dask scheduler's address (tcp://10.0.0.5:8786)")
    return value


class Machine(Settings):
    """Settings that must not change bits, and are proven by tests not to."""

    units_at_once: int = Field(2, ge=1, description="child processes that make units")
    steps_at_once: int = Field(1, ge=1, description="stages that run side by side")
    loader_workers: int = Field(1, ge=0, description="processes that prepare batches, a rank")
    checkpoint_steps: int = Field(200, ge=1, description="optimiser steps between two checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="of several CUDA devices, child process i that makes units sees number i alone, in turns"
    )
    units_on: Annotated[str, AfterValidator(_units_on)] = Field(
        "threads",
        description="threads (each waits for a child process), dask (a local cluster for the run), or the address of a "
        "Dask scheduler",
        json_schema_extra={"pattern": f"^(threads|dask|{SCHEDULER})$"},
    )


class Stopped(BaseException):
    """SIGTERM came, and the work left off at a checkpoint; the same command goes on from there."""


def _no_report(*_: Any, **__: Any) -> None: ...


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Job:
    """The first argument of a function that runs in a child process: to make a unit, or as a rank of `Build.process`.

    `directory` is for its files; `scratch` for checkpoints, which survive a crash (those of a unit don't).
    """

    directory: Path
    scratch: Path
    machine: Machine
    rank: int = 0
    world: int = 1
    report: Callable[..., None] = _no_report
    stop: Callable[[], bool] = _never

    def progress(self, done: int, total: int, **figures: float) -> None:
        if self.rank == 0:
            self.report(done, total, **figures)

    def kept(self, done: int, total: int) -> None:
        """Note that a checkpoint of `done` of `total` steps is whole, for those who ask how far the artifact is."""
        if self.rank == 0:
            durable.hint(self.scratch / "kept.json", {"done": done, "total": total})

    @property
    def stopping(self) -> bool:
        """SIGTERM came: write a checkpoint and raise Stopped."""
        return self.stop()


Make = Callable[[Job, U], Figures]  # makes a unit of what it is of


class Build(Protocol):
    """Where and how, as a stage's function sees it. Nothing here is ever hashed."""

    directory: Path
    scratch: Path
    machine: Machine

    def each(self, units: Sequence[tuple[str, U]], make: Make[U], count: Callable[[U], int] = ...) -> None: ...
    def unit_figures(self) -> dict[str, Figures]: ...
    def process(self, function: Callable[[Job, *Ts], Figures], *arguments: *Ts, processes: int = 1) -> Figures: ...
    def progress(self, done: int, total: int, **figures: float) -> None: ...
    def earlier(self) -> list[Artifact]: ...


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
    cost: Cost = NO_COST,
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
