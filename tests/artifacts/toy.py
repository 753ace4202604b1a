"""A toy graph: raw numbers → squares (units) → a trained sum. Stages for the tests of the engine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.stage import Build, Figures, Job, Stopped, stage


class Numbers(Artifact):
    def read(self) -> list[int]:
        return json.loads(self.file("numbers.json").read_text())


class Squares(Artifact):
    def read(self) -> dict[str, int]:
        return {n: json.loads(self.file(n).read_text()) for n in self.names()}


class Total(Artifact):
    def read(self) -> int:
        return json.loads(self.file("total.json").read_text())


class Slow(Settings):
    seconds: float = 0.0
    scale: int = 1


@stage("toy_numbers", makes=Numbers, version=1)
def numbers(build: Build, count: int, order: str = "up") -> Figures:
    values = list(range(count))
    (build.directory / "numbers.json").write_text(json.dumps(sorted(values)))
    return {"count": count}


@stage("toy_squares", makes=Squares, version=1, retries=1)
def squares(build: Build, numbers: Numbers, settings: Slow) -> Figures:
    units = [(f"{n:04d}", n) for n in numbers.read()]
    build.each(units, partial(square, settings, Path(os.environ.get("TOY_LOG", "/dev/null"))))
    return {"squares": len(build.unit_figures())}


def square(settings: Slow, log: Path, job: Job, n: int) -> Figures:
    time.sleep(settings.seconds)
    with open(log, "a") as out:
        out.write(f"square {n}\n")
    (job.directory / f"{n:04d}.json").write_text(json.dumps(settings.scale * n * n))
    return {"n": n}


def square_of(job: Job, n: int) -> Figures:
    """A unit as `squares` makes it, at once."""
    return square(Slow(), Path("/dev/null"), job, n)


@stage("toy_bulk", makes=Artifact, version=1)
def bulk(build: Build, files: int, megabytes: int) -> Figures:
    for n in range(files):
        (build.directory / f"{n}.bin").write_bytes(bytes([n]) * (megabytes << 20))
    return {}


class Nested(Artifact):
    def read(self) -> dict[str, int]:
        return {name.split("/")[1]: json.loads(self.file(name).read_text()) for name in self.names() if "/" in name}


@stage("toy_nested", makes=Nested, version=1)
def nested(build: Build, numbers: Numbers) -> Figures:
    """Units with files in directories, beside files of its own."""
    build.each([(f"u{n}", n) for n in numbers.read()], nest)
    (build.directory / "own").mkdir()
    (build.directory / "own.json").write_text("{}")
    return {}


def nest(job: Job, n: int) -> Figures:
    (job.directory / f"part{n}").mkdir()
    (job.directory / f"part{n}" / str(n)).write_text(json.dumps(n * n))
    return {}


@stage("toy_total", makes=Total, version=1)
def total(build: Build, squares: Squares, more: Mapping[str, Squares], settings: Slow) -> Figures:
    return build.process(add_up, squares, dict(more), settings)


@stage("toy_page", makes=Artifact, version=1, shows=True)
def page(build: Build, total: Total, squares: Squares) -> Figures:
    """As a report: about its inputs."""
    (build.directory / "page").write_text(str(total.read()))
    return {}


def add_up(job: Job, squares: Squares, more: dict[str, Squares], settings: Slow) -> Figures:
    """Sums one square a step; a checkpoint after each."""
    values: list[Any] = list(squares.read().values()) + [v for s in more.values() for v in s.read().values()]
    checkpoint = job.scratch / "checkpoint.json"
    done, sum_ = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
    for i in range(done, len(values)):
        time.sleep(settings.seconds)
        if job.stopping:
            raise Stopped
        sum_ += values[i]
        fresh = job.scratch / "fresh.json"
        fresh.write_text(json.dumps((i + 1, sum_)))
        fresh.rename(checkpoint)
        with open(os.environ.get("TOY_LOG", "/dev/null"), "a") as out:
            out.write(f"add {i}\n")
        job.progress(i + 1, len(values), sum=float(sum_))
    (job.directory / "total.json").write_text(json.dumps(sum_))
    return {"total": sum_}


def graph(count: int = 6, scale: int = 1, seconds: float = 0.0, order: str = "up") -> Total:
    settings = Slow(seconds=seconds, scale=scale)
    one = squares(numbers(count, order).named("one"), settings).named("one")
    two = squares(numbers(count + 1, order).named("two"), settings).named("two")
    return total(one, {"two": two}, settings)
