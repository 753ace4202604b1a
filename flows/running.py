"""One `vbert run`: plan, build with or without Prefect, compare, and the summary in words and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from flows.graph import cut, graph
from flows.runs import metrics, record_run, run_id
from flows.terminal import Terminal, console, escape, page, print_expected, print_plan
from vbert.artifacts.making.engine import Built, Engine, Events
from vbert.artifacts.making.estimate import estimates
from vbert.artifacts.making.plan import Planned, plan, refuse, select, walk
from vbert.artifacts.store.digests import digests_shared
from vbert.errors import BuildError
from vbert.objectives.pretraining.matching import matching_warning

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.steps.stage import Machine
    from vbert.artifacts.store.store import Store

How = Literal["auto", "local", "prefect"]


@contextmanager
def engine_here(store: Store, machine: Machine, events: Events, target: Artifact) -> Iterator[Engine]:
    """An engine that builds in this process, its units where the machine's are to be made."""
    engine = Engine(store, machine, events)
    if machine.units_on == "threads":
        yield engine
        return
    from flows.on_prefect.dask_units import dask_units

    with dask_units(machine, partial(events.message, target)) as dask:
        engine.run_units = dask.run_works
        yield engine


def plan_rows(lines: Sequence[Planned], store: Store) -> list[dict[str, Any]]:
    """The plan as JSON. Size and seconds of what is missing are estimates, null where nothing like it was made."""
    expected = estimates(lines, store)
    rows = []
    for line in lines:
        guess = expected.get(line.artifact.fingerprint)
        rows.append(
            {
                "stage": line.artifact.stage_name,
                "label": line.artifact.label,
                "fingerprint": line.artifact.fingerprint,
                "status": line.status,
                "size": line.size if guess is None else guess.size and round(guess.size),
                "seconds": line.seconds if guess is None else guess.seconds and round(guess.seconds, 1),
                "estimated": guess is not None,
                "kept": None if line.begun is None else asdict(line.begun),
                "objection": line.objection,
            }
        )
    return rows


