"""`vbert`: the command. Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped at a checkpoint (run it again)."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from flows import cli_features, cli_score
from flows.cli_data import datasets, init
from flows.cli_doctor import doctor
from flows.cli_explain import explain
from flows.cli_models import export, import_model
from flows.cli_predict import predict
from flows.cli_preprocess import preprocess
from flows.cli_runs import existing_store, gc, keep, runs
from flows.cli_search import search
from flows.cli_serve import serve
from flows.cli_stages import build, path, why
from flows.options import (
    JsonOption,
    MachineOption,
    Set,
    SharedOption,
    StoreOption,
    changes_of,
    graph_of,
    recipe_of,
    store_at,
)
from vbert.artifacts.steps.stage import Stopped
from vbert.errors import BuildError, UserError

app = App(
    name="vbert",
    help="Raw image–text data sets to a trained, evaluated VisualBERT.",
    help_format="plaintext",
    version=lambda: version("vbert"),
    suppress_keyboard_interrupt=False,  # `main` prints the message for Ctrl-C
)

app.command(cli_features.app)
app.command(cli_score.app)


@app.command
def run(
    recipe: str,
    /,
    *,
    changes: Set = [],  # noqa: B006  cyclopts reads the default
    store: StoreOption = None,
    shared: SharedOption = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    limit: int | None = None,
    until: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006
    force: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006
    machine: MachineOption = [],  # noqa: B006
    local: Annotated[bool, Parameter(negative=())] = False,
    prefect: Annotated[bool, Parameter(negative=())] = False,
    json_: JsonOption = False,
) -> None:
    """Build the missing artifacts of a recipe, and print the metrics and the report's path.

    Example: `vbert run demo --set downstream.vqa.learning_rate=5e-4`

    Parameters
    ----------
    recipe
        a shipped recipe's name (`vbert init --list` lists them) or a YAML file.
    dry_run
        show what is present and what is missing, and stop.
    limit
        at most so many images per data set and split.
    until
        stop at a stage: `regions`, or one of them, `regions[easy_vqa]`.
    force
        build a finished stage again, aside, and compare the bits.
    local
        build in this process, without Prefect.
    prefect
        go through Prefect even when everything is there.
    """
    from flows.running import RecipeRun, plan_rows

    if local and prefect:
        raise UserError("--local and --prefect exclude each other")
    from flows.recipe import machine_of, resolve
    from flows.runs import origin

    changed = changes_of(changes, limit)
    resolved = resolve(recipe, changed)
    running = RecipeRun(resolved, store_at(store), machine_of(resolved, machine), until)
    if shared and not dry_run:
        running.store.share()
    if dry_run and json_:
        print(json.dumps({"store": running.store.location, "stages": plan_rows(running.lines, running.store)}))
        return
    if dry_run:
        running.show_plan()
    elif force:
        running.compare(force)
    else:
        running.run("local" if local else "prefect" if prefect else "auto", origin(recipe), changed)
    if json_:
        print(json.dumps(running.summary()), flush=True)


@app.command
def status(recipe: str, /, *, changes: Set = [], store: StoreOption = None, json_: JsonOption = False) -> None:  # noqa: B006
    """The stages of a recipe: present, unfinished (with how much) or missing. Example: `vbert status demo`

    Parameters
    ----------
    recipe
        a shipped recipe's name or a YAML file.
    """
    from flows.running import plan_rows
    from flows.terminal import print_plan
    from vbert.artifacts.making.estimate import estimates
    from vbert.artifacts.making.plan import plan

    at = store_at(store)
    lines = plan([graph_of(recipe_of(recipe, changes))], at)
    if json_:
        print(json.dumps({"store": at.location, "stages": plan_rows(lines, at)}))
    else:
        print_plan(lines, estimates(lines, at))


@app.command
def verify(*, store: StoreOption = None, json_: JsonOption = False) -> None:
    """Read every byte of the store and name damaged artifacts. Example: `vbert verify --store /data/store`"""
    from flows.terminal import Terminal
    from vbert.artifacts.upkeep.verify import verify as check

    at = existing_store(store)
    with Terminal() as terminal:
        damaged = check(at, terminal.counted("verify"))
    for damage in damaged:
        print(damage, file=sys.stderr)
    if json_:
        print(json.dumps({"damaged": [vars(damage) for damage in damaged]}))
    else:
        print(f"{len(damaged)} damaged files" if damaged else "every file is what its manifest says")
    if damaged:
        raise SystemExit(1)


@app.command
def schedule(
    recipe: str,
    /,
    *,
    cron: str | None = None,
    every: str | None = None,
    changes: Set = [],  # noqa: B006
    store: StoreOption = None,
    machine: MachineOption = [],  # noqa: B006
) -> None:
    """Serve a recipe's pipeline on a schedule against a running Prefect server, until it is interrupted.

    Example: `vbert schedule demo --every 1d` or `vbert schedule demo --cron "0 3 * * *"`

    Parameters
    ----------
    recipe
        a shipped recipe's name or a YAML file.
    cron
        when, in cron's five fields, as the server's clock has it.
    every
        the interval between runs: 90m, 12h, 1d.
    """
    from flows.recipe import machine_of, parse_changes

    if (cron is None) == (every is None):
        raise UserError("give one of --cron and --every")
    resolved = recipe_of(recipe, changes)
    from flows.on_prefect import import_prefect

    import_prefect()
    from flows.on_prefect.schedule import schedule as serve
    from flows.pipeline import pipeline

    where, changed = store_at(store).location, parse_changes(changes, "--set")
    serve(pipeline, recipe, changed, where, machine_of(resolved, machine), cron, every)


@app.command
def show(
    recipe: str | None = None,
    /,
    *,
    fields: Annotated[bool, Parameter(negative=())] = False,
    changes: Set = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """A recipe with its changes and all defaults filled in, as YAML; or with --fields its possible fields.

    Example: `vbert show demo --set seed=1`, or `vbert show --fields downstream.vqa`

    Parameters
    ----------
    recipe
        a shipped recipe's name or a YAML file; with --fields the path of a field: `pretrain.steps`,
        `machine`; of one in a spec: `datasets.sources`, `detectors`, `models`.
    fields
        print each field's meaning, kind and default.
    """
    from flows.recipe import as_yaml

    if fields:
        from flows.fields import fields_at, print_fields

        matching = fields_at(recipe)
        if json_:
            print(json.dumps({"fields": [vars(field) for field in matching]}))
        else:
            print_fields(matching)
        return
    if recipe is None:
        raise UserError("name a recipe (`vbert init --list` lists them), or say --fields")
    resolved = recipe_of(recipe, changes)
    print(json.dumps(resolved.model_dump(mode="json")) if json_ else as_yaml(resolved), end="\n" if json_ else "")


COMMANDS = (
    *(datasets, init, doctor, preprocess, predict, explain, search, serve, export, import_model),
    *(why, path, build, runs, keep, gc),
)
for command in COMMANDS:
    app.command(command)


def _terminated(*_: Any) -> None:
    raise Stopped


def main() -> None:
    """The entry point: a user's mistake is one sentence without a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    code = 1
    try:
        app(sys.argv[1:], result_action="return_value", exit_on_error=False, print_error=True)
        code = 0
    except UserError as error:
        print(f"vbert: {error}", file=sys.stderr)
        code = 2
    except CycloptsError:  # it has printed its error
        code = 2
    except BuildError as error:
        print(f"vbert: {type(error).__name__ if not str(error) else error}", file=sys.stderr)
        for note in getattr(error, "__notes__", [])[:1] if os.environ.get("VBERT_TRACEBACK") else []:
            print(note, file=sys.stderr)
    except (Stopped, KeyboardInterrupt):
        advice = "the same command goes on from here"
        print(f"vbert: stopped; finished work is kept, {advice}", file=sys.stderr)
        code = 75
    except BrokenPipeError:
        code = 0
    except OSError as error:  # a full disk, a missing right
        if os.environ.get("VBERT_TRACEBACK"):
            raise
        print(f"vbert: {error}; finished work is kept, run the same command when this is mended", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
