"""Values to bytes and back: JSON, msgpack, query strings, raw bodies, arrays.

`Schema` reads the parameters of a service from untrusted input, `encode_json` and `encode_msgpack` write its results,
`decode_any` reads them again, and `openapi_types` describes both. msgspec does the work; numpy, torch and pydantic are
served when the program has imported them, and never imported here.

Invariant: input, whatever its bytes, raises nothing but `InvalidRequest` and its kinds; a result, whatever its type,
nothing but `BadResult`. Exceptions other than `ValueError` and `TypeError` that a user's own validators raise pass
unchanged: they are bugs of the service, not of its caller.
"""

from penstock.codec.encode import encode_json, encode_msgpack
from penstock.codec.openapi import openapi_types
from penstock.codec.read import JSON, MSGPACK, OCTETS, decode_any, media_type
from penstock.codec.schema import Schema

__all__ = [
    "JSON",
    "MSGPACK",
    "OCTETS",
    "Schema",
    "decode_any",
    "encode_json",
    "encode_msgpack",
    "media_type",
    "openapi_types",
]
