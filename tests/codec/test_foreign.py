"""numpy, torch and pydantic at the wire; each test is left out where its library is not installed."""

import inspect
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.codec import JSON, MSGPACK, Schema, decode_any, encode_json, encode_msgpack
from penstock.errors import BadResult, InvalidRequest, ValidationFailed


def test_importing_the_codec_imports_none_of_them() -> None:
    code = "import sys, penstock.codec; print([m for m in ('numpy', 'torch', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def read(kind: Any, value: Any) -> Any:
    """One value through a JSON call and through a msgpack call."""
    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=kind)
    reader = Schema(inspect.Signature([parameter]), "work")
    return reader.decode_json(encode_json({"x": value}))["x"], reader.decode_msgpack(encode_msgpack({"x": value}))["x"]


class TestArrays:
    np = pytest.importorskip("numpy")

    def test_as_json_and_msgpack(self) -> None:
        np = self.np
        image = np.arange(6, dtype=">i2").reshape(2, 3)
        assert json.loads(encode_json({"a": image, "s": np.float32(0.5), "b": np.True_})) == {
            "a": [[0, 1, 2], [3, 4, 5]],
            "s": 0.5,
            "b": True,
        }
        packed = msgspec.msgpack.decode(encode_msgpack(image))
        assert packed == {"dtype": "int16", "shape": [2, 3], "data": image.astype("<i2").tobytes()}
        assert encode_json(np.array([1.0, np.nan, np.inf])) == b"[1.0,null,null]"
        assert encode_json(np.array(["2026-01-02"], "M8[D]")) == b'["2026-01-02"]'

    @pytest.mark.parametrize("dtype", ["?", "u1", ">i2", "i8", "f2", "f4", ">f8", "c8", "M8[ns]", "m8[s]", "S3", "U3"])
    def test_msgpack_roundtrip_of_every_dtype_and_layout(self, dtype: str) -> None:
        np = self.np
        whole = np.arange(24).reshape(4, 6)
        for array in (whole, whole[::2, ::3], whole.T, whole[:0], whole[1, 1], whole.reshape(2, 3, 4)):
            array = np.asarray(array).astype(dtype)
            back = decode_any(encode_msgpack(array), MSGPACK, np.ndarray)
            assert back.shape == array.shape
            assert back.dtype.kind == array.dtype.kind
            assert (back == array).all()
            assert back.flags.writeable

    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8))
    def test_float_roundtrip(self, values: list[float]) -> None:
        array = self.np.array(values, "f4")
        for back in read(self.np.ndarray[Any, self.np.dtype[self.np.float32]], array):
            assert back.dtype == "f4"
            assert (back == array).all()

    def test_the_dtype_of_the_annotation_is_kept(self) -> None:
        np = self.np
        typed = np.ndarray[Any, np.dtype[np.uint8]]
        for image in read(typed, [[0, 255]]):
            assert image.dtype == np.uint8
            assert image.tolist() == [[0, 255]]
        assert read(np.ndarray, [1, 2.5])[0].dtype == np.float64
        assert read(np.ndarray[Any, np.dtype[np.floating]], [1.5])[0].tolist() == [1.5]
        assert [type(s) for s in read(np.float32, 1)] == [np.float32] * 2
        assert read(np.ndarray | None, None) == (None, None)

    def test_a_map_is_read_from_json_too(self) -> None:
        data = {"dtype": "<f4", "shape": [1, 2], "data": "AACAPwAAAEA="}
        assert decode_any(encode_json(data), JSON, self.np.ndarray).tolist() == [[1.0, 2.0]]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([[1], [1, 2]], "equal lengths"),
            ([1, None], "nested lists of numbers"),
            ([10**30], "within 64 bits"),
            (["a"], "nested lists of numbers"),
            ("a", "got `str`"),
            (None, "got `NoneType`"),
            ([256], "fit `uint8`"),
            ([-1], "fit `uint8`"),
            ([1.5], "fit `uint8`"),
            ({"dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="}, "plain numpy name"),
            ({"dtype": "f4,f4", "shape": [1], "data": "AAAAAAAAAAA="}, "plain numpy name"),
            ({"dtype": "(" * 999, "shape": [1], "data": ""}, "plain numpy name"),
            ({"dtype": "S999999999999", "shape": [1], "data": ""}, "plain numpy name"),
            ({"dtype": "U0", "shape": [1], "data": ""}, "plain numpy name"),
            ({"dtype": "u1", "shape": [2**40, 2**40], "data": ""}, "bytes of data"),
            ({"dtype": "u1", "shape": [-1], "data": "AA=="}, "non-negative"),
            ({"dtype": "u1", "shape": [True], "data": "AA=="}, "non-negative"),
            ({"dtype": "u1", "shape": [1] * 99, "data": "AA=="}, ""),
            ({"dtype": "u2", "shape": [1], "data": "AA=="}, "Expected 2 bytes of data"),
            ({"dtype": "u1", "shape": [1], "data": "!"}, ""),
            ({"dtype": "u1", "shape": [1]}, "nested lists or as"),
        ],
    )
    def test_what_is_no_array_is_422(self, value: Any, message: str) -> None:
        kind = self.np.ndarray[Any, self.np.dtype[self.np.uint8]]
        with pytest.raises(ValidationFailed, match=f"{message}.*at `\\$"):
            decode_any(encode_json({"x": value}), JSON, dict[str, kind])

    def test_arrays_without_plain_bytes(self) -> None:
        with pytest.raises(BadResult, match=r"`\$\.a` is a `ndarray`"):
            encode_msgpack({"a": self.np.array([object()])})
        with pytest.raises(BadResult, match="longdouble"):
            encode_json(self.np.longdouble(1))

    @given(
        st.dictionaries(
            st.sampled_from(["dtype", "shape", "data"]), st.text() | st.binary() | st.lists(st.integers(-(2**63), 2**63))
        )
        | st.fixed_dictionaries(
            {"dtype": st.text("<>|=biufcOVSUMm[]0123456789,()", max_size=8), "shape": st.just([]), "data": st.binary()}
        )
        | st.recursive(st.integers(-(2**63), 2**63) | st.floats() | st.booleans(), st.lists)
    )
    def test_any_value_raises_nothing_but_invalid_request(self, value: Any) -> None:
        for kind in (self.np.ndarray, self.np.ndarray[Any, self.np.dtype[self.np.int16]], self.np.float32):
            try:
                decode_any(msgspec.msgpack.encode(value), MSGPACK, kind)
            except InvalidRequest:
                pass

    def test_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        np = self.np

        class Tensor:
            """What the codec uses of torch.Tensor; `half` stands for a dtype that numpy lacks."""

            def __init__(self, values: Any, half: bool = False) -> None:
                self.values, self.half, self.steps = values, half, ["new"]

            def detach(self) -> "Tensor":
                return self

            def cpu(self) -> "Tensor":
                return self

            def float(self) -> "Tensor":
                return Tensor(self.values)

            def numpy(self) -> Any:
                if self.half:
                    raise TypeError("Got unsupported ScalarType BFloat16")
                return np.array(self.values, "f4")

        torch = ModuleType("torch")
        torch.Tensor = Tensor  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch", torch)
        assert encode_json({"t": Tensor([1, 2])}) == b'{"t":[1.0,2.0]}'
        assert encode_json(Tensor([0.5], half=True)) == b"[0.5]"
        assert decode_any(encode_msgpack(Tensor([1])), MSGPACK)["dtype"] == "float32"


