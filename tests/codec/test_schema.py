import enum
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.codec import Schema, encode_json, encode_msgpack
from penstock.errors import ConfigError, InvalidRequest, PenstockError, UnsupportedMedia, ValidationFailed


class Color(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@dataclass
class Box:
    corner: Point
    tags: list[str]


class Options(TypedDict):
    deep: bool


class Pair(NamedTuple):
    a: int
    b: str


class Opaque:
    pass


def schema(function: Callable[..., Any], name: str = "work") -> Schema:
    return Schema(inspect.signature(function), name)


def everything(
    point: Point,
    box: Box,
    options: Options,
    pair: Pair,
    color: Color,
    when: datetime,
    mode: Literal["a", "b"],
    size: int | None,
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)],
    blob: bytes,
    anything,  # noqa: ANN001
    *,
    last: bool = True,
) -> None: ...


EVERYTHING: dict[str, Any] = {
    "point": {"x": 1},
    "box": {"corner": {"x": 2, "y": 3}, "tags": ["t"]},
    "options": {"deep": True},
    "pair": [1, "b"],
    "color": "red",
    "when": "2026-01-02T03:04:05Z",
    "mode": "b",
    "size": None,
    "ratio": 0.25,
    "blob": "aGk=",
    "anything": {"k": [1]},
}
DECODED: dict[str, Any] = {
    "point": Point(1, 0.5),
    "box": Box(Point(2, 3.0), ["t"]),
    "options": {"deep": True},
    "pair": Pair(1, "b"),
    "color": Color.RED,
    "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "mode": "b",
    "size": None,
    "ratio": 0.25,
    "blob": b"hi",
    "anything": {"k": [1]},
    "last": True,
}


def numbers(x: list[float], k: int = 3) -> None: ...
def anything(x: Any) -> None: ...


def test_every_kind_of_annotation() -> None:
    reader = schema(everything)
    assert reader.fields == tuple(DECODED)
    assert reader.decode_json(json.dumps(EVERYTHING).encode()) == DECODED
    assert reader.decode_msgpack(encode_msgpack(EVERYTHING | {"blob": b"hi"})) == DECODED


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bodies_of_any_buffer(wrap: Callable[[bytes], Any]) -> None:
    assert schema(numbers).decode_json(wrap(b'{"x":[1]}')) == {"x": [1.0], "k": 3}
    assert schema(numbers).decode_msgpack(wrap(b"\x81\xa1x\x91\x01")) == {"x": [1.0], "k": 3}


def test_empty_body_is_the_empty_object() -> None:
    def nothing(k: int = 1) -> None: ...

    assert schema(nothing).decode_json(b"") == schema(nothing).decode_msgpack(memoryview(b"")) == {"k": 1}
    assert schema(lambda: None).decode_json(b"{}") == {}
    with pytest.raises(ValidationFailed, match=r"missing required field `x`.*fields: `x`, `k` \(optional\)"):
        schema(numbers).decode_json(b"")


def test_defaults_are_not_shared_between_calls() -> None:
    sentinel = object()

    def work(xs: list[list[int]] = [[1]], mark: Any = sentinel, far: float = math.inf, box: Any = Point(1)) -> None: ...  # noqa: B006, B008

    first, second = schema(work).decode_json(b"{}"), schema(work).decode_json(b"{}")
    first["xs"][0].append(2)
    assert second["xs"] == [[1]]
    assert inspect.signature(work).parameters["xs"].default == [[1]]
    assert first["mark"] is sentinel
    assert first["far"] == math.inf


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b" ",
        b'{"x":[1]}x',
        b'{"x":[NaN]}',
        b'{"x":[Infinity]}',
        b'{"x":[-Infinity]}',
        b'{"x":"\xff"}',
        b'{"\xff":1}',
        b"\xef\xbb\xbf{}",
        b"{'x':1}",
    ],
)
def test_malformed_json_is_400(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schema(anything).decode_json(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x81\xa1x\xa1\xff", b"\x81\xa1x\xdd\xff\xff\xff\xff", b"\x81\xa1x\xc6\xff\xff\xff\xff"]
)
def test_malformed_msgpack_is_400(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schema(anything).decode_msgpack(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_400(opening: bytes) -> None:
    reader = schema(anything)
    with pytest.raises(InvalidRequest, match="nested too deep"):
        reader.decode_json(b'{"x":' + opening * 200_000)
    with pytest.raises(InvalidRequest, match="nested too deep"):
        reader.decode_msgpack(b"\x81\xa1x" + b"\x91" * 200_000)
    with pytest.raises(InvalidRequest, match="nested too deep"):
        schema(lambda box: None).decode_query([("box", "[" * 200_000)]) if False else Schema(
            inspect.signature(everything), "w"
        ).decode_query([("box", "[" * 200_000)])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"x":[1,"a"]}', r"Expected `float`, got `str` - at `\$\.x\[1\]`"),
        (b'{"x":[1e999]}', r"out of range - at `\$\.x\[0\]`"),
        (b'{"x":[],"k":1.5}', r"Expected `int`, got `float` - at `\$\.k`"),
        (b'{"x":[],"k":' + b"9" * 5000 + b"}", r"out of range - at `\$\.k`"),
        (b'{"k":1}', r"missing required field `x`\. `work` takes an object with the fields: `x`, `k` \(optional\)"),
        (b'{"x":[],"z":1}', r"unknown field `z`\. `work` takes an object with the fields: `x`, `k` \(optional\)"),
        (b"[]", r"Expected `object`, got `array`\. `work` takes an object with the fields: `x`"),
        (b"null", r"Expected `object`, got `null`\. `work` takes"),
    ],
)
def test_wrong_shape_is_422_with_path_and_fields(body: bytes, message: str) -> None:
    with pytest.raises(ValidationFailed, match=message) as caught:
        schema(numbers).decode_json(body)
    assert caught.value.status == 422


