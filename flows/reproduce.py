"""The commands that make a report again: those of a shipped recipe with its changes, or with the whole recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from flows.recipe import Recipe, parse_changes, recipe_names, resolve
from vbert.data.yaml import load_yaml
from vbert.errors import UserError

WHERE = {"name", "machine"}  # fields that change no artifact


def commands_to_reproduce(recipe: Recipe) -> str:
    """Lines for a shell: they build the artifacts of `recipe` from a checkout."""
    name = recipe.name
    if name in recipe_names():
        changes = list(_changes(_what(resolve(name)), _what(recipe)))
        if _same(lambda: resolve(name, parse_changes(changes, "--set")), recipe):
            return shlex.join(["vbert", "run", name, *(part for change in changes for part in ("--set", change))])
    given = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=WHERE)
    text = _yaml(given)
    if not _same(lambda: load_yaml(text, name, Recipe), recipe):
        text = _yaml(recipe.model_dump(mode="json", by_alias=True, exclude=WHERE))
    file = shlex.quote(f"{name or 'recipe'}.yaml")
    return f"cat > {file} <<'END'\n{text}END\nvbert run {file}"


def _what(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True, exclude=WHERE)


def _same(other: Any, recipe: Recipe) -> bool:
    try:
        return _what(other()) == _what(recipe)
    except UserError:
        return False


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in after.items():
        was = before.get(key)
        if isinstance(was, Mapping) and isinstance(value, Mapping) and was and was.keys() <= value.keys():
            yield from _changes(was, value, f"{path}{key}.")
        elif key not in before or was != value:
            yield f"{path}{key}={json.dumps(value, ensure_ascii=False)}"


def _yaml(value: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    writer.width = 10_000
    out = StringIO()
    writer.dump(value, out)
    return out.getvalue()
