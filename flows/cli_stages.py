"""`vbert why`, `path` and `build`: one stage of a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.cli_runs import existing_store
from flows.options import JsonOption, MachineOption, Set, SharedOption, StoreOption, graph_of, recipe_of, store_at
from vbert.errors import UserError

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact


def why(
    recipe: str,
    stage: str | None = None,
    /,
    *,
    changes: Set = [],  # noqa: B006
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """The differences between a stage and the most similar artifact in the store; with a fingerprint, its lineage.

    Example: `vbert why demo 'regions[easy_vqa]'`, or `vbert why 3fa2c1d0`

    Parameters
    ----------
    recipe
        a shipped recipe's name or a YAML file; or, alone, the fingerprint of a finished artifact, or its beginning.
    stage
        `detector`, or one of several: `regions[easy_vqa]`.
    """
    from vbert.artifacts.upkeep.why import lineage
    from vbert.artifacts.upkeep.why import why as explain

    if stage is not None:
        lines = explain(store_at(store), _one(recipe_of(recipe, changes), stage))
    elif re.fullmatch("[0-9a-f]{4,64}", recipe):
        lines = lineage(existing_store(store), recipe)
    else:
        raise UserError(f"name a stage of {recipe} (`vbert status {recipe}` lists them), or give a fingerprint alone")
    print(json.dumps(lines) if json_ else "\n".join(lines))


def path(
    recipe: str,
    stage: str,
    /,
    *,
    step: Annotated[bool, Parameter(negative=())] = False,
    changes: Set = [],  # noqa: B006
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """The directory of a finished stage, or with --step the step as JSON for `vbert build`.

    Example: `ls $(vbert path demo regions[easy_vqa])`

    Parameters
    ----------
    recipe
        a shipped recipe's name or a YAML file.
    stage
        `detector`, or one of several: `regions[easy_vqa]`.
    step
        print the step, instead of the path of its result.
    """
    from vbert.artifacts.steps.step_json import steps_as_json

    artifact = _one(recipe_of(recipe, changes), stage)
    if step:
        print(json.dumps(steps_as_json(artifact)))
        return
    location = str(artifact.bound(store_at(store)).path)
    print(json.dumps({"path": location, "fingerprint": artifact.fingerprint}) if json_ else location)


def build(
    step: Path,
    /,
    *,
    units: str | None = None,
    store: StoreOption = None,
    shared: SharedOption = False,
    machine: MachineOption = [],  # noqa: B006
) -> None:
    """Build one step from its file, for Slurm arrays, pods and colleagues. SIGTERM stops it at a checkpoint.

    Example: `vbert path demo regions[shapes] --step > step.json && vbert build step.json --units 0-3`

    Parameters
    ----------
    step
        its file, as `vbert path RECIPE STAGE --step` writes it.
    units
        make only units A to B of the plan (counted from 0, both included); another call publishes.
    """
    from flows.recipe import machine_from
    from flows.running import engine_here
    from flows.runs import record_run, slug
    from flows.terminal import Terminal
    from vbert.artifacts.making.work import UnitsMade
    from vbert.artifacts.steps.step_json import artifact_from_json

    try:
        document = json.loads(step.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{step}: {error}; `vbert path RECIPE STAGE --step` writes one") from None
    artifact, at = artifact_from_json(document), store_at(store)
    if shared:
        at.share()
    name = f"build-{slug(artifact.title)}-{artifact.fingerprint[:8]}"  # one record for all machines that make parts
    with (
        record_run(at, name, f"build {artifact.title} {artifact.fingerprint[:8]}", [artifact], not at.read_only()),
        Terminal() as terminal,
        engine_here(at, machine_from(machine), terminal, artifact) as engine,
    ):
        made = engine.ensure(artifact) if units is None else engine.make_units(artifact, _range(units))
    if isinstance(made, UnitsMade):
        print(f"{made.done} of {made.total} units are there")
    else:
        print(at.where(made.manifest))


def _one(recipe: Recipe, stage: str) -> Artifact:
    from vbert.artifacts.making.plan import only, walk

    return only(walk(graph_of(recipe)), stage)


def _range(units: str) -> range:
    first, dash, last = units.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
        raise UserError(f"--units {units!r}: give a number or a range such as 0-9")
    return range(int(first), int(last or first) + 1)
