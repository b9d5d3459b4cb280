"""Bytes to values, and the errors of it: one translation from what msgspec raises to the caller's faults.

Malformed bytes are `InvalidRequest` (400), well-formed bytes of the wrong shape `ValidationFailed` (422). Messages
quote input, so they are cut to a line's length and never hold control characters.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from penstock.codec.foreign import from_wire, module
from penstock.errors import InvalidRequest, UnsupportedMedia, ValidationFailed

JSON = "application/json"
MSGPACK = "application/msgpack"
OCTETS = "application/octet-stream"

_ALIASES = {"application/x-msgpack": MSGPACK, "application/vnd.msgpack": MSGPACK, "text/json": JSON}
_PATH = re.compile(r" - at `([^`]*)`$")
_LINE = 300  # characters of a message that may come from the input

# What decoding raises for bad bytes: ValueError and TypeError of hooks arrive as msgspec's own error.
BAD_INPUT = (msgspec.MsgspecError, UnicodeError, RecursionError, MemoryError, OverflowError)


def media_type(content_type: str) -> str:
    """The bare media type of a Content-Type header, lower case, its aliases mapped to `JSON` and `MSGPACK`."""
    name = content_type.partition(";")[0].strip().lower()
    if name.endswith("+json"):
        return JSON
    if name.endswith("+msgpack"):
        return MSGPACK
    return _ALIASES.get(name, name)


def decode_any(body: bytes | bytearray | memoryview, content_type: str, kind: Any = Any) -> Any:
    """A body as a client receives it, as `kind` (any type that a parameter may have; default: builtins).

    JSON and msgpack are decoded, text becomes str and octets bytes, without regard to `kind`. Arrays are rebuilt when
    `kind` names them. Raises `InvalidRequest`, `ValidationFailed`, or `UnsupportedMedia` for another media type.
    """
    media = media_type(content_type)
    try:
        if media == JSON:
            return msgspec.json.decode(body, type=kind, dec_hook=from_wire)
        if media == MSGPACK:
            return msgspec.msgpack.decode(body, type=kind, dec_hook=from_wire)
        if media.startswith("text/"):
            return bytes(body).decode()
    except BAD_INPUT as error:
        raise refusal(error) from error
    if media == OCTETS:
        return bytes(body)
    raise UnsupportedMedia(f"Cannot read `{line(content_type)}`; known are {JSON}, {MSGPACK}, text/* and {OCTETS}.")


def line(text: str) -> str:
    """`text` on one printable line of bounded length."""
    text = text if len(text) <= _LINE else text[:_LINE] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def refusal(error: BaseException, hint: str = "", inside: str = "") -> InvalidRequest:
    """The error to raise for `error`; `hint` tells an object's fields, `inside` is the path at which decoding began."""
    if isinstance(error, msgspec.ValidationError):
        found = _pydantic_errors(error, inside)
        if found:
            return ValidationFailed(line(found) + ".")
        text, top = str(error), True
        match = _PATH.search(text)
        if match:
            top = match[1] == "$"
            text = f"{text[: match.start()]} - at `${inside}{match[1][1:]}`"
        elif inside:
            top, text = False, f"{text} - at `${inside}`"
        text = line(text) + "."
        about_fields = text.startswith(("Object contains unknown", "Object missing", "Expected `object`"))
        return ValidationFailed(f"{text} {hint}" if hint and top and about_fields else text)
    if isinstance(error, RecursionError):
        return InvalidRequest("The body is nested too deep.")
    if isinstance(error, UnicodeError):
        return InvalidRequest("The body holds text that is not valid UTF-8.")
    if isinstance(error, msgspec.DecodeError):
        return InvalidRequest(f"The body cannot be decoded: {line(str(error))}.")
    return InvalidRequest("The body holds a value that is too large to decode.")


def _pydantic_errors(error: msgspec.ValidationError, inside: str) -> str:
    """The first five errors of a pydantic model, each with its whole path; "" for other causes."""
    cause, kind = error.__cause__, getattr(module("pydantic"), "ValidationError", None)
    if kind is None or not isinstance(cause, kind):
        return ""
    match = _PATH.search(str(error))
    base = "$" + inside + (match[1][1:] if match else "")
    # Without the input and the context: both may hold what cannot or should not be shown.
    errors = cause.errors(include_url=False, include_context=False, include_input=False)
    parts = []
    for item in errors[:5]:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in item["loc"])
        parts.append(f"{item['msg']} - at `{base}{steps}`")
    return "; ".join(parts)
