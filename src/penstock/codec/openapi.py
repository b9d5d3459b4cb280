"""JSON Schema of types, with shared parts as components, as OpenAPI 3.1 wants it.

msgspec writes the schemas of what it knows, pydantic those of its models; numpy arrays are nested lists, and any other
class is a description alone, which allows anything. Names are made fit for OpenAPI, and two types of one name are kept
apart. Never raises: a type that cannot be described, such as a union of an array and a list, is {}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, get_origin

import msgspec

from penstock.codec.foreign import module, subclass

COMPONENTS = "#/components/schemas/{name}"
_HERE = "\0{name}"  # stands for the final reference until every name is known

# JSON Schema takes `contentEncoding` for a remark; what is refused must be said in a pattern.
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_ITEMS = {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "array"}]}  # of an array's nested lists

Json = dict[str, Any]


def openapi_types(kinds: Iterable[Any], ref_template: str = COMPONENTS) -> tuple[list[Json], dict[str, Json]]:
    """The schema of each type, in order, and the components by name that they refer to."""
    listed = list(kinds)
    models: dict[type, str] = {}
    hook = _hook(models)
    good = [kind for kind in listed if _written([kind], _hook({})) is not None]
    written = _written(good, hook)
    schemas, components = written if written is not None else ((), {})
    described = iter(schemas)
    result = [next(described, {}) if any(kind is g for g in good) else {} for kind in listed]
    renames = {name: re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in components}
    final = {renames[name]: _referring(schema, renames, ref_template) for name, schema in components.items()}
    result = [_referring(schema, renames, ref_template) for schema in result]
    placed: dict[str, str] = {}
    for model, key in models.items():
        placed[key] = _place(model, final, ref_template)
    if placed:
        final = {name: _referring(schema, placed, ref_template) for name, schema in final.items()}
        result = [_referring(schema, placed, ref_template) for schema in result]
    return result, final


def _written(kinds: list[Any], hook: Callable[[Any], Json]) -> tuple[tuple[Json, ...], dict[str, Json]] | None:
    try:
        return msgspec.json.schema_components(kinds, schema_hook=hook, ref_template=_HERE)
    except Exception:
        return None


def _hook(models: dict[type, str]) -> Callable[[Any], Json]:
    def describe(kind: Any) -> Json:
        origin = get_origin(kind) or kind
        if subclass(origin, "numpy", "ndarray"):
            return {"type": "array", "items": _ITEMS, "description": "Nested lists of numbers, equal in length."}
        if subclass(origin, "numpy", "generic"):
            return _scalar(origin)
        if subclass(origin, "pydantic", "BaseModel"):
            return {"$ref": _HERE.format(name=models.setdefault(origin, f"\0model{len(models)}"))}
        # msgspec takes {} for no answer.
        name = getattr(origin, "__name__", str(origin))
        return {"description": "Any value." if origin is object else f"A `{name}`, which has no wire form."}

    return describe


def _scalar(kind: type) -> Json:
    numpy = module("numpy")
    if issubclass(kind, numpy.bool_):
        return {"type": "boolean"}
    if issubclass(kind, numpy.integer):
        return {"type": "integer"}
    return {"type": "number"} if issubclass(kind, numpy.floating) else {"type": "string"}


def _referring(schema: Any, names: dict[str, str], template: str) -> Any:
    """`schema` with each provisional reference to a key of `names` made final, and base64 spelt out."""
    if isinstance(schema, list):
        return [_referring(part, names, template) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _referring(part, names, template) for key, part in schema.items()}
    for key, name in changed.items():
        if isinstance(name, str) and name.startswith("\0") and name[1:] in names:
            changed[key] = template.format(name=names[name[1:]])
    if changed.get("contentEncoding") == "base64":
        changed.setdefault("pattern", _BASE64)
    return changed


def _place(model: Any, components: dict[str, Json], template: str) -> str:
    """Adds a pydantic model and its parts to `components`; returns the name that it got."""
    try:
        schema = model.model_json_schema(ref_template=_HERE.format(name="{model}"))
    except Exception:
        schema = {}
    parts = {**schema.pop("$defs", {})}
    top = schema.get("$ref", "")[1:] if schema.keys() == {"$ref"} else ""  # a model that refers to itself
    if not top:
        top = model.__name__
        parts[top] = schema
    names: dict[str, str] = {}
    for name in parts:
        names[name] = plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        same = _referring(parts[name], {other: other for other in parts}, template)
        count = 1
        while names[name] in components and components[names[name]] != same:
            count += 1
            names[name] = f"{plain}_{count}"
    for name, part in parts.items():
        components[names[name]] = _referring(part, names, template)
    return names[top]
