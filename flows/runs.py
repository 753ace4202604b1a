"""Records of runs in a store: the request, the steps, the outcome; and the comparison of two runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.stage import Stopped
from vbert.data.yaml import is_yaml
from vbert.errors import BuildError, UserError, nearest

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.store import Store


def run_id(name: str, suffix: str = "") -> str:
    """The time, the name and a unique suffix: containers that share a store may have equal process ids."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}-{suffix or uuid4().hex[:8]}"


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "run"


def origin(recipe: str) -> str:
    """The identity of a recipe beside others of its name: the name of a shipped one, the absolute path of a file."""
    return os.path.abspath(recipe) if is_yaml(recipe) else recipe


@contextmanager
def record_run(
    store: Store,
    run: str,
    recipe: Recipe | str,
    targets: Sequence[Artifact],
    builds: bool = True,
    source: str = "",
    changes: Mapping[str, Any] | None = None,
    until: Sequence[str] = (),
    **more: Any,
) -> Iterator[None]:
    """Write the run's record, by which `vbert gc` keeps every step that the run needs, built or not.

    `recipe`: or a title, for a command without one; `source`: its origin; `changes`: to its dotted fields, None where
    unknown. A record of the same name is replaced, except for the mark of `vbert keep`.
    """
    began = time.time()
    named = recipe if isinstance(recipe, str) else recipe.name
    record: dict[str, Any] = {
        "recipe": named,
        "source": source,
        "changes": None if changes is None else dict(changes),
        "until": list(until),
        **({} if isinstance(recipe, str) else {"resolved": recipe.model_dump(mode="json")}),
        "targets": [target.fingerprint for target in targets],
        "steps": {artifact.fingerprint: artifact.title for artifact in walk(*targets)},
        "started": began,
        **more,
    }

    def note(**outcome: Any) -> None:
        store.prepare()
        store.record_run(run, record | outcome | {"kept": store.run(run).get("kept", False)})  # by `vbert keep`

    if builds:
        note(status="running")
    outcome: dict[str, Any] = {"status": "failed"}
    try:
        yield
        outcome = {"status": "done", "metrics": metrics(targets, store)}
    except (KeyboardInterrupt, Stopped):
        outcome = {"status": "stopped"}
        raise
    finally:
        if not store.read_only():
            # The run's own error is raised, not this one (a full disk, a server that is away).
            with suppress(*([] if outcome["status"] == "done" else [OSError, UserError, BuildError])):
                note(**outcome, seconds=time.time() - began)


def metrics(targets: Sequence[Artifact], store: Store) -> dict[str, float]:
    """The numbers of finished targets: `vqa/easy_vqa/test/accuracy` of a report, `regions[shapes]/images` of others."""
    figures: dict[str, float] = {}
    for target in targets:
        manifest = store.find(target.stage_name, target.fingerprint)
        prefix = "" if target.stage_name in ("report", "evaluate") else f"{target.title}/"
        for name, value in manifest.figures.items() if manifest is not None else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                figures[prefix + name] = value
    return figures


def rows(store: Store, recipe: str | None = None) -> list[dict[str, Any]]:
    """A row a run (of one recipe), oldest first: run, recipe, changes, started, seconds, status, metrics, kept."""
    records = sorted(store.runs().items(), key=lambda item: (item[1].get("started", 0.0), item[0]))
    if recipe is not None:
        names = {str(record.get("recipe")) for _, record in records}
        if recipe not in names:
            raise UserError(f"no run of a recipe {recipe!r} in {store.location}; {nearest(recipe, names)}")
        records = [item for item in records if item[1].get("recipe") == recipe]
    return [
        {
            "run": run,
            "recipe": record.get("recipe"),
            "changes": record.get("changes") or {},
            "until": record.get("until") or [],
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.get("started", 0.0))),
            "seconds": record.get("seconds"),
            "status": record.get("status"),
            "metrics": record.get("metrics") or {},
            "kept": bool(record.get("kept")),
        }
        for run, record in records
    ]


def row_lines(row: Mapping[str, Any], most: int = 4) -> list[str]:
    """A row as text: the run, its time and outcome; below it, its first metrics."""
    changes = [f"{key}={value}" for key, value in row["changes"].items()] + [f"until {name}" for name in row["until"]]
    took = "" if row["seconds"] is None else f" in {row['seconds']:,.0f} s"
    columns = [row["run"], row["recipe"], *changes, row["started"], f"{row['status']}{took}", *["kept"] * row["kept"]]
    shown = [f"{name} {figure(value)}" for name, value in list(row["metrics"].items())[:most]]
    more = len(row["metrics"]) - len(shown)
    listed = "  ".join([*shown, *[f"and {more} more"] * (more > 0)])
    return ["  ".join(map(str, columns)), *[f"    {listed}"] * bool(shown)]


def figure(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def difference(store: Store, a: str, b: str) -> dict[str, dict[str, list[Any]]]:
    """The differences of two runs: `settings` by dotted field, `artifacts` by title, `metrics`; each [value in a, in
    b].

    None stands for an absent value. Raises UserError with the nearest name for a run that isn't there.
    """
    runs = store.runs()
    for name in (a, b):
        if name not in runs:
            raise UserError(f"no run {name!r} in {store.location}; {nearest(name, runs)}")
    one, two = runs[a], runs[b]
    return {
        "settings": _different(_leaves(one.get("resolved")), _leaves(two.get("resolved"))),
        "artifacts": _different(_by_title(one), _by_title(two)),
        "metrics": _different(one.get("metrics") or {}, two.get("metrics") or {}),
    }


def difference_lines(by_part: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[str]:
    """The result of `difference` as lines."""

    def as_text(part: str, value: Any) -> str:
        if value is None:
            return "(none)"
        if part == "artifacts":
            return " ".join(fingerprint[:8] for fingerprint in value)
        return figure(value) if part == "metrics" else str(value)

    lines = []
    for part, differences in by_part.items():
        lines.append(f"{part}:" if differences else f"{part}: the same")
        for name, (x, y) in differences.items():
            by = f"  ({y - x:+.4g})" if part == "metrics" and None not in (x, y) else ""
            lines.append(f"  {name}  {as_text(part, x)} → {as_text(part, y)}{by}")
    return lines


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*a, *b])
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _by_title(record: Mapping[str, Any]) -> dict[str, list[str]]:
    fingerprints: dict[str, list[str]] = {}
    steps = record.get("steps") or {}
    for fingerprint, title in (
        steps.items() if isinstance(steps, Mapping) else ((fingerprint, fingerprint[:8]) for fingerprint in steps)
    ):
        fingerprints.setdefault(title, []).append(fingerprint)
    return {title: sorted(marks) for title, marks in fingerprints.items()}


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; lists are values."""
    if not isinstance(value, Mapping):
        return {} if value is None and not name else {name: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _leaves(item, f"{name}.{key}" if name else str(key))
    return out
