"""The app as OpenAPI 3.1, from the types of its services."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from penstock.codec import openapi_types
from penstock.runtime import App

if TYPE_CHECKING:
    from penstock.http.endpoint import Endpoint

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "retry_after": {"type": "number"},
    },
}
_HEADERS = [
    ("X-Penstock-Within", {"type": "number", "exclusiveMinimum": 0}, "Deadline, in seconds from now."),
    ("X-Penstock-Priority", {"type": "integer", "minimum": -1000, "maximum": 1000}, "The smaller goes first."),
    ("X-Penstock-Tenant", {"type": "string", "pattern": "^[!-~]{1,128}$"}, "Whose fair share pays."),
]
_FAULTS = {
    "400": "The request cannot be understood",
    "405": "Method not allowed",
    "406": "No acceptable media type",
    "413": "Too large",
    "415": "Unsupported media type",
    "422": "A parameter is wrong, missing or unknown",
    "429": "The queue or the rate is full",
    "500": "The service failed",
    "503": "Overloaded or shutting down",
    "504": "The deadline passed",
}


def describe(app: App, endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """The document. Types that have no schema allow anything."""
    listed = list(endpoints.items())
    kinds: list[Any] = []
    for _, endpoint in listed:
        returns = endpoint.service.signature.return_annotation
        kinds += [endpoint.schema.type, Any if returns is inspect.Parameter.empty else returns]
    schemas, components = openapi_types(kinds)
    paths = {}
    for n, (path, endpoint) in enumerate(listed):
        paths[path] = _path(endpoint, schemas[2 * n], schemas[2 * n + 1], components)
    return {
        "openapi": "3.1.0",
        "info": {"title": app.name, "version": _version()},
        "paths": paths,
        "components": {"schemas": {**components, "Problem": _PROBLEM}},
    }


def _path(endpoint: Endpoint, given: Any, answer: Any, components: dict[str, Any]) -> dict[str, Any]:
    service = endpoint.service
    headers = [
        {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, schema, text in _HEADERS
    ]
    common = {
        "summary": service.doc.partition("\n")[0] or service.name,
        "responses": {"200": _answer(endpoint, answer), **{s: _fault(text) for s, text in _FAULTS.items()}},
    }
    bodies: dict[str, Any] = {"application/json": {"schema": given}, "application/msgpack": {"schema": given}}
    if endpoint.schema.raw:
        bodies["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    post = {
        "operationId": service.name,
        **common,
        "parameters": headers,
        "requestBody": {"required": True, "content": bodies},
    }
    item: dict[str, Any] = {"post": post}
    if service.safe:
        item["get"] = {
            "operationId": f"{service.name}_get",
            **common,
            "parameters": [*_query(given, components), *headers],
        }
    return item


def _query(given: Any, components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components.get(given.get("$ref", "").rpartition("/")[2], given)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": kind}
        for name, kind in schema.get("properties", {}).items()
    ]


def _answer(endpoint: Endpoint, schema: Any) -> dict[str, Any]:
    if endpoint.service.streams:
        text = {"type": "string", "description": "One event an item, each with its number as id; then an event 'end'."}
        content: dict[str, Any] = {"text/event-stream": {"schema": text}, "application/x-ndjson": {"schema": schema}}
    elif endpoint.raw_answer:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    else:
        content = {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}
    return {"description": "The answer", "content": content}


def _fault(text: str) -> dict[str, Any]:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": text, "content": {"application/problem+json": problem}}


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "0"
