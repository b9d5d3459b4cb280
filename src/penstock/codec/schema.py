"""The parameters of one service call, read from untrusted input.

A signature becomes one msgspec Struct with one decoder for each wire, built once, so a call costs one decode in C and
one flat copy to a dict. Parameters that are not given take their default; defaults that are lists, dicts, sets or
bytearrays are copied for each call, so that no request can see another's.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any

import msgspec
from msgspec import inspect as types
from msgspec.structs import asdict

from penstock.codec.foreign import from_wire
from penstock.codec.openapi import openapi_types
from penstock.codec.read import BAD_INPUT, JSON, MSGPACK, line, refusal
from penstock.errors import ConfigError, UnsupportedMedia, ValidationFailed

Buffer = bytes | bytearray | memoryview

_OCTETS = (types.BytesType, types.ByteArrayType, types.MemoryViewType)
_SEQUENCES = (types.ListType, types.SetType, types.FrozenSetType, types.VarTupleType, types.TupleType)
_OBJECTS = (types.DictType, types.StructType, types.DataclassType, types.TypedDictType, types.NamedTupleType)
_NESTED = (*_OBJECTS, *_SEQUENCES, types.CustomType)


class Schema:
    """The wire form of one signature, whose annotations are real types.

    `raw` is true when exactly one parameter is bytes, bytearray or memoryview: a body may then be that parameter, which
    `octets` names, as it is. In JSON, bytes are base64. `fields` names the parameters in order, `type` is the Struct to give to
    `openapi_types`. Duplicate names in an object: the last one counts.

    Raises `ConfigError` for *args, **kwargs, positional-only parameters and annotations that cannot be read. A class
    that has no wire form is accepted, since the service may be called only in process: a call with it is refused.
    """

    def __init__(self, signature: inspect.Signature, name: str) -> None:
        self.name = name
        parameters = list(signature.parameters.values())
        for parameter in parameters:
            _check(parameter, name)
        kinds = {p.name: Any if p.annotation is p.empty else p.annotation for p in parameters}
        self._info = {field: _readable(kind, field, name) for field, kind in kinds.items()}
        self.fields = tuple(kinds)
        self.type = msgspec.defstruct(
            re.sub(r"[^A-Za-z0-9]", "", name.title() if name.islower() else name) + "Request",
            [_field(p, kinds[p.name]) for p in parameters],
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
            module=name,  # keeps the component names of two services apart
        )
        self._json = msgspec.json.Decoder(self.type, dec_hook=from_wire).decode
        self._msgpack = msgspec.msgpack.Decoder(self.type, dec_hook=from_wire).decode
        octets = [field for field, info in self._info.items() if any(isinstance(i, _OCTETS) for i in _options(info))]
        self.octets = octets[0] if len(octets) == 1 else None
        self.raw = self.octets is not None
        optional = {p.name for p in parameters if p.default is not p.empty}
        known = ", ".join(f"`{field}` (optional)" if field in optional else f"`{field}`" for field in self.fields)
        self._hint = f"`{name}` takes {f'an object with the fields: {known}' if known else 'no parameters'}."

    def decode_json(self, body: Buffer) -> dict[str, Any]:
        """Keyword arguments from a JSON object; an empty body is {}. NaN and Infinity are malformed.

        Raises `InvalidRequest` for malformed bytes, `ValidationFailed` for an object that does not fit.
        """
        try:
            return asdict(self._json(body or b"{}"))
        except BAD_INPUT as error:
            raise refusal(error, self._hint) from error

    def decode_msgpack(self, body: Buffer) -> dict[str, Any]:
        """Keyword arguments from a msgpack map, as `decode_json`; NaN and Infinity are let through."""
        try:
            return asdict(self._msgpack(body or b"\x80"))
        except BAD_INPUT as error:
            raise refusal(error, self._hint) from error

    def decode_query(self, items: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Keyword arguments from the decoded pairs of a query string, converted by the parameters' types.

        A list parameter takes each value of its repeated name; objects are given as JSON text, and so is a list of
        them, whole or each under the repeated name. NaN and Infinity are refused. Raises as `decode_json`.
        """
        return self._query(items, {})

    def bind_raw(self, body: Buffer, content_type: str, items: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
        """The body as the one bytes parameter, as its declared type; the others from the query `items`.

        Raises `UnsupportedMedia` when no single parameter takes bytes, else as `decode_query`.
        """
        if self.octets is None:
            raise UnsupportedMedia(
                f"`{self.name}` has no single bytes parameter for a body of type `{line(content_type)}`; "
                f"send {JSON} or {MSGPACK}. {self._hint}"
            )
        kwargs = self._query(items, {self.octets: b""})
        option = next(i for i in _options(self._info[self.octets]) if isinstance(i, _OCTETS))
        as_type: Callable[[Buffer], Buffer] = bytes
        if isinstance(option, types.ByteArrayType):
            as_type = bytearray
        elif isinstance(option, types.MemoryViewType):
            as_type = memoryview
        kwargs[self.octets] = as_type(body)
        return kwargs

    def json_in_query(self, field: str) -> bool:
        """Whether this parameter is JSON text in a query string."""
        options = _options(self._info[field])
        return _all_nested(_items(options[0]) or options if len(options) == 1 else options)

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the object of parameters, self-contained: its references are in "$defs"."""
        (schema,), defs = openapi_types([self.type], "#/$defs/{name}")
        top = schema.get("$ref", "").rpartition("/")[2]
        schema = defs.pop(top, schema)
        return {**schema, "$defs": defs} if defs else schema

    def _query(self, items: Iterable[tuple[str, str]], given: dict[str, Any]) -> dict[str, Any]:
        texts: dict[str, list[str]] = {}
        for name, text in items:
            texts.setdefault(name, []).append(text)
        values = {name: self._value(name, several) for name, several in texts.items()}
        for name in given:
            if name in values:
                raise ValidationFailed(f"`{line(name)}` is the body; leave it out of the query.")
        try:
            kwargs = asdict(msgspec.convert(values | given, self.type, strict=False, dec_hook=from_wire))
        except BAD_INPUT as error:
            raise refusal(error, self._hint) from error
        for name in values:
            value = kwargs[name]
            for number in value if isinstance(value, (list, tuple, set, frozenset)) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValidationFailed(f"Expected a finite number, got `{number}` - at `$.{name}`.")
        return kwargs

    def _value(self, name: str, texts: list[str]) -> Any:
        """What the query gives for one name: a text, a list of texts, or the JSON in them."""
        info = self._info.get(name)
        if info is None:
            return texts[0]
        options = _options(info)
        items = [option for i in options for option in _items(i)]
        if items and (len(texts) > 1 or len(options) == 1):
            if not _all_nested(items):
                return texts
            several = [self._parsed(name, text) for text in texts]
            return several[0] if len(several) == 1 and _is_whole(items, several[0]) else several
        if not _all_nested(options):
            return texts[0] if len(texts) == 1 else texts
        parsed = [self._parsed(name, text) for text in texts]
        value = parsed[0] if len(parsed) == 1 else parsed
        if not isinstance(value, str):
            # Once strictly: below, strings inside of JSON must not turn into numbers (nor "nan" into NaN).
            try:
                msgspec.convert(value, self.type.__annotations__[name], dec_hook=from_wire)
            except BAD_INPUT as error:
                raise refusal(error, inside=f".{name}") from error
        return value

    def _parsed(self, name: str, text: str) -> Any:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text  # the conversion says what was expected, which "malformed JSON" would not
        except BAD_INPUT as error:
            raise refusal(error) from error


def _check(parameter: inspect.Parameter, name: str) -> None:
    where = f"Parameter `{parameter.name}` of service `{name}`"
    if parameter.kind is parameter.VAR_POSITIONAL:
        raise ConfigError(f"{where} is variadic, and has no name on the wire; declare one list parameter.")
    if parameter.kind is parameter.VAR_KEYWORD:
        raise ConfigError(f"{where} takes any keyword; name each parameter, or declare one dict parameter.")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ConfigError(f"{where} is positional-only, but callers send names; drop the `/`.")
    if parameter.name.startswith("__"):
        raise ConfigError(f"{where} begins with two underscores, which the wire cannot carry; rename it.")
    if isinstance(parameter.annotation, str):
        raise ConfigError(
            f"{where} has the annotation {parameter.annotation!r}, which was not resolved; "
            "import its names at the top of the module, outside of `if TYPE_CHECKING`."
        )


def _readable(kind: Any, field: str, name: str) -> types.Type:
    try:
        msgspec.json.Decoder(kind, dec_hook=from_wire)  # stricter than type_info: it also refuses odd unions
        return types.type_info(kind)
    except Exception as error:
        raise ConfigError(
            f"Parameter `{field}` of service `{name}` has an annotation that cannot be read from the wire: {error}. "
            "Use builtins, dataclasses, Structs, arrays or pydantic models, and simple unions."
        ) from error


def _field(parameter: inspect.Parameter, kind: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    default = parameter.default
    if default is parameter.empty:
        return (parameter.name, kind)
    if default is None or isinstance(default, (int, str, Enum)) or (type(default) is float and math.isfinite(default)):
        return (parameter.name, kind, msgspec.field(default=default))
    if type(default) in (list, dict, set, bytearray):
        return (parameter.name, kind, msgspec.field(default_factory=partial(copy.deepcopy, default)))
    return (parameter.name, kind, msgspec.field(default_factory=lambda: default))


def _options(info: types.Type) -> list[types.Type]:
    """The alternatives of a type: a union's members but None, else itself."""
    if isinstance(info, types.Metadata):
        return _options(info.type)
    if isinstance(info, types.UnionType):
        return [option for part in info.types for option in _options(part) if not isinstance(option, types.NoneType)]
    return [info]


def _items(info: types.Type) -> list[types.Type]:
    """The alternatives of the items of a sequence; [] for what is none."""
    if isinstance(info, types.TupleType):
        return [option for item in info.item_types for option in _options(item)] or [types.AnyType()]
    if isinstance(info, (types.ListType, types.SetType, types.FrozenSetType, types.VarTupleType)):
        return _options(info.item_type)
    return []


def _is_whole(items: list[types.Type], value: Any) -> bool:
    """Whether the only value of a name is the whole list, and not its one item: its parts look like items."""
    kinds = list if any(isinstance(item, _SEQUENCES) for item in items) else (list, dict)
    return isinstance(value, list) and all(isinstance(part, kinds) for part in value)


def _all_nested(options: list[types.Type]) -> bool:
    return all(isinstance(option, _NESTED) for option in options)
