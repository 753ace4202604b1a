"""Values by the types that a stage's parameters declare: checked at the call, and read back from JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator


@lru_cache(maxsize=256)
def _validator(annotation: Any) -> SchemaValidator:
    return SchemaValidator(_revalidating(TypeAdapter(annotation).core_schema))


def _revalidating(schema: Any) -> Any:
    """Of dataclasses the fields are looked at too, whoever made them: their type hints bind nobody."""
    if isinstance(schema, dict):
        more = {"revalidate_instances": "always"} if schema.get("type") == "dataclass" else {}
        return {key: _revalidating(part) for key, part in schema.items()} | more
    return [_revalidating(part) for part in schema] if isinstance(schema, list) else schema


def checked(value: Any, annotation: Any, where: str) -> Any:
    """`value` if it is what `annotation` says (an int where a float is asked becomes one); sequences become tuples.

    Raises TypeError, naming `where`.
    """
    try:
        return _validator(annotation).validate_python(_frozen(value), strict=True)
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: -len(each["loc"]))
        at = "".join(f"[{part!r}]" for part in first["loc"])
        given = first["input"]
        shown = given.title if hasattr(given, "step") else repr(given)[:80]
        message = first["msg"].replace("Input should be", "must be")
        raise TypeError(f"{where}{at} {message}, got {type(given).__name__} ({shown})") from None


def decoded(value: Any, annotation: Any, artifact: Callable[[str], Any]) -> Any:
    """The value that `encoded` wrote; `artifact` gives the artifact of a fingerprint."""
    return _validator(annotation).validate_python(_frozen(value), context=artifact)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if type(value) is dict else value
