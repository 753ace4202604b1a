"""`vbert show --fields`: every field of recipes, specs and `--machine`, from the models' own descriptions."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vbert.errors import UserError, nearest
from vbert.objectives import OBJECTIVES, DownstreamSettings

TOLD_BY = ("rule", "kind", "objective")  # fields whose value chooses one of several models
ANY = "NAME"  # the part of a path that stands for a key of the user's choice


@dataclass(frozen=True)
class FieldHelp:
    """A field at the dotted `path`; `inside`: whether it has fields of its own."""

    path: str
    kind: str
    default: str
    description: str
    inside: bool


def roots() -> dict[str, Any]:
    """Models with fields: recipes (whose paths begin with their own fields), and the specs by their folder; of several
    kinds of spec their union."""
    from flows.recipe import Recipe
    from vbert.data.spec import DatasetSpec
    from vbert.model.bert import ModelSpec
    from vbert.model.published import PublishedSpec
    from vbert.regions.detector import DetectorFile

    return {"recipe": Recipe, "datasets": DatasetSpec, "detectors": DetectorFile, "models": ModelSpec | PublishedSpec}


def fields_at(path: str | None) -> list[FieldHelp]:
    """The field at `path` and those in it: `pretrain`, `downstream.vqa.steps`, `machine`; `datasets.sources` of specs.

    Raises UserError with the nearest name where there is none.
    """
    known = roots()
    parts = path.split(".") if path else []
    root = parts.pop(0) if parts and parts[0] in known else "recipe"
    options: list[Any] = [known[root]]
    walked = [] if root == "recipe" else [root]
    matching: list[FieldHelp] = []
    for part in parts:
        here = [model for option in options for model in models(option)]
        valid = [(name, info) for model in here for name, info in members(model)]
        names = dict(valid)
        inner = [value for option in options for value in keyed(option)]
        if part in names:
            options = [info.annotation for name, info in valid if name == part]
            at = ".".join([*walked, part])
            matching = [field for field in below(".".join(walked), here) if field.path == at]
        elif inner and not nearest(part, names).startswith("did you mean"):  # a name of the user's own
            options, matching = inner, []
        else:
            raise UserError(f"--fields {path}: there is no {part!r}; {nearest(part, names or known)}")
        walked.append(part)
    while (into := [value for option in options for value in keyed(option)]) and not any(map(models, options)):
        options = into
        walked.append(ANY)
    return matching + below(".".join(walked), [model for option in options for model in models(option)])


def below(path: str, alternatives: list[type[BaseModel]]) -> list[FieldHelp]:
    """The fields of the models allowed at `path`; of several models, each field names its own."""
    alternatives = list(dict.fromkeys(alternatives))
    common = (
        set.intersection(*({name for name, _ in members(model)} for model in alternatives)) if alternatives else set()
    )
    kinds = {name for name in common if len(alternatives) > 1 and name in TOLD_BY}
    fields: list[FieldHelp] = []
    for model in alternatives:
        for name, info in members(model):
            one = described(f"{path}.{name}" if path else name, info)
            if model is not DownstreamSettings and issubclass(model, DownstreamSettings) and kinds:
                if name in DownstreamSettings.model_fields:  # what all of them have, once
                    if model is alternatives[0]:
                        fields.append(described(one.path, DownstreamSettings.model_fields[name]))
                    continue
                one = replace(one, description=f"({_description(model)}) {one.description}")
            elif kinds and name not in kinds:
                one = replace(one, description=f"({_description(model)}) {one.description}")
            elif kinds:
                one = replace(one, description=" ".join((model.__doc__ or "").split("\n\n")[0].split()))
            fields.append(one)
    return fields


def _description(model: type[BaseModel]) -> str:
    """The value that chooses this model, e.g. `fixed`, `vqa`."""
    if tasks := [name for name, one in OBJECTIVES.items() if one.settings is model]:
        return tasks[0] + " …" * (len(tasks) > 1)
    kind = next((kind_of(info.annotation) for name, info in members(model) if name in TOLD_BY), "")
    first, _, more = kind.partition(" | ")
    return first + " …" * bool(more)


def members(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        yield info.alias or name, info


def described(path: str, info: FieldInfo) -> FieldHelp:
    text = info.description or ""
    if not text:
        inner = everything(info.annotation)
        text = (inner[0].__doc__ or "").split("\n\n")[0] if len(inner) == 1 else ""
    factory = info.default is PydanticUndefined
    default = "" if factory else shown(info.default)
    return FieldHelp(
        path,
        kind_of(info.annotation),
        "required" if info.is_required() else default,
        " ".join(text.split()),
        bool(everything(info.annotation)),
    )


def shown(value: Any) -> str:
    """A default as YAML; "" for a model with fields of its own."""
    if isinstance(value, BaseModel) or value == {}:
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def everything(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation, also behind keys and items."""
    return [*models(annotation), *(model for inner in keyed(annotation) for model in everything(inner))]


def models(annotation: Any) -> list[type[BaseModel]]:
    return [c for c in choices(annotation) if isinstance(c, type) and issubclass(c, BaseModel)]


def keyed(annotation: Any) -> list[Any]:
    """The annotations of an annotation's keys or items."""
    kinds = (list, tuple, dict, Mapping)
    every = [(get_origin(choice), get_args(choice)) for choice in choices(annotation)]
    return [inner[0 if origin in (list, tuple) else -1] for origin, inner in every if origin in kinds and inner]


def choices(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for option in get_args(annotation) for choice in choices(option)]
    return [annotation]


WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def kind_of(annotation: Any) -> str:
    """In words: `whole number`, `best | last`, `list of text`."""
    parts = []
    for choice in choices(annotation):
        origin = get_origin(choice)
        if choice is type(None):
            continue
        if origin is Literal:
            parts.append(" | ".join(map(str, get_args(choice))))
        elif origin in (list, tuple):
            parts.append(f"list of {kind_of(get_args(choice)[0])}")
        elif choice in WORDS:
            parts.append(WORDS[choice])
        else:
            parts.append("mapping")
    return " or ".join(dict.fromkeys(parts))


def print_fields(fields: list[FieldHelp]) -> None:
    from flows.terminal import escape, page

    out = page()
    for field in fields:
        default = (
            f", {field.default}" if field.default == "required" else f" = {field.default}" if field.default else ""
        )
        more = " …" if field.inside else ""
        out.print(f"[bold]{escape(field.path)}[/]{more}  [dim]{escape(field.kind + default)}[/]")
        if field.description:
            out.print(f"    {escape(field.description)}")
    if any(field.inside for field in fields):
        out.print("… has fields of its own: `vbert show --fields PATH`; specs: PATH datasets, detectors or models")
