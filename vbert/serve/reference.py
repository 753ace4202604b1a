"""The interface's reference as a page, made of its OpenAPI description: nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "page"
PHOTOS = {"image": "cat.jpg", "left": "left.jpg", "right": "right.jpg"}
SAID = {
    "question": "What colour is the cat?",
    "text": "a cat on a sofa",
    "statement": "both are dogs",
    "choices": "a cat",
    "task": "answer",
}


def reference(api: Mapping[str, Any], base: str) -> bytes:
    """api: as `FastAPI.openapi` gives it. base: the server's address, for the examples."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    schemas = api["components"]["schemas"]
    calls = [
        _call(path, method, about, schemas, base)
        for path, methods in api["paths"].items()
        for method, about in methods.items()
    ]
    replies = {call["schema"] for call in calls}
    parts = [
        (name, _fields(one))
        for name, one in schemas.items()
        if name not in replies and not name.startswith("Body_") and "properties" in one
    ]
    refusals: dict[str, str] = {}
    for methods in api["paths"].values():
        for about in methods.values():
            refusals |= {code: its["description"] for code, its in about["responses"].items() if code != "200"}
    page = jinja.get_template("reference.html.j2")
    return page.render(api=api, calls=calls, parts=parts, refusals=sorted(refusals.items())).encode()


def _call(path: str, method: str, about: Mapping[str, Any], schemas: Mapping[str, Any], base: str) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    fields: list[dict[str, str]] = []
    curl = [f"curl {base}{path.removeprefix('/')}"]
    if body := about.get("requestBody"):
        (form,) = body["content"].values()
        schema = schemas[form["schema"]["$ref"].rpartition("/")[2]]
        fields = _fields(schema)
        needed = schema.get("required", [])
        curl += [
            f"-F {field}=@{PHOTOS[field]}" if field in PHOTOS else f"-F '{field}={SAID[field]}'" for field in needed
        ]
        if "choices" in needed:
            curl.append("-F 'choices=a dog'")
    reply = about["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return {
        "name": name,
        "method": method.upper(),
        "path": path,
        "summary": about["summary"],
        "curl": " ".join(curl),
        "fields": fields,
        "schema": reply,
        "reply": _fields(schemas[reply]),
    }


def _fields(schema: Mapping[str, Any]) -> list[dict[str, str]]:
    needed, told = schema.get("required", []), []
    for name, one in schema["properties"].items():
        about = [_kind(one)]
        if name not in needed:
            about.append(f"by default {one['default']!r}" if one.get("default") is not None else "may be left out")
        about += [one["description"]] if one.get("description") else []
        told.append({"name": name, "told": "; ".join(about)})
    return told


def _kind(one: Mapping[str, Any]) -> str:
    if "$ref" in one:
        return str(one["$ref"]).rpartition("/")[2]
    if "anyOf" in one:
        return " or ".join(_kind(each) for each in one["anyOf"])
    if "prefixItems" in one:
        return f"{len(one['prefixItems'])} {_kind(one['prefixItems'][0])}s"
    if one.get("type") == "array":
        return f"list of {_kind(one['items'])}"
    if one.get("contentMediaType") or one.get("format") == "binary":
        return "file"
    bounds = [f"{word} {one[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in one]
    longest = [f"of at most {one['maxLength']:,} characters"] if "maxLength" in one else []
    return " ".join([str(one.get("type", "anything")), *bounds, *longest])
