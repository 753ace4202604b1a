"""YAML 1.2 files as pydantic models, with errors that state file:line:column, the field and the nearest valid name.

Files are not trusted: aliases, anchors, merges, tags and repeated keys are refused, size and depth are bounded.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from vbert.artifacts.steps.settings import LocalPath, removed
from vbert.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 256 * 1024  # of one file
MAX_DEPTH = 32
SET = "--set"  # where a change stands, instead of a file


@dataclass(frozen=True)
class YamlNode:
    """A parsed value and where it stands. `value`: a scalar, or a dict or list of nodes; `at`: `file:line:column`."""

    value: Any
    at: str
    key_at: str = ""  # where its key stands, if it has one

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read_yaml(path: Path, model: type[M], changes: Mapping[str, Any] | None = None) -> M:
    """The file `path` as a `model`. `changes`: dotted keys (`train.steps`) to values that replace those of the file.

    Local paths in the file (fields marked `LocalPath`) are relative to it, those in `changes` to the working directory.
    Raises UserError at the first fault (further ones in its details) as `file:line:column: field: what`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return load_yaml(text, str(path), model, changes, path.parent)


def load_yaml(
    text: str,
    source: str,
    model: type[M],
    changes: Mapping[str, Any] | None = None,
    folder: Path = Path(),
    option: str = "--set",
) -> M:
    """Like `read_yaml`, of a text that errors call `source`; its relative paths are relative to `folder`."""
    root = parse(text, source)
    if not isinstance(root.value, dict):
        raise UserError(f"{root.at}: the file must hold `key: value` lines, not {_kind(root.value)}")
    for key, value in (changes or {}).items():
        _change(root, key, _node(value, f"{option} {key}"), model)
    _rooted(root, model, folder)
    try:
        # JSON mode is strict as YAML is typed: no "3" for 3, yet lists for tuples and 1 for 1.0.
        return model.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        # A misspelt key comes before the missing one that it stands for.
        likeliest = _likeliest(root, error.errors(include_url=False))
        likeliest.sort(key=lambda fault: bool(fault["type"] != "extra_forbidden"))
        faults = [_fault(root, model, fault) for fault in likeliest]
        raise UserError(faults[0], "\n".join(faults[1:])) from None


def is_yaml(name: str) -> bool:
    """Whether `name` is that of a YAML file."""
    return name.endswith((".yaml", ".yml"))


def parse_value(text: str) -> Any:
    """A value as it would be read in a file: `1e-4` a float, `[a, b]` a list, `no` a string. For `--set key=TEXT`."""
    return parse(text, "value").plain()


