"""Pages that are made when the documentation is built: the fields of recipes and specs, commands, what is shipped.

Directives: `fields` (of `recipe`, `datasets`, `detectors` or `models`) from the pydantic models, `commands` from the
command itself, `shipped` (`recipes`, `datasets`, `detectors` or `models`) from the files, `tree` from the docstrings of
modules.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]


class Generated(SphinxDirective):
    """Markdown that is made, read as if it stood in the page."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # what it is made of is no part of the page
        return self.parse_text_to_nodes("\n".join(self.markdown()), allow_section_headings=True)

    def markdown(self) -> Iterator[str]:
        raise NotImplementedError


class Fields(Generated):
    required_arguments = 1

    def markdown(self) -> Iterator[str]:
        from flows.fields import fields_at

        root = self.arguments[0]
        top = fields_at(None if root == "recipe" else root)
        yield from _defined([field for field in top if not field.inside])
        for field in top:
            if field.inside:
                yield from ["", f"## `{field.path}`", "", f"{_text(field.description).rstrip('.')}. {_kind(field)}", ""]
                yield from _defined(list(_below(field.path)))


def _below(path: str) -> Iterator[Any]:
    from flows.fields import fields_at

    for field in fields_at(path):
        if field.path != path:
            yield field
            if field.inside:
                yield from _below(field.path)


def _defined(fields: list[Any]) -> Iterator[str]:
    seen = set[tuple[str, str]]()
    for field in fields:
        if (said := (field.path, field.description)) not in seen:  # a model that several fields have is told once
            seen.add(said)
            yield from ["", f"`{field.path}` {_kind(field)}", f": {_text(field.description or '—')}"]
    yield ""


def _kind(field: Any) -> str:
    told = field.default not in ("", "none", "required")
    default = f"by default {field.default}" if told else "required" if field.default == "required" else ""
    return f"*{', '.join(filter(None, [_text(field.kind), _text(default)]))}*"


def _text(text: str) -> str:
    """Plain text as Markdown: what stands in backticks stays, other signs mean themselves."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>{}|$])", r"\\\1", part) for part in parts)


class Commands(Generated):
    def markdown(self) -> Iterator[str]:
        from flows.cli import app

        for name, command in _commands(app, "vbert"):
            yield from ["", f"## `{name}`", ""]
            yield from _usage(name, command)


def _commands(app: App, path: str) -> Iterator[tuple[str, App]]:
    for name in sorted(app):
        if not name.startswith("-"):
            yield from _commands(app[name], f"{path} {name}")
    if app.default_command is not None and app.default_command != app.help_print:
        yield path, app


def _usage(name: str, command: App) -> Iterator[str]:
    text = inspect.getdoc(command.default_command) or ""
    for paragraph in text.partition("Parameters\n---")[0].strip().split("\n\n"):
        yield from ["", _text(paragraph)]
    options = []
    for argument in command.assemble_argument_collection(parse_docstring=True):
        names = [one for one in argument.names if one.startswith("-")] or [argument.name]
        default = argument.field_info.default
        told = default not in (None, False, [], inspect.Parameter.empty)
        remark = " *required*" if argument.required else _text(f" by default {default}") if told else ""
        many = " …" if "list" in str(argument.field_info.annotation) else ""
        options += ["", f"`{', '.join(names)}`{many}{remark}", f": {_text(argument.parameter.help or '')}"]
    yield from [*options, ""]


class Shipped(Generated):
    required_arguments = 1

    def markdown(self) -> Iterator[str]:
        kind = self.arguments[0]
        folder = ROOT / ("flows/recipes" if kind == "recipes" else f"data_specs/{kind}")
        for path in sorted(folder.glob("*.yaml")):
            yield from ["", f"`{path.stem}`", f": {_text(_about(path))}"]


def _about(path: Path) -> str:
    """The first comment of a file, or its title."""
    text = path.read_text()
    if comment := re.match(r"(?:#.*\n)+", text):
        return " ".join(line.lstrip("# ") for line in comment[0].splitlines())
    found = re.search(r"^title: *(.+)$", text, re.MULTILINE)
    return found[1].strip("'\"") if found else path.stem


class Tree(Generated):
    """Every module of the packages with the first sentence of its docstring; folders in folders."""

    def markdown(self) -> Iterator[str]:
        for package in ("flows", "tasks", "vbert"):
            yield from ["", f"## {package}", ""]
            yield from _listed(ROOT / package, "")


def _listed(folder: Path, indent: str) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent}- `{path.name}` — {_text(_docstring(path))}"
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        said = _docstring(inner / "__init__.py")
        yield f"{indent}- `{inner.name}/`{f' — {_text(said)}' if said else ''}"
        yield from _listed(inner, f"{indent}  ")


def _docstring(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(said.partition("\n\n")[0].split())


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in (("fields", Fields), ("commands", Commands), ("shipped", Shipped), ("tree", Tree)):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
