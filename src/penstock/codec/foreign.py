"""Types of libraries that we never import: numpy arrays, torch tensors, pydantic models.

Each is looked up in `sys.modules`: a value or an annotation of such a type can exist only after its library was
imported, so nothing is missed and nothing is loaded. `from_wire` is msgspec's `dec_hook`: it raises `ValueError` or
`TypeError`, to which msgspec adds the path. An array travels in msgpack as the map {"dtype": str, "shape": [int],
"data": bytes}, C order and little-endian, and in JSON as nested lists; both are accepted from either.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Mapping, Sequence, Set
from typing import Any, get_args, get_origin

_NUMBERS = "biufc"  # numpy kinds: bool, int, unsigned, float, complex
_PLAIN = _NUMBERS + "MmSU"  # and dates, durations, fixed-size bytes and text; never objects, which would need pickle
_DTYPE = re.compile(r"[<>=|]?[A-Za-z]{1,12}\d{0,9}(\[\d{0,6}[A-Za-z]{1,2}\])?")


def module(name: str) -> Any:
    """The module if the program has imported it, else None."""
    return sys.modules.get(name)


def subclass(kind: object, module_name: str, class_name: str) -> bool:
    """Whether `kind` is a class derived from `module_name.class_name`; False when that module is not imported."""
    base = getattr(module(module_name), class_name, None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


def from_wire(kind: Any, value: Any) -> Any:
    """`value`, made of builtins, as `kind`, a type that msgspec does not know."""
    origin = get_origin(kind) or kind
    if origin is object or isinstance(value, origin):
        return value
    if subclass(origin, "numpy", "ndarray"):
        return _array(value, _element(kind))
    if subclass(origin, "numpy", "generic"):
        if isinstance(value, (bool, int, float, str)):
            return _cast(module("numpy").asarray(value), module("numpy").dtype(origin))[()]
        raise ValueError(f"Expected one `{origin.__name__}`, got `{type(value).__name__}`")
    if subclass(origin, "pydantic", "BaseModel"):
        return origin.model_validate(value)
    name = getattr(origin, "__qualname__", str(origin))
    raise ValueError(f"A `{name}` cannot be sent over the wire; declare a dataclass, a Struct, an array or builtins")


def _element(kind: Any) -> Any:
    """The dtype that an annotation such as NDArray[np.float32] asks for, or None."""
    numpy, args = module("numpy"), get_args(kind)
    scalar = get_args(args[1])[:1] if len(args) == 2 else ()
    # Abstract kinds (np.floating, np.number) name a family; numpy would take them for float64, with a warning.
    if scalar and isinstance(scalar[0], type) and scalar[0] in numpy.sctypeDict.values():
        return numpy.dtype(scalar[0])
    return None


def _array(value: Any, dtype: Any) -> Any:
    """A writable array of its own memory, from nested lists of numbers or from the msgpack map."""
    numpy = module("numpy")
    if isinstance(value, dict):
        array = _unpacked(value)
    elif isinstance(value, (list, tuple, int, float)):
        try:
            array = numpy.asarray(value)
        except (ValueError, OverflowError):
            raise ValueError("Expected nested lists of numbers, of equal lengths in each dimension") from None
        if array.dtype.kind not in _NUMBERS:
            raise ValueError("Expected nested lists of numbers within 64 bits, got other values in them")
    else:
        raise ValueError(f"Expected `array` (nested lists of numbers), got `{type(value).__name__}`")
    return array if dtype is None else _cast(array, dtype)


def _cast(array: Any, dtype: Any) -> Any:
    """`array` as `dtype`. Integers must survive exactly; floats may lose digits, but not their kind."""
    if array.dtype.kind == dtype.kind and array.dtype.kind not in "iu":
        return array.astype(dtype, copy=False)
    if array.dtype.kind in "biuf" and dtype.kind in "biu":
        with module("numpy").errstate(invalid="ignore"):
            cast = array.astype(dtype)
        if not (cast == array).all():
            raise ValueError(f"Expected values that fit `{dtype.name}`")
        return cast
    if not module("numpy").can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"Expected an array of `{dtype.name}`, got `{array.dtype.name}`")
    return array.astype(dtype)


def _unpacked(value: dict[Any, Any]) -> Any:
    numpy = module("numpy")
    name, shape, data = value.get("dtype"), value.get("shape"), value.get("data")
    if len(value) != 3 or not isinstance(name, str) or not isinstance(data, (bytes, bytearray, memoryview, str)):
        raise ValueError('Expected an array as nested lists or as {"dtype": str, "shape": [int], "data": bytes}')
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError("Expected `shape` as a list of non-negative integers")
    try:
        dtype = numpy.dtype(name) if _DTYPE.fullmatch(name) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in _PLAIN or not dtype.itemsize:
        raise ValueError("Expected `dtype` as a plain numpy name such as `float32` or `<f4`")
    if isinstance(data, str):
        data = base64.b64decode(data, validate=True)
    # bytearray: the service gets memory that it may write to, as torch.from_numpy wants.
    count, rest = divmod(len(data), dtype.itemsize)
    expected = 1
    for n in shape:
        expected *= n
    if rest or count != expected:
        raise ValueError(f"Expected {expected * dtype.itemsize} bytes of data for its shape, got {len(data)}")
    if name[0] not in "<>=|":
        dtype = dtype.newbyteorder("<")
    return numpy.frombuffer(bytearray(data), dtype).reshape(shape)


def to_json(value: Any) -> Any:
    """msgspec's `enc_hook` for JSON: arrays become nested lists, dates in them ISO text."""
    array = _as_array(value)
    if array is not None:
        return (array.astype(str) if array.dtype.kind == "M" else array).tolist()
    if subclass(type(value), "pydantic", "BaseModel"):
        return value.model_dump(mode="json", by_alias=True)
    return _plain(value)


def to_msgpack(value: Any) -> Any:
    """msgspec's `enc_hook` for msgpack: arrays become {"dtype", "shape", "data"}, without a copy if contiguous."""
    array = _as_array(value)
    if array is not None:
        if array.dtype.kind not in _PLAIN:
            raise TypeError(f"arrays of `{array.dtype}` have no plain bytes; convert to numbers or text")
        plain = array.dtype.kind in _NUMBERS
        array = module("numpy").ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        data = array.reshape(-1).view("u1").data
        return {"dtype": array.dtype.name if plain else array.dtype.str, "shape": list(array.shape), "data": data}
    if subclass(type(value), "pydantic", "BaseModel"):
        return value.model_dump(by_alias=True)
    return _plain(value)


def _as_array(value: Any) -> Any:
    if subclass(type(value), "numpy", "ndarray"):
        return value
    if subclass(type(value), "torch", "Tensor"):
        tensor = value.detach().cpu()
        try:
            return tensor.numpy()
        except TypeError:  # bfloat16 and the 8-bit floats, which numpy lacks; float32 holds them exactly
            return tensor.float().numpy()
    return None


def _plain(value: Any) -> Any:
    if subclass(type(value), "numpy", "generic"):
        item = value.item()
        if type(item) is not type(value):  # longdouble gives itself back, and would recurse
            return item
    for base in (str, int, float):  # subclasses, which msgspec refuses
        if isinstance(value, base) and type(value) is not base:
            return base(value)
    if not isinstance(value, (dict, list, tuple, set, frozenset)):  # those come only as keys, which JSON cannot have
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, (Sequence, Set)):
            return list(value)
    raise TypeError(f"objects of type `{type(value).__name__}` have no wire form")
