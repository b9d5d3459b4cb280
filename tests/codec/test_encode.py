import json
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from penstock.codec import encode_json, encode_msgpack
from penstock.errors import BadResult


class Color(Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: Any


@dataclass
class Box:
    inside: Any


class Name(str):
    __slots__ = ()


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (Point(Box((1, 2.5, "é"))), {"x": {"inside": [1, 2.5, "é"]}}),
        ({1: Color.RED}, {"1": "red"}),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        ({3}, [3]),
        (deque([1]), [1]),
        (range(2), [0, 1]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (OrderedDict(a=1), {"a": 1}),
        ([Name("n")], ["n"]),
        (b"hi", "aGk="),
        (10**30, 10**30),
        ([float("nan"), float("inf"), -float("inf")], [None] * 3),  # JSON has none of them
    ],
)
def test_results_as_json(value: Any, expected: Any) -> None:
    assert json.loads(encode_json(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(Box((1, "é"))), {"x": {"inside": [1, "é"]}}),
        (b"hi", b"hi"),
        (deque([Name("n")]), ["n"]),
        ([float("inf")], [float("inf")]),
    ],
)
def test_results_as_msgpack(value: Any, expected: Any) -> None:
    assert msgspec.msgpack.decode(encode_msgpack(value)) == expected


@pytest.mark.parametrize("encode", [encode_json, encode_msgpack])
@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, {"b": Opaque()}]}, r"`\$\.a\[1\]\.b` is a `Opaque`"),
        (Point(Box([Opaque])), r"`\$\.x\.inside\[0\]` is a `type`"),
        ([(n for n in "ab")], r"`\$\[0\]` is a `generator`"),
        ({"e": ValueError("no")}, r"`\$\.e` is a `ValueError`"),
        (["\ud800"], r"`\$\[0\]` is a `str`.*surrogates"),
        (1j, r"`\$` is a `complex`"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(encode: Any, value: Any, where: str) -> None:
    with pytest.raises(BadResult, match=where) as caught:
        encode(value)
    assert caught.value.status == 500
    assert caught.value.__cause__ is not None


def test_keys_and_integers_that_one_wire_lacks() -> None:
    with pytest.raises(BadResult, match=r"`\$\.a` is a `dict`"):
        encode_json({"a": {(1, 2): 3}})
    with pytest.raises(BadResult, match=r"`\$\[1\]` is a `int`"):
        encode_msgpack([1, 10**30])


def test_advice_is_given_where_another_type_would_help() -> None:
    for encode in (encode_json, encode_msgpack):
        with pytest.raises(BadResult, match="Return builtins"):
            encode([Opaque()])
        with pytest.raises(BadResult, match=r"surrogates not allowed\.$"):
            encode({"text": "\ud800"})
    with pytest.raises(BadResult, match=r"`\$\[0\]` is a `int`: [^:]+\.$") as caught:
        encode_msgpack([1 << 64])
    assert str(caught.value.__cause__) in str(caught.value)


@pytest.mark.parametrize("encode", [encode_json, encode_msgpack])
def test_circular_and_deep_results(encode: Any) -> None:
    circle: list[Any] = []
    circle.append({"again": circle})
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep):
        with pytest.raises(BadResult, match="circular or nested too deep"):
            encode(value)


def test_errors_inside_of_a_result_are_bad_results() -> None:
    class Broken(OrderedDict[str, int]):
        def __iter__(self) -> Any:
            raise RuntimeError("broken")

    class Proxy(deque[int]):
        def __iter__(self) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(BadResult, match="broken"):
        encode_json(Proxy([1]))


def test_a_wide_result_fails_in_bounded_time() -> None:
    with pytest.raises(BadResult, match=r"`\$` is a `list`"):
        encode_json([*range(20_000), Opaque()])
