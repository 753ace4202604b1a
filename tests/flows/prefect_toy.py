"""Toy graphs as a flow: in the test's process, or by `main` with the arguments STORE KIND OPTIONS MACHINE [serve]."""

# No postponed annotations: a served flow is pickled by value, and its parameters could not be resolved again.
import json
import sys
from pathlib import Path
from typing import Any

from artifacts import toy
from fragile_stages import busy, fragile_graph
from prefect import flow

from flows.on_prefect.body import IN_PROCESS, InProcess, build_targets
from flows.on_prefect.schedule import StoppableRunner
from vbert.artifacts.making.engine import Events
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.store import Store

KINDS: dict[str, Any] = {"toy": toy.graph, "fragile": fragile_graph, "busy": busy}


@flow(name="toy", flow_run_name="{kind}", persist_result=False)
def toy_flow(store: str, kind: str, options: dict[str, Any], machine: Machine) -> dict[str, float]:
    """A toy graph."""
    return build_targets([KINDS[kind](**options)], Store(store), machine)


class Said(Events):
    def message(self, artifact: Artifact, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


def main() -> None:
    store, kind, options, machine = (
        sys.argv[1],
        sys.argv[2],
        json.loads(sys.argv[3]),
        Machine(**json.loads(sys.argv[4])),
    )
    if sys.argv[5:] == ["serve"]:
        parameters = {"store": store, "kind": kind, "options": options, "machine": machine.model_dump()}
        runner = StoppableRunner()
        runner.add_flow(toy_flow, name=Path(store).parent.name, parameters=parameters)
        runner.serve()
    else:
        IN_PROCESS.set(InProcess(Said()))
        print(json.dumps(toy_flow(store, kind, options, machine)))
