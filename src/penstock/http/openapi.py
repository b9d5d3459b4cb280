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
    from penstock.http.openai.route import Resource

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
    ("X-Penstock-Within", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e7}, "Deadline, in seconds from now."),
    ("X-Penstock-Priority", {"type": "integer", "minimum": -1000, "maximum": 1000}, "The smaller goes first."),
    ("X-Penstock-Tenant", {"type": "string", "pattern": "^[!-~]{1,128}$"}, "Whose fair share pays."),
    ("X-Request-Id", {"type": "string"}, "Kept if it is 1 to 128 visible ASCII characters; else one is made."),
    ("traceparent", {"type": "string"}, "W3C Trace Context; answered with the same trace and a span of our own."),
]
_ANSWERED = {
    "X-Request-Id": {"schema": {"type": "string"}, "description": "The call's id, as in the log."},
    "Server-Timing": {"schema": {"type": "string"}, "description": "queue, batch, run and stream, in milliseconds."},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL_FAULTS = {
    "400": "The request cannot be understood, or cannot be done",
    "401": "The API key is not known",
    "404": "No model has this name",
    "413": "Too large",
    "415": "Not JSON",
    "429": "The queue or a rate is full",
    "500": "The model failed",
    "503": "Overloaded or shutting down",
    "504": "The deadline passed",
}
_LINES = "One item a line; an empty line is a sign of life, after 15 seconds without an item."
_BESIDE = "Read where the body is raw bytes; in JSON and msgpack it is in the body."
_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds after which it may fit."}
_FAULTS = {
    "400": "The request cannot be understood",
    "405": "Method not allowed",
    "406": "No acceptable media type",
    "408": "The request came too slowly",
    "409": "A newer request took this one's place",
    "413": "Too large",
    "414": "The request target is too long",
    "415": "Unsupported media type",
    "417": "An expectation that cannot be met",
    "422": "A parameter is wrong, missing or unknown",
    "429": "The queue or the rate is full",
    "431": "The header fields are too large",
    "500": "The service failed",
    "501": "A transfer coding or protocol that is not spoken",
    "503": "Overloaded or shutting down",
    "504": "The deadline passed",
    "505": "Not HTTP/1.0 or HTTP/1.1",
}


def describe(app: App, endpoints: Mapping[str, Endpoint], routes: Mapping[str, Resource]) -> dict[str, Any]:
    """The document. Types that have no schema allow anything."""
    listed, read = list(endpoints.items()), [(path, route) for path, route in routes.items() if route.shape is not None]
    kinds: list[Any] = []
    for _, endpoint in listed:
        returns = endpoint.service.signature.return_annotation
        kinds += [endpoint.schema.type, Any if returns is inspect.Parameter.empty else returns]
    schemas, components = openapi_types([*kinds, *(route.shape for _, route in read)])
    paths = {}
    for n, (path, endpoint) in enumerate(listed):
        paths[path] = _path(endpoint, schemas[2 * n], schemas[2 * n + 1], components)
    for (path, route), schema in zip(read, schemas[len(kinds) :], strict=True):
        paths[path] = _model_path(route, schema)
    if read:
        components = {**components, "Error": _ERROR}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": app.name, "version": _version()},
        "paths": paths,
        "components": {"schemas": {**components, "Problem": _PROBLEM}},
    }
    if app.tokens is not None:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return document


def _path(endpoint: Endpoint, given: Any, answer: Any, components: dict[str, Any]) -> dict[str, Any]:
    service, listed = endpoint.service, _query(endpoint, given, components)
    headers = [
        {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, schema, text in _HEADERS
    ]
    common = {
        "summary": service.doc.partition("\n")[0] or service.name,
        "responses": {"200": _answer(endpoint, answer), **{s: _fault(s, text) for s, text in _FAULTS.items()}},
    }
    bodies: dict[str, Any] = {"application/json": {"schema": given}, "application/msgpack": {"schema": given}}
    if endpoint.schema.raw:
        bodies["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    beside = [{**p, "required": False, "description": _BESIDE} for p in listed if p["name"] != endpoint.schema.octets]
    post = {
        "operationId": service.name,
        **common,
        "parameters": [*beside, *headers] if endpoint.schema.raw else headers,
        "requestBody": {"required": True, "content": bodies},
    }
    item: dict[str, Any] = {"post": post}
    if service.safe:
        item["get"] = {
            "operationId": f"{service.name}_get",
            **common,
            "parameters": [*listed, *headers],
        }
    return item


def _model_path(route: Resource, schema: Any) -> dict[str, Any]:
    """An endpoint of models: its answers are what the clients of these protocols know."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {status: {"description": text, "content": error} for status, text in _MODEL_FAULTS.items()}
    answer: dict[str, Any] = {"application/json": {"schema": {}}}
    if route.streams:
        event = {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
        }
        answer["text/event-stream"] = {"schema": event}
    responses["200"] = {"description": "The answer", "headers": _ANSWERED, "content": answer}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    summary = (type(route).__doc__ or "").partition("\n")[0]
    return {"post": {"operationId": route.path, "summary": summary, "requestBody": body, "responses": responses}}


def _query(endpoint: Endpoint, given: Any, components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components.get(given.get("$ref", "").rpartition("/")[2], given)
    required = schema.get("required", [])
    listed = []
    for name, kind in schema.get("properties", {}).items():
        nested = endpoint.schema.json_in_query(name)
        form = {"content": {"application/json": {"schema": kind}}} if nested else {"schema": kind}
        listed.append({"name": name, "in": "query", "required": name in required, **form})
    return listed


def _answer(endpoint: Endpoint, schema: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.raw_answer:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    elif not endpoint.service.streams:
        content["application/json"] = {"schema": schema}
    if not endpoint.service.streams:
        content["application/msgpack"] = {"schema": schema}
    content["text/event-stream"] = {"schema": _event(schema)}
    content["application/x-ndjson"] = {"schema": {"type": "array", "description": _LINES, "items": _line(schema)}}
    return {"description": "The answer", "headers": _ANSWERED, "content": content}


def _event(schema: Any) -> dict[str, Any]:
    """One event: OpenAPI before 3.2 has no other place for it. Its data is JSON, and empty at the end."""
    item = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    fault = {**item, "contentSchema": {"$ref": "#/components/schemas/Problem"}}
    return {
        "type": "object",
        "description": "One event an item, with its number as id; then `end`, or `error` with a problem as its data.",
        "required": ["data"],
        "oneOf": [
            {"properties": {"id": {"type": "string"}, "data": item}, "required": ["id"]},
            {"properties": {"event": {"const": "end"}, "data": {"const": ""}}, "required": ["event"]},
            {"properties": {"event": {"const": "error"}, "data": fault}, "required": ["event"]},
        ],
    }


def _line(schema: Any) -> dict[str, Any]:
    failed = {"type": "object", "required": ["error"], "properties": {"error": {"$ref": "#/components/schemas/Problem"}}}
    return {"anyOf": [schema, {**failed, "description": "The last line of a stream that failed."}]}


def _fault(status: str, text: str) -> dict[str, Any]:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    headers = {"X-Request-Id": _ANSWERED["X-Request-Id"]}
    if status in ("429", "503"):
        headers["Retry-After"] = _RETRY_AFTER
    return {"description": text, "headers": headers, "content": {"application/problem+json": problem}}


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "0"
