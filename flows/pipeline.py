"""The whole chain, for `prefect deploy flows/pipeline.py:pipeline`."""

# No postponed annotations: a served flow is pickled by value, and its parameters could not be resolved again.
from typing import Any

from prefect import flow

from flows.on_prefect.body import build, run_name
from flows.recipe import Recipe
from vbert.artifacts.steps.stage import Machine


@flow(name="pipeline", flow_run_name=run_name, persist_result=False)
def pipeline(
    recipe: str | Recipe = "demo",
    changes: dict[str, Any] | None = None,
    store: str = "",
    machine: Machine | None = None,
    until: list[str] | None = None,
) -> dict[str, float]:
    """Raw data sets to a trained, evaluated VisualBERT and its report. Returns the metrics.

    Args:
        recipe: a shipped recipe's name, a YAML file, or a whole recipe, frozen here.
        changes: dotted fields of the recipe and their values: `{"pretrain.steps": 600}`.
        store: where artifacts are, a folder or URL; without it $VBERT_STORE, else ./store. Finished ones are not built
            again.
        machine: how many things at once; changes no bits. Without it, the recipe's.
        until: stages to stop at, such as `regions[easy_vqa]`. Without it, the report.
    """
    return build(recipe, changes, store, machine, until or ())