def test_nested_objects_do_not_list_the_top_fields() -> None:
    body = json.dumps(EVERYTHING | {"point": {"x": "1"}}).encode()
    with pytest.raises(ValidationFailed, match=r"^Expected `int`, got `str` - at `\$\.point\.x`\.$"):
        schema(everything).decode_json(body)
    with pytest.raises(ValidationFailed, match=r"^Object missing required field `x` - at `\$\.point`\.$"):
        schema(everything).decode_json(json.dumps(EVERYTHING | {"point": {}}).encode())


def test_duplicate_names_the_last_counts_and_huge_integers_are_exact() -> None:
    assert schema(numbers).decode_json(b'{"x":[1],"x":[2]}')["x"] == [2.0]
    assert schema(anything).decode_json(b'{"x":' + b"9" * 400 + b"}")["x"] == 10**400 - 1


def test_messages_that_quote_input_are_short_and_printable() -> None:
    with pytest.raises(ValidationFailed) as caught:
        schema(numbers).decode_json(json.dumps({"\n\x1b" + "y" * 100_000: 1}).encode())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_class_without_wire_form_is_refused_at_the_call_only() -> None:
    def work(thing: Opaque | None = None) -> None: ...

    assert schema(work).decode_json(b"{}") == {"thing": None}
    with pytest.raises(ValidationFailed, match=r"`Opaque` cannot be sent.*at `\$\.thing`"):
        schema(work).decode_json(b'{"thing":{}}')


def variadic(*xs: int) -> None: ...
def keywords(**xs: int) -> None: ...
def positional(x: int, /) -> None: ...
def unresolved(x: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def inner_unresolved(x: list["Missing"]) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def odd_union(x: int | Opaque) -> None: ...
def mangled(__x: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "what_to_do"),
    [
        (variadic, "declare one list parameter"),
        (keywords, "name each parameter"),
        (positional, "drop the `/`"),
        (unresolved, "import its names at the top of the module"),
        (inner_unresolved, "cannot be read from the wire"),
        (odd_union, "simple unions"),
        (mangled, "rename it"),
    ],
)
def test_signatures_that_have_no_wire_form(function: Callable[..., Any], what_to_do: str) -> None:
    with pytest.raises(ConfigError, match=what_to_do):
        schema(function)


def query(
    n: int = 0, xs: list[float] = [], on: bool = False, s: str = "", box: Box | None = None, u: str | list[str] = ""
) -> None: ...  # noqa: B006


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([("n", "5"), ("on", "true"), ("s", "7")], {"n": 5, "on": True, "s": "7"}),
        ([("xs", "1")], {"xs": [1.0]}),
        ([("xs", "1"), ("xs", "2.5")], {"xs": [1.0, 2.5]}),
        ([("box", '{"corner":{"x":1},"tags":["a"]}')], {"box": Box(Point(1), ["a"])}),
        ([("u", "a")], {"u": "a"}),
        ([("u", "a"), ("u", "b")], {"u": ["a", "b"]}),
        ([("s", "nan"), ("s2", "")][:1], {"s": "nan"}),
        ([], {}),
    ],
)
def test_query_strings_are_converted_by_type(items: list[tuple[str, str]], expected: dict[str, Any]) -> None:
    defaults = {"n": 0, "xs": [], "on": False, "s": "", "box": None, "u": ""}
    assert schema(query).decode_query(items) == defaults | expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("n", "x")], r"Expected `int`, got `str` - at `\$\.n`"),
        ([("n", "1"), ("n", "2")], r"Expected `int`, got `array` - at `\$\.n`"),
        ([("xs", "1"), ("xs", "nan")], r"finite number, got `nan` - at `\$\.xs`"),
        ([("xs", "-inf")], "finite number"),
        ([("box", "{")], r"at `\$\.box`"),
        ([("box", '{"corner":{"x":"1"},"tags":[]}')], r"Expected `int`, got `str` - at `\$\.box\.corner\.x`"),
        ([("box", '{"corner":{"x":1,"y":"nan"},"tags":[]}')], r"Expected `float`, got `str` - at `\$\.box\.corner\.y`"),
        ([("zz", "1")], r"unknown field `zz`\. `work` takes"),
    ],
)
def test_query_strings_that_do_not_fit(items: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValidationFailed, match=message):
        schema(query).decode_query(items)


