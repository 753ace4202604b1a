"""Values by the types a stage's parameters declare: checked at the call, written as JSON, read back."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from vbert.artifacts.steps.artifact import Artifact


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _is_class(annotation: Any, parent: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, parent)


def spelled(annotation: Any) -> str:
    annotation = _plain(annotation)
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " | ".join(spelled(a) for a in inner)
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(spelled(a) for a in inner)}]"
    return str(annotation)


def checked(value: Any, annotation: Any, where: str) -> Any:
    """`value` if it is what `annotation` says (an int where a float is asked becomes one), else TypeError.

    Knows artifacts, settings, frozen dataclasses, mappings, sequences, unions, literals and plain JSON types.
    """
    annotation = _plain(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for option in inner:
            try:
                return checked(value, option, where)
            except TypeError:
                continue
    elif origin is Literal:
        if value in inner:
            return value
    elif _is_class(origin, Mapping):
        if isinstance(value, Mapping):
            return {key: checked(item, inner[1], f"{where}[{key!r}]") for key, item in value.items()}
    elif _is_class(origin, Sequence):
        if isinstance(value, list | tuple):
            return tuple(checked(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value))
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif annotation is None or annotation is type(None):
        if value is None:
            return None
    elif is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, annotation):
            hints = get_type_hints(annotation, include_extras=True)
            held = {f.name: getattr(value, f.name) for f in fields(annotation)}
            return replace(value, **{k: checked(v, hints[k], f"{where}.{k}") for k, v in held.items()})
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    got = value.title if isinstance(value, Artifact) else repr(value)[:80]
    raise TypeError(f"{where} must be {spelled(annotation)}, got {type(value).__name__} ({got})")


def encoded(value: Any) -> Any:
    """`value` as JSON; artifacts as `{"artifact": fingerprint}`. Locations included, unlike in a fingerprint."""
    if isinstance(value, Artifact):
        return {"artifact": value.fingerprint}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encoded(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    return value


def decoded(value: Any, annotation: Any, artifact: Callable[[str], Artifact]) -> Any:
    """The inverse of `encoded`; `artifact` gives the artifact of a fingerprint."""
    annotation = _plain(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        options = [option for option in inner if option is not type(None)]
        for option in options:
            try:
                return checked(decoded(value, option, artifact), option, "value")
            except (TypeError, ValueError, KeyError, AttributeError):
                continue
        raise TypeError(f"{value!r} is none of {spelled(annotation)}")
    if _is_class(origin, Mapping):
        return {key: decoded(item, inner[1], artifact) for key, item in value.items()}
    if _is_class(origin, Sequence):
        return tuple(decoded(item, inner[0], artifact) for item in value)
    if _is_class(annotation, Artifact):
        return artifact(value["artifact"])
    if _is_class(annotation, BaseModel):
        return annotation.model_validate(value, context=artifact)
    if is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation, include_extras=True)
        return annotation(**{name: decoded(item, hints[name], artifact) for name, item in value.items()})
    return value