class TestPydantic:
    pydantic = pytest.importorskip("pydantic")

    def models(self) -> Any:
        pydantic = self.pydantic

        class Child(pydantic.BaseModel):  # type: ignore[misc, name-defined]
            age: int = pydantic.Field(alias="years", gt=0)

        class Parent(pydantic.BaseModel):  # type: ignore[misc, name-defined]
            name: str
            children: list[Child] = []

        return Parent

    def test_roundtrip(self) -> None:
        parent = self.models()
        value = {"name": "Ada", "children": [{"years": 3}]}
        for back in read(parent, value):
            assert back == parent.model_validate(value)
            assert json.loads(encode_json([back])) == [value]
            assert msgspec.msgpack.decode(encode_msgpack([back])) == [value]

    def test_every_error_has_its_path(self) -> None:
        body = encode_json({"x": [{"children": [{"years": "\x1b"}, {"years": 0}]}]})
        with pytest.raises(ValidationFailed) as caught:
            decode_any(body, JSON, dict[str, list[self.models()]])  # type: ignore[misc]
        message = str(caught.value)
        assert "Field required - at `$[...][0].name`" in message
        assert "at `$[...][0].children[0].years`" in message
        assert "greater than 0 - at `$[...][0].children[1].years`" in message

    def test_in_a_query(self) -> None:
        parent = self.models()
        parameter = inspect.Parameter("p", inspect.Parameter.KEYWORD_ONLY, annotation=parent)
        reader = Schema(inspect.Signature([parameter]), "work")
        assert reader.decode_query([("p", '{"name":"Ada"}')]) == {"p": parent(name="Ada")}
        with pytest.raises(ValidationFailed, match=r"Field required - at `\$\.p\.name`"):
            reader.decode_query([("p", "{}")])