def test_lists_of_what_is_nested_come_whole_or_one_by_one() -> None:
    def work(boxes: list[Point] = [], rows: list[list[int]] = [], plain: list[int] = []) -> None: ...  # noqa: B006

    reader = schema(work)
    for items in ([("boxes", '[{"x":1},{"x":2}]')], [("boxes", '{"x":1}'), ("boxes", '{"x":2}')]):
        assert reader.decode_query(items)["boxes"] == [Point(1), Point(2)]
    assert reader.decode_query([("rows", "[1,2]")])["rows"] == [[1, 2]]
    assert reader.decode_query([("rows", "[[1,2],[3]]")])["rows"] == [[1, 2], [3]]
    assert reader.decode_query([("boxes", "[]")])["boxes"] == []
    assert [reader.json_in_query(name) for name in ("boxes", "rows", "plain")] == [True, True, False]


def test_raw_bodies() -> None:
    def transcribe(audio: memoryview, language: str = "en") -> None: ...
    def optional(data: bytes | None = None) -> None: ...
    def two(a: bytes, b: bytes) -> None: ...

    body = bytearray(b"\x00\xff")
    kwargs = schema(transcribe).bind_raw(body, "audio/wav", [("language", "zh")])
    assert kwargs["audio"].obj is body  # not copied
    assert kwargs["language"] == "zh"
    assert schema(optional).bind_raw(body, "x/y") == {"data": b"\x00\xff"}
    assert not schema(two).raw
    assert not schema(numbers).raw
    with pytest.raises(UnsupportedMedia, match=r"`work` has no single bytes parameter.*image/png.*application/json"):
        schema(two).bind_raw(b"", "image/png")
    with pytest.raises(ValidationFailed, match="leave it out of the query"):
        schema(transcribe).bind_raw(b"", "x/y", [("audio", "aGk=")])
    with pytest.raises(ValidationFailed, match="unknown field `lang`"):
        schema(transcribe).bind_raw(b"", "x/y", [("lang", "en")])


def test_errors_of_the_users_own_validators() -> None:
    class Picky(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("a must not be negative")
            if self.a == 0:
                raise KeyError("a bug")

    def work(p: Picky) -> None: ...

    with pytest.raises(ValidationFailed, match=r"a must not be negative - at `\$\.p`"):
        schema(work).decode_json(b'{"p":{"a":-1}}')
    with pytest.raises(KeyError):
        schema(work).decode_json(b'{"p":{"a":0}}')


texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(plain)
def test_roundtrip(value: Any) -> None:
    reader = schema(anything)
    assert reader.decode_json(encode_json({"x": value})) == {"x": value}
    assert reader.decode_msgpack(encode_msgpack({"x": value})) == {"x": value}


READERS = [schema(everything), schema(numbers), schema(anything), schema(query)]
VALID = [encode_json(EVERYTHING), encode_msgpack(EVERYTHING), b'{"x":[1,2.5],"k":3}', b"\x82\xa1x\x91\x01\xa1k\x02"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid body with some bytes replaced, inserted or cut."""
    body = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(body)


@given(st.binary() | damaged(), st.sampled_from(READERS))
def test_any_bytes_raise_nothing_but_invalid_request(body: bytes, reader: Schema) -> None:
    for decode in (reader.decode_json, reader.decode_msgpack):
        try:
            assert set(decode(body)) == set(reader.fields)
        except InvalidRequest as error:
            str(error).encode()


@given(st.dictionaries(texts, plain) | plain, st.sampled_from(READERS))
def test_any_values_raise_nothing_but_invalid_request(value: Any, reader: Schema) -> None:
    for decode, encode in ((reader.decode_json, encode_json), (reader.decode_msgpack, encode_msgpack)):
        try:
            decode(encode(value))
        except InvalidRequest:
            pass


names = st.sampled_from(["n", "xs", "on", "s", "box", "u", "x", "k", "point", "size", "when", "blob"])


@given(st.lists(st.tuples(names | st.text(), st.text() | texts.map(json.dumps))), st.sampled_from(READERS))
def test_any_query_raises_nothing_but_invalid_request(items: list[tuple[str, str]], reader: Schema) -> None:
    try:
        reader.decode_query(items)
    except PenstockError as error:
        assert isinstance(error, InvalidRequest)
        str(error).encode()
