"""The Prefect UI's content beside the tasks of a run: our log lines, progress, the recipe, the plan, the metrics."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from flows.recipe import Recipe, as_yaml
from flows.terminal import about, size
from vbert.artifacts.making.engine import Built, Events
from vbert.artifacts.making.estimate import estimates
from vbert.artifacts.making.plan import Planned
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.store import Store

EVERY = 5.0  # seconds between two updates of a progress artifact, which cost 25–45 ms each

log = logging.getLogger("vbert.flows")


@contextmanager
def logs_to_prefect() -> Iterator[None]:
    """Bring the lines of the loggers under `vbert` to the page of the run they belong to."""
    logger, handler = logging.getLogger("vbert"), APILogHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@dataclass
class _ProgressArtifact:
    """A step's progress artifact, made when the step lasts long enough to be worth one."""

    context: Context  # of the step's task run, to which the artifact belongs
    last: float
    id: UUID | None = None


@dataclass
class PrefectView(Events):
    """Passes the engine's events on to the terminal and shows them in Prefect. Collects the built artifacts."""

    terminal: Events = field(default_factory=Events)
    built: dict[str, Built] = field(default_factory=dict)
    _shown: dict[str, _ProgressArtifact] = field(default_factory=dict)

    def started(self, artifact: Artifact) -> None:
        self.terminal.started(artifact)
        self._shown[artifact.fingerprint] = _ProgressArtifact(copy_context(), time.monotonic())
        log.info("%s %s: building", artifact.title, artifact.fingerprint[:8])

    def progress(self, artifact: Artifact, done: int, total: int, figures: dict[str, float]) -> None:
        self.terminal.progress(artifact, done, total, figures)
        shown = self._shown.get(artifact.fingerprint)
        if shown is not None and time.monotonic() - shown.last >= EVERY and total:
            shown.last = time.monotonic()
            text = " · ".join([f"{done:,} of {total:,}", *(f"{name} {value:.4g}" for name, value in figures.items())])
            self._show(shown, artifact, 100.0 * done / total, f"{artifact.title}: {text}")

    def finished(self, built: Built) -> None:
        self.terminal.finished(built)
        artifact = built.artifact
        self.built.setdefault(artifact.fingerprint, built)  # a repair, found again later, counts as built
        shown = self._shown.pop(artifact.fingerprint, None)
        if shown is not None and shown.id is not None:
            self._show(shown, artifact, 100.0, f"{artifact.title}: done in {built.seconds:.0f} s")

    def message(self, artifact: Artifact, sentence: str) -> None:
        self.terminal.message(artifact, sentence)
        log.warning("%s", sentence)

    def _show(self, shown: _ProgressArtifact, artifact: Artifact, percent: float, text: str) -> None:
        def call() -> None:
            if shown.id is None:
                made = create_progress_artifact(percent, key=key(f"{artifact.title}-progress"), description=text)
                shown.id = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(shown.id, percent, description=text)

        try:
            shown.context.copy().run(call)
        except Exception as error:  # a server that is away for a moment must not end the work
            log.warning("no progress shown for %s: %s", artifact.title, error)


def outcome(built: Built) -> str:
    """`built in 12.3 s · images 5,000 · …`, or the reason why it was not built."""
    if built.outcome == "cached":
        return "was there"
    if built.outcome == "adopted":
        return f"has the content of {built.manifest.fingerprint[:8]}, made of the same inputs: not built again"
    figures = figures_listed(built.manifest.figures)
    return f"built in {built.seconds:.1f} s" + (f" · {figures}" if figures else "")


def figures_listed(figures: Mapping[str, Any], most: int = 6) -> str:
    """`images 5,000 · regions 16,021`."""
    listed = [f"{name} {_figure(value)}" for name, value in figures.items() if _is_number(value)]
    return " · ".join(listed[:most])


def tag_run(tags: Sequence[str]) -> None:
    """Add tags to this flow run; a server that is away for a moment must not end the work."""
    run_id = flow_run.get_id()
    if tags and run_id is not None:
        with suppress(Exception), get_client(sync_client=True) as client:
            client.update_flow_run(UUID(run_id), tags=[*flow_run.get_tags(), *tags])


def show_plan(lines: Sequence[Planned], recipe: Recipe | None, title: str, store: Store) -> UUID | None:
    """Show the resolved recipe and the plan as artifacts of the flow run. Returns the id of the plan's table."""
    if recipe is not None:
        text = f"```yaml\n{as_yaml(recipe)}```"
        create_markdown_artifact(text, key=key(f"{title}-recipe"), description="the recipe, all defaults filled in")
    missing = sum(line.status != "present" for line in lines)
    summary = f"{missing} of {len(lines)} steps to build" if missing else f"all {len(lines)} steps are there"
    expected = {
        fingerprint: (about(expected.size, size), about(expected.seconds, "{:.0f} s".format))
        for fingerprint, expected in estimates(lines, store).items()
    }
    made = create_table_artifact(_rows(lines, expected), key=key(f"{title}-plan"), description=summary)
    return made if isinstance(made, UUID) else None


def fill_plan(table: UUID | None, lines: Sequence[Planned], built: Mapping[str, Built]) -> None:
    """Write the sizes and times of the steps built into the plan's table."""
    came_to = {fingerprint: (size(b.manifest.size), f"{b.manifest.seconds:.1f} s") for fingerprint, b in built.items()}
    if table is not None and any(line.status != "present" for line in lines):
        with suppress(Exception), get_client(sync_client=True) as client:  # the server is away: the work continues
            client.update_artifact(table, ArtifactUpdate(data=json.dumps(_rows(lines, came_to))))


def _rows(lines: Sequence[Planned], others: Mapping[str, tuple[str, str]]) -> list[dict[str, str]]:
    rows = []
    for line in lines:
        took = size(line.size), f"{line.seconds:.1f} s"
        if line.status != "present":
            took = others.get(line.artifact.fingerprint, ("not built", ""))
        row = {"step": line.artifact.title, "fingerprint": line.artifact.fingerprint[:8]}
        rows.append(row | {"found": line.status + (f", {line.begun} kept" if line.begun else "")})
        rows[-1] |= {"size": took[0], "took": took[1]}
    return rows


def show_results(targets: Sequence[Artifact], store: Store, figures: Mapping[str, float], title: str) -> None:
    """Show the metrics as a table, and the path of the report."""
    if figures:
        rows = [{"metric": name, "value": _figure(value)} for name, value in figures.items()]
        create_table_artifact(rows, key=key(f"{title}-metrics"), description="metrics of this run")
    for target in targets:
        if target.stage_name == "report":
            page = target.bound(store).file("report.html")
            create_link_artifact(
                page.as_uri(),
                link_text=f"report of {title}",
                key=key(f"{title}-report"),
                description=f"A page on the machine that ran this. Browsers open it by its path: `{page}`",
            )


def key(text: str) -> str:
    """An artifact's key, of this run alone: under one of several runs Prefect shows the latest only."""
    return re.sub(r"[^a-z0-9]+", "-", f"{text}-{str(flow_run.get_id())[-8:]}".lower()).strip("-")  # all it may hold


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
