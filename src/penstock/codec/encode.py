"""Results to bytes.

JSON has no NaN and no Infinity: both are written as null, in arrays too. Sets become arrays in no particular order.
A result that cannot be written is the service's fault, and the message says which part of it and why: the failing path
is looked for only after a failure, so that good results pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from penstock.codec.foreign import to_json, to_msgpack
from penstock.errors import BadResult

_TRIES = 10_000  # parts of a failed result that are encoded again to find the one at fault
_json = msgspec.json.Encoder(enc_hook=to_json).encode
_msgpack = msgspec.msgpack.Encoder(enc_hook=to_msgpack).encode


def encode_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON; arrays as nested lists, bytes as base64, NaN and Infinity as null. Raises `BadResult`."""
    try:
        return _json(value)
    except Exception as error:
        raise _bad(value, error, _json, "JSON") from error


def encode_msgpack(value: Any) -> bytes:
    """`value` as msgpack; arrays as {"dtype", "shape", "data"}, NaN and Infinity kept. Raises `BadResult`."""
    try:
        return _msgpack(value)
    except Exception as error:
        raise _bad(value, error, _msgpack, "msgpack") from error


def _bad(value: Any, error: Exception, encode: Callable[[Any], bytes], wire: str) -> BadResult:
    if isinstance(error, RecursionError):
        return BadResult(f"The result (a `{type(value).__name__}`) is circular or nested too deep for {wire}.")
    path, part = _culprit(value, encode)
    text = f"The result cannot be written as {wire}: `{path}` is a `{type(part).__name__}`: {str(error)[:300]}."
    if isinstance(part, (str, int)):  # of the right type, but half a surrogate pair, or too large
        return BadResult(text)
    return BadResult(f"{text} Return builtins, dataclasses, Structs, arrays or pydantic models.")


def _culprit(value: Any, encode: Callable[[Any], bytes]) -> tuple[str, Any]:
    """The path and value of the innermost part that does not encode by itself."""
    path, tries = "$", 0
    while True:
        for step, child in _children(value):
            tries += 1
            if tries > _TRIES:
                return path, value
            try:
                encode(child)
            except Exception:
                path, value = path + step, child
                break
        else:
            return path, value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f".{str(key)[:60]}", child) for key, child in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        yield from ((f".{name}", getattr(value, name, None)) for name in value.__struct_fields__)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name, None)) for field in fields(value))
