"""A step as JSON, with those behind it: `{"build": fingerprint, "steps": {fingerprint: {"stage", "arguments", …}}}`.

Locations are in it, unlike in a fingerprint: whoever has the file can build what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

from vbert.artifacts.steps.checked import decoded
from vbert.artifacts.steps.step import Product, find_stage
from vbert.errors import UserError


def steps_as_json(target: Product) -> dict[str, Any]:
    """The step that makes `target` and every step behind it."""
    steps: dict[str, Any] = {}

    def add(product: Product) -> None:
        if product.step is None or product.fingerprint in steps:
            return
        for needed in product.step.inputs():
            add(needed)
        stage = product.step.stage
        steps[product.fingerprint] = {
            "module": stage.module,
            "stage": stage.name,
            "version": stage.version,
            "label": product.label,
            "arguments": {name: encoded(value) for name, value in product.step.arguments.items()},
        }

    add(target)
    return {"build": target.fingerprint, "steps": steps}


def encoded(value: Any) -> Any:
    """`value` as JSON, by what it is (a declared type may say less); artifacts as `{"artifact": fingerprint}`."""
    if isinstance(value, Product):
        return {"artifact": value.fingerprint}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encoded(item) for key, item in value.items()}
    return [encoded(item) for item in value] if isinstance(value, list | tuple) else value


def artifact_from_json(document: Mapping[str, Any]) -> Any:
    """The artifact-to-be that `steps_as_json` wrote, checked against this checkout's stages.

    Raises UserError where a stage has another version here, or where the fingerprints don't come out the same.
    """
    made: dict[str, Any] = {}

    def make(fingerprint: str) -> Any:
        """Inputs first, in whatever order the steps stand: a manifest's keys are sorted."""
        if fingerprint in made:
            return made[fingerprint]
        entry = document["steps"][fingerprint]
        stage = find_stage(entry["module"], entry["stage"])
        if stage.version != entry["version"]:
            raise UserError(
                f"step {entry['stage']}: made with version {entry['version']} of the stage, this checkout has "
                f"{stage.version}; check out the commit it was made with"
            )
        product = stage(**{name: decoded(value, stage.hints[name], make) for name, value in entry["arguments"].items()})
        if entry["label"]:
            product = product.named(entry["label"])
        if product.fingerprint != fingerprint:
            raise UserError(
                f"step {product.title}: its arguments now have the fingerprint {product.fingerprint[:8]}, the file "
                f"says {fingerprint[:8]}; check out the commit it was made with"
            )
        made[fingerprint] = product
        return product

    try:
        return make(document["build"])
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise UserError(f"not a step file: {type(error).__name__} {error}; `vbert path RECIPE STAGE --step`") from error
