"""The chain up to the metrics, for `prefect deploy flows/evaluate.py:evaluate`."""

# No postponed annotations: a served flow is pickled by value, and its parameters could not be resolved again.
from typing import Any

from prefect import flow

from flows.on_prefect.body import build, run_name
from flows.recipe import Recipe
from vbert.artifacts.steps.stage import Machine


@flow(name="evaluate", flow_run_name=run_name, persist_result=False)
def evaluate(
    recipe: str | Recipe = "demo",
    changes: dict[str, Any] | None = None,
    store: str = "",
    machine: Machine | None = None,
) -> dict[str, float]:
    """Fine-tuned models to predictions and metrics. Returns the metrics.

    Args:
        recipe: a shipped recipe's name, a YAML file, or a whole recipe, frozen here.
        changes: dotted fields of the recipe and their values: `{"pretrain.steps": 600}`.
        store: where artifacts are, a folder or URL; without it $VBERT_STORE, else ./store. Finished ones are not built
            again.
        machine: how many things at once; changes no bits. Without it, the recipe's.
    """
    return build(recipe, changes, store, machine, until=("evaluate",))