class RecipeRun:
    """One run of a recipe on a store: the plan, the building and the summary."""

    def __init__(self, recipe: Recipe, store: Store, machine: Machine, until: Sequence[str]) -> None:
        self.recipe, self.store, self.machine = recipe, store, machine
        self.until, self.targets = until, cut(recipe, until) if until else [graph(recipe)]
        self.lines = plan(self.targets, store)
        self.built: dict[str, Built] = {}
        self.run_id = run_id(recipe.name)

    @property
    def missing(self) -> list[Planned]:
        return [line for line in self.lines if line.status in ("missing", "unfinished")]

    def show_plan(self) -> None:
        """Print the plan and the expected cost of its missing part on standard output."""
        expected = estimates(self.lines, self.store)
        print_plan(self.lines, expected)
        if self.missing:
            page().print(f"{len(self.missing)} of {len(self.lines)} stages to build")
            print_expected(expected)
        else:
            page().print("everything is there")

    def run(self, how: How, source: str, changes: Mapping[str, Any] | None) -> None:
        """Build what is missing, note the run in the store, and print the summary.

        `source` and `changes`: where the recipe is from and what was changed in it, for the record; None: unknown.
        """
        began = time.time()
        refuse(self.lines)
        if how == "auto":
            how = "prefect" if self.missing else "local"
        if self.missing and self.machine.units_on != "threads":
            from flows.on_prefect.dask_units import check_installed

            check_installed(self.machine)
        with (
            record_run(
                self.store, self.run_id, self.recipe, self.targets, bool(self.missing), source, changes, self.until
            ),
            digests_shared(),
            Terminal() as terminal,
        ):
            self._build(how, terminal, changes)
        self.print_summary(time.time() - began)

    def _build(self, how: How, terminal: Terminal, changes: Mapping[str, Any] | None) -> None:
        if how == "local" and not self.missing:
            results: list[Built] = []
        elif how == "local":
            with engine_here(self.store, self.machine, terminal, self.targets[0]) as engine:
                results = engine.ensure_all(self.targets)
        else:
            from flows.on_prefect import import_prefect, own_server

            own_server.start_early()
            import_prefect()
            from flows.on_prefect.in_process import run_on_prefect
            from flows.pipeline import pipeline

            results = run_on_prefect(pipeline, self.recipe, self.targets, self.store, self.machine, terminal, changes)
        self.built = {built.artifact.fingerprint: built for built in results}

    def compare(self, names: Sequence[str]) -> None:
        """`--force`: build finished stages again, aside, and compare bits. Raises BuildError where they differ."""
        chosen = [a for name in names for a in select(walk(*self.targets), name)]
        with Terminal() as terminal, engine_here(self.store, self.machine, terminal, chosen[0]) as engine:
            engine.ensure_all(chosen)
            different = {artifact.title: engine.compare(artifact) for artifact in chosen}
        for title, files in different.items():
            console().print(
                f"{escape(title)}: " + (f"{len(files)} files differ: {', '.join(files[:5])}" if files else "same bits")
            )
        if any(different.values()):
            raise BuildError("a stage made other bits than before; what stands in the store was not replaced")

    def metrics(self) -> dict[str, float]:
        """The report's figures: `vqa/easy_vqa/test/accuracy` and the like; empty where the run ended before it."""
        return metrics([target for target in self.targets if target.stage_name in ("report", "evaluate")], self.store)

    def warnings(self) -> list[str]:
        """Doubts about trained models: a pre-training whose matching hardly uses the images, an evaluation of none."""
        warnings = []
        for artifact in walk(*self.targets):
            if artifact.stage_name == "evaluate" and artifact.step is not None:
                found = self.store.find("evaluate", artifact.fingerprint)
                if found is not None and found.figures.get("examples") == 0:
                    split = artifact.step.arguments["split"]
                    warnings.append(f"{artifact.title}: no examples in split {split}")
            manifest = self.store.find("pretrain", artifact.fingerprint) if artifact.stage_name == "pretrain" else None
            if manifest is not None and (sentence := matching_warning(manifest.figures)):
                warnings.append(f"{artifact.title}: {sentence}")
        return warnings

    def summary(self) -> dict[str, Any]:
        stages = []
        for line in plan(self.targets, self.store):
            built = self.built.get(line.artifact.fingerprint)
            if line.status != "present":
                continue
            stages.append(
                {
                    "stage": line.artifact.stage_name,
                    "label": line.artifact.label,
                    "fingerprint": line.artifact.fingerprint,
                    "status": "built" if built is not None and built.outcome == "built" else "cached",
                    "seconds": round(built.seconds, 3) if built is not None else 0.0,
                }
            )
        return {"run_id": self.run_id, "stages": stages, "metrics": self.metrics(), "warnings": self.warnings()}

    def print_summary(self, seconds: float) -> None:
        from rich.table import Table

        out = console()
        metrics = self.metrics()
        if metrics:
            table = Table(box=None, pad_edge=False, show_header=False)
            for name, value in metrics.items():
                table.add_row(name, f"[bold]{value:.4f}[/]" if isinstance(value, float) else f"[bold]{value:,}[/]")
            out.print(table)
        made = [built for built in self.built.values() if built.outcome == "built"]
        summary = f"{len(made)} stages built" if made else "nothing to build: everything was there"
        out.print(f"{summary}, {seconds:.1f} s, run {self.run_id}")
        for warning in self.warnings():
            out.print(f"[yellow]warning:[/] {escape(warning)}")
        for target in self.targets:
            self._print_target(target)

    def _print_target(self, target: Artifact) -> None:
        bound = target.bound(self.store)
        is_page = target.stage_name == "report"
        where = bound.file("report.html") if is_page else self.store.where(bound.manifest)
        console().print(f"{escape(target.title)}: {where}")
