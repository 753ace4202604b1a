"""Fingerprints: sha256 of canonical JSON, which refuses what has no stable form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

from vbert.artifacts.steps.settings import Acceptance, Location, Plugin, Since, Wiring, carries, removed
from vbert.artifacts.store.digests import dumps, sha256

Identify = Callable[[Any], str | None]  # an artifact's identity, or None for anything else


def no_artifacts(_: Any) -> str | None:
    return None


def canonical(value: Any, identify: Identify = no_artifacts, where: str = "value") -> Any:
    """`value` as plain JSON that is the same for equal values in every process.

    Artifacts enter by `identify`; `Settings` by their fields, as the marks of `vbert.artifacts.steps.settings` say.
    Raises TypeError, naming `where`, for what has no stable form: a path, a set, an object, NaN, a non-string key.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} has no stable form")
        return value
    if (identity := identify(value)) is not None:
        return {"artifact": identity}
    if isinstance(value, Plugin):
        return [value.name, value.version]
    if isinstance(value, BaseModel):
        return _model(value, identify, where)
    if is_dataclass(value) and not isinstance(value, type):
        if not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError(f"{where}: {type(value).__name__} must be a frozen dataclass to be fingerprinted")
        return {f.name: canonical(getattr(value, f.name), identify, f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
        return {key: canonical(value[key], identify, f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item, identify, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where}: a {type(value).__name__} has no stable form and can't be fingerprinted")


def _model(model: BaseModel, identify: Identify, where: str) -> dict[str, Any]:
    out: dict[str, Any] = {name: mark.value for name, mark in removed(type(model)).items()}
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        marks = info.metadata
        if carries(marks, Wiring):
            continue
        if carries(marks, Location) and getattr(model, "sha256", None):
            continue
        if (accepts := next((mark for mark in marks if carries([mark], Acceptance)), None)) is not None:
            out |= {} if accepts.hashed is None else {name: accepts.hashed}
            continue
        if any(isinstance(mark, Since) and mark.value == value for mark in marks):
            continue
        out[name] = canonical(value, identify, f"{where}.{name}")
    return out


def digest(value: Any, identify: Identify = no_artifacts, where: str = "value") -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return sha256(dumps(canonical(value, identify, where)))
