"""What schemathesis has to be told: the media types that it does not know, and that any header may be sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import schemathesis


@schemathesis.serializer("application/msgpack")
def to_msgpack(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


@schemathesis.deserializer("application/msgpack")
def from_msgpack(ctx: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.deserializer("application/x-ndjson")
def from_lines(ctx: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return [json.loads(line) for line in response.text.splitlines() if line]


@schemathesis.hook
def filter_case(ctx: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Drops what the schema calls valid or invalid and the wire does not, each for a reason.

    HTTP lets a request have any further header. JSON Schema calls 16.0 an integer, and it is refused for an `int`.
    Msgpack has no integers above 64 bits, and sends bytes as they are, not as base64.
    """
    if "x-schemathesis-unknown-property" in (case.headers or {}) or _whole_float(case.body):
        return False
    if case.media_type != "application/msgpack":
        return True
    try:
        msgspec.msgpack.encode(case.body)
    except OverflowError:
        return False
    return case.path != "/reverse" or not isinstance(case.body, dict) or not isinstance(case.body.get("data"), str)


def _whole_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(_whole_float, value))
    return isinstance(value, float) and value.is_integer()