def parse(text: str, source: str) -> YamlNode:
    """`text` as nodes with their places. Raises UserError for faulty, hostile or ambiguous YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text.encode()) > MAX_BYTES:
        raise UserError(f"{source}: larger than {MAX_BYTES:,} bytes; is it the right file?")
    reader = YAML(typ="rt", pure=True)
    try:
        return _NodeBuilder(reader, source).document(reader.parse(text))
    except MarkedYAMLError as error:
        position = error.problem_mark or error.context_mark
        place = f"{source}:{position.line + 1}:{position.column + 1}" if position else source
        raise UserError(f"{place}: not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise UserError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None


class _NodeBuilder:
    """Nodes from ruamel's events: one pass, nothing expanded, nothing constructed."""

    def __init__(self, reader: Any, source: str) -> None:
        self._resolver, self._source = reader.resolver, source

    def document(self, events: Iterator[Any]) -> YamlNode:
        from ruamel.yaml import events as e

        root: YamlNode | None = None
        for event in events:
            if isinstance(event, e.DocumentStartEvent) and root is not None:
                raise UserError(f"{self._at(event)}: a second document; one file holds one")
            if isinstance(event, e.DocumentStartEvent) and event.version not in (None, (1, 2)):
                raise UserError(f"{self._at(event)}: only YAML 1.2 is read; take out the %YAML line")
            if isinstance(event, e.ScalarEvent | e.CollectionStartEvent | e.AliasEvent):
                root = self._value(event, events, 0)
        return root or YamlNode(None, f"{self._source}:1:1")

    def _at(self, event: Any) -> str:
        return f"{self._source}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def _value(self, event: Any, events: Iterator[Any], depth: int, key_at: str = "") -> YamlNode:
        from ruamel.yaml import events as e

        at = self._at(event)
        if isinstance(event, e.AliasEvent) or event.anchor:
            raise UserError(f"{at}: anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise UserError(f"{at}: the tag {event.tag} is not allowed; write a plain value")
        if depth > MAX_DEPTH:
            raise UserError(f"{at}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, e.ScalarEvent):
            return YamlNode(self._scalar(event, at), at, key_at)
        if isinstance(event, e.SequenceStartEvent):
            items = []
            while not isinstance(item := next(events), e.SequenceEndEvent):
                items.append(self._value(item, events, depth + 1))
            return YamlNode(items, at, key_at)
        entries: dict[str, YamlNode] = {}
        while not isinstance(start := next(events), e.MappingEndEvent):
            where = self._at(start)
            key = self._value(start, events, depth + 1).value
            if not isinstance(key, str):
                raise UserError(f"{where}: a key must be a string, not {_kind(key)}; put it in quotes")
            if key in entries:
                raise UserError(f"{where}: {key}: given twice, first at {entries[key].key_at}; keep one")
            entries[key] = self._value(next(events), events, depth + 1, where)
        return YamlNode(entries, at, key_at)

    def _scalar(self, event: Any, at: str) -> Any:
        from ruamel.yaml.nodes import ScalarNode

        text: str = event.value
        if not text.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise UserError(f"{at}: half of a surrogate pair is no text; write the character itself")
        tag = str(self._resolver.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        if tag == "merge":
            raise UserError(f"{at}: merge keys are not allowed; write the values out")
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        try:
            if tag == "int":
                return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else int(text)
            if tag == "float":
                value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                if not math.isfinite(value):
                    raise UserError(f"{at}: {text} is not a finite number")
                return value
        except ValueError:
            raise UserError(f"{at}: {text} looks like a number and is none; put it in quotes if it is text") from None
        return text


def _node(value: Any, at: str) -> YamlNode:
    if isinstance(value, Mapping):
        return YamlNode({str(key): _node(item, at) for key, item in value.items()}, at, at)
    if isinstance(value, list | tuple):
        return YamlNode([_node(item, at) for item in value], at, at)
    return YamlNode(value, at, at)


def _change(root: YamlNode, key: str, new: YamlNode, model: type[BaseModel]) -> None:
    """Put `new` at the dotted `key`, making the mappings on the way."""
    parts, place = key.split("."), root
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(place.value, list):
            if not part.isdecimal() or int(part) >= len(place.value):
                raise UserError(f"{new.at}: {part!r} must be 0 to {len(place.value) - 1}, an item of the list")
            if last:
                place.value[int(part)] = new
            else:
                place = place.value[int(part)]
        elif isinstance(place.value, dict):
            valid = set() if _any_key(model, parts[:i]) else _names_at(model, parts[:i])
            if remedy := _remedy(model, parts[: i + 1]):
                raise UserError(f"{new.at}: {remedy}")
            if valid and part not in valid:
                raise UserError(f"{new.at}: there is no {part!r}; {nearest(part, valid)}")
            if last:
                place.value[part] = new
            else:
                inner = place.value.get(part)
                if inner is None or inner.value is None:
                    inner = place.value[part] = YamlNode({}, new.at, new.at)
                place = inner
        else:
            raise UserError(f"{new.at}: {'.'.join(parts[:i])} is {place.value!r}, nothing can be set inside it")


def _rooted(place: YamlNode, annotation: Any, folder: Path) -> None:
    """Make local paths in `place` absolute, where the fields of the model say that they are paths."""
    for choice in _members(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel) and isinstance(place.value, dict):
            for name, info in choice.model_fields.items():
                inner = place.value.get(info.alias or name)
                if inner is None:
                    continue
                marks = [marker for marker in info.metadata if isinstance(marker, LocalPath)]
                if marks and isinstance(inner.value, dict):
                    for key, value in inner.value.items():
                        inner.value[key] = _absolute(value, marks[0], folder)
                elif marks:
                    place.value[info.alias or name] = _absolute(inner, marks[0], folder)
                else:
                    _rooted(inner, info.annotation, folder)
        elif isinstance(place.value, list | dict) and get_args(choice):
            inside = get_args(choice)[0 if get_origin(choice) in (list, tuple) else -1]
            for inner in place.value.values() if isinstance(place.value, dict) else place.value:
                _rooted(inner, inside, folder)


def _absolute(node: YamlNode, marker: LocalPath, folder: Path) -> YamlNode:
    """The node, made absolute where it is a path; one of a change is relative to the working directory."""
    base = Path() if node.at.startswith(SET) else folder
    if not _is_path(node.value, marker, base):
        return node
    return replace(node, value=os.path.abspath(base / os.path.expanduser(node.value)))


def _is_path(value: Any, marker: LocalPath, base: Path) -> bool:
    if not isinstance(value, str) or not value or "://" in value:
        return False
    if marker.unless is not None and re.match(marker.unless, value):
        return False
    if not marker.or_name or "/" in value or is_yaml(value):
        return True
    return marker.names is not None and value not in marker.names() and (base / value).exists()


def _likeliest(root: YamlNode, faults: Sequence[Any]) -> list[Any]:
    """The faults that each member of a union reports, reduced to those of the member that reports the fewest."""
    members: dict[tuple[Any, ...], dict[Any, list[Any]]] = {}
    for fault in faults:
        if fault["type"] == "default_factory_not_called":  # only follows from another fault
            continue
        place, location = root, fault["loc"]
        at = 0
        while at < len(location) and (inner := _child(place, location[at])) is not None:
            place, at = inner, at + 1
        if at < len(location) - 1:
            members.setdefault(location[:at], {}).setdefault(location[at], []).append(fault)
        else:
            members[location, id(fault)] = {None: [fault]}
    return [fault for faults in members.values() for fault in min(faults.values(), key=len)]


def _child(place: YamlNode, part: Any) -> YamlNode | None:
    """The node in `place` under the key or index `part`."""
    inside = place.value
    if part in (inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()):
        return inside[part]  # type: ignore[no-any-return]
    return None


def _fault(root: YamlNode, model: type[BaseModel], fault: Any) -> str:
    """One pydantic fault as a sentence with its place."""
    place, named = root, list[str]()
    at = place.at
    reason = fault.get("ctx", {}).get("error")
    location = (*fault["loc"], *(reason.location if isinstance(reason, NestedError) else ()))
    for depth, part in enumerate(location):
        if (inner := _child(place, part)) is not None:
            place = inner
        elif fault["type"] == "missing" and part == location[-1]:
            named.append(str(part))
            at = place.key_at or place.at
            break
        else:  # the name of a union's member, not a key of the file; or a key that the file leaves at its default
            named += [str(part)] * (depth >= len(fault["loc"]))
            continue
        named.append(str(part))
        at = place.at
    field = ".".join(named) or "the file"
    if fault["type"] == "extra_forbidden":
        hint = nearest(named[-1], _names_at(model, named[:-1]))
        return f"{place.key_at or at}: {field}: {_remedy(model, named) or f'there is no such key; {hint}'}"
    if fault["type"] == "missing":
        return f"{at}: {field}: is missing"
    if fault["type"] == "union_tag_invalid" and isinstance(place.value, dict):
        tag, tags = fault["ctx"]["tag"], re.findall("'([^']*)'", fault["ctx"]["expected_tags"])
        for key, inner in place.value.items():
            if str(inner.value) == tag:
                return f"{_named(inner.at, f'{field}.{key}')}: no {key} {tag!r}; {nearest(tag, tags)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    got = f" (got {json.dumps(fault['input'], ensure_ascii=False)[:80]})" if _shown(fault) else ""
    return f"{_named(at, field)}: {message[:1].lower()}{message[1:]}{got}"


def _named(at: str, field: str) -> str:
    """The place and the field, which `--set FIELD` names already."""
    return at if at.endswith(f" {field}") else f"{at}: {field}"


class NestedError(ValueError):
    """Raised by a validator of a whole mapping about the value at `location` inside it."""

    def __init__(self, location: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.location = tuple(location)


def _shown(fault: Any) -> bool:
    """Whether the error shows the value: not where a validator's own sentence names it, and never for secrets."""
    return fault["type"] != "value_error" and not isinstance(fault["input"], dict | list)


def _models_at(model: Any, path: list[str]) -> list[type[BaseModel]]:
    """The models that the mapping at `path` under `model` may be one of; none where any key goes."""
    options = [model]
    for part in path:
        options = [inner for option in options for inner in _child_annotations(option, part)]
    choices = [choice for option in options for choice in _members(option)]
    return [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]


def _names_at(model: Any, path: list[str]) -> set[str]:
    """The valid keys of the mapping at `path` under `model`; empty where any key goes."""
    fields = [field for kind in _models_at(model, path) for field in kind.model_fields.items()]
    return {info.alias or name for name, info in fields}


def _remedy(model: Any, path: list[str]) -> str:
    """The remedy for the field at `path` if it was removed; else ""."""
    marks = [removed(kind).get(path[-1]) for kind in _models_at(model, path[:-1])]
    return next((f"was removed: {mark.remedy}" for mark in marks if mark is not None), "")


def _any_key(model: Any, path: list[str]) -> bool:
    """Whether the mapping at `path` may have keys of the user's own."""
    options = [model]
    for part in path:
        options = [inner for option in options for inner in _child_annotations(option, part)]
    return any(get_origin(choice) in (dict, Mapping) for option in options for choice in _members(option))


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for option in get_args(annotation) for member in _members(option)]
    return [annotation]


def _child_annotations(annotation: Any, part: str) -> list[Any]:
    """The annotations of the value under the key or index `part`."""
    annotations = []
    for choice in _members(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            annotations += [i.annotation for name, i in choice.model_fields.items() if part in (name, i.alias)]
        elif get_args(choice):  # dict[str, X], Mapping[str, X]; list[X], tuple[X, ...]
            annotations.append(get_args(choice)[0 if get_origin(choice) in (list, tuple) else -1])
    return annotations


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:40]
