"""Why something is to be made: the fields that set it apart from what is there; and what a thing was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.errors import UserError


def why(store: Store, artifact: Artifact) -> list[str]:
    """The differences between `artifact` and the most alike finished artifact of its stage, a line a field.

    `regions: settings.score 0.1 → 0.2`; an input that differs is followed to the settings that make it so.
    """
    wanted = steps_as_json(artifact)
    new = _Known({a.fingerprint: a.step.hashed for a in walk(artifact) if a.step}, wanted["steps"])
    others = [made for made in store.manifests(artifact.stage_name) if made.fingerprint != artifact.fingerprint]
    there = store.record(artifact.stage_name, artifact.fingerprint)
    first = [f"{artifact.title} {artifact.fingerprint[:8]} is there, made {there.created}"] if there else []
    if not others:
        return [
            *first,
            f"no other {artifact.stage_name} in {store.location}" if there else f"no {artifact.stage_name} yet",
        ]
    hashed = {made.fingerprint: made.hashed for made in store.manifests()}
    best: tuple[int, list[str], Manifest] | None = None
    for other in sorted(others, key=lambda made: made.created, reverse=True):
        old = _Known(hashed, other.step.get("steps", {}))
        lines = list(dict.fromkeys(_differences(old, other.fingerprint, new, artifact.fingerprint)))
        if best is None or len(lines) < best[0]:
            best = len(lines), lines, other
    assert best is not None
    _, lines, other = best
    titled = f"{other.stage}[{other.label}]" if other.label else other.stage
    return [*first, f"compared with {titled} {other.fingerprint[:8]}, made {other.created}", *lines]


def lineage(store: Store, fingerprint: str) -> list[str]:
    """The steps that a finished artifact was made by, a line each, inputs first. `fingerprint` may be its beginning."""
    matching = [manifest for manifest in store.manifests() if manifest.fingerprint.startswith(fingerprint)]
    if len(matching) != 1:
        how = f"{len(matching)} artifacts begin with" if matching else "no artifact begins with"
        raise UserError(f"{how} {fingerprint!r} in {store.location}; `vbert status RECIPE` lists them")
    lines = []
    steps = matching[0].step["steps"]
    for made in _inputs_first(steps, matching[0].step["build"]):
        step = steps[made]
        title = f"{step['stage']}[{step['label']}]" if step.get("label") else step["stage"]
        manifest = store.record(step["stage"], made)
        if manifest is None:
            state = "not in the store"
        else:
            state = f"made {manifest.created} in {manifest.seconds:.1f} s" + (
                f", as {manifest.alias_of[:8]}" if manifest.alias_of else ""
            )
        inputs = [other[:8] for other in sorted(set(_artifacts(step["arguments"])))]
        lines.append(
            f"{title} {made[:8]} version {step['version']}, {state}" + (f" ← {' '.join(inputs)}" * bool(inputs))
        )
    return lines


def _inputs_first(steps: dict[str, Any], target: str) -> list[str]:
    order: dict[str, None] = {}

    def visit(fingerprint: str) -> None:
        if fingerprint not in order:
            for other in _artifacts(steps[fingerprint]["arguments"]):
                visit(other)
            order[fingerprint] = None

    visit(target)
    return list(order)


@dataclass(frozen=True)
class _Known:
    """The known steps of one side: as hashed, or else as in the step's file, which also holds places."""

    hashed: dict[str, dict[str, Any]]
    steps: dict[str, dict[str, Any]]

    def of(self, fingerprint: str, hashed: bool) -> dict[str, Any] | None:
        step = (self.hashed if hashed else self.steps).get(fingerprint)
        return None if step is None else {key: step[key] for key in ("stage", "version", "arguments")}


def _differences(old: _Known, before: str, new: _Known, after: str) -> Iterator[str]:
    both = [(old.of(before, hashed), new.of(after, hashed)) for hashed in (True, False)]
    pair = next(((a, b) for a, b in both if a is not None and b is not None), None)
    if pair is None:
        return
    a, b = pair
    stage = b["stage"]
    if a["stage"] != stage:
        yield f"{stage}: stage {a['stage']} → {stage}"
        return
    if a["version"] != b["version"]:
        yield f"{stage}: version {a['version']} → {b['version']}"
    deeper: list[tuple[str, str]] = []
    leaves_a, leaves_b = _leaves(a["arguments"]), _leaves(b["arguments"])
    for name in dict.fromkeys([*leaves_a, *leaves_b]):
        x, y = leaves_a.get(name, ABSENT), leaves_b.get(name, ABSENT)
        if x == y and type(x) is type(y):
            continue
        if isinstance(x, _Input) and isinstance(y, _Input):
            yield f"{stage}: {name} {x.fingerprint[:8]} → {y.fingerprint[:8]}"
            deeper.append((x.fingerprint, y.fingerprint))
        else:
            yield f"{stage}: {name} {_short(x)} → {_short(y)}"
    for x_mark, y_mark in deeper:
        yield from _differences(old, x_mark, new, y_mark)


@dataclass(frozen=True)
class _Input:
    fingerprint: str


ABSENT = object()


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        if set(value) == {"artifact"}:
            return {name: _Input(value["artifact"])}
        out: dict[str, Any] = {}
        for key, item in value.items():
            out |= _leaves(item, f"{name}.{key}" if name else key)
        return out
    if isinstance(value, list):
        out = {}
        for i, item in enumerate(value):
            out |= _leaves(item, f"{name}[{i}]")
        return out
    return {name: value}


def _artifacts(value: Any) -> list[str]:
    return [leaf.fingerprint for leaf in _leaves(value).values() if isinstance(leaf, _Input)]


def _short(value: Any) -> str:
    if value is ABSENT:
        return "(none)"
    if isinstance(value, _Input):
        return value.fingerprint[:8]
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
