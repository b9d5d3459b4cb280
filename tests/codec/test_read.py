from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.codec import JSON, MSGPACK, OCTETS, decode_any, encode_json, encode_msgpack, media_type
from penstock.errors import InvalidRequest, UnsupportedMedia, ValidationFailed


@dataclass
class Answer:
    score: float


@pytest.mark.parametrize(
    ("header", "media"),
    [
        ("Application/JSON; charset=utf-8", JSON),
        ("application/problem+json", JSON),
        ("application/x-msgpack", MSGPACK),
        ("application/vnd.msgpack", MSGPACK),
        ("image/png", "image/png"),
        ("", ""),
    ],
)
def test_media_type(header: str, media: str) -> None:
    assert media_type(header) == media


def test_each_media_type_is_read() -> None:
    assert decode_any(b'{"score":1}', "application/json; charset=utf-8") == {"score": 1}
    assert decode_any(encode_json(Answer(1)), JSON, Answer) == Answer(1.0)
    assert decode_any(encode_msgpack(Answer(2.5)), "application/x-msgpack", Answer) == Answer(2.5)
    assert decode_any("é".encode(), "text/plain; charset=utf-8") == "é"
    assert decode_any(memoryview(b"\xff"), OCTETS) == b"\xff"


def test_unreadable_bodies() -> None:
    with pytest.raises(UnsupportedMedia, match="image/png"):
        decode_any(b"", "image/png")
    with pytest.raises(ValidationFailed, match=r"at `\$\.score`"):
        decode_any(b'{"score":"x"}', JSON, Answer)
    with pytest.raises(InvalidRequest, match="UTF-8"):
        decode_any(b"\xff", "text/plain")
    with pytest.raises(InvalidRequest, match="cannot be decoded"):
        decode_any(b"", JSON)


@given(st.binary(), st.sampled_from([JSON, MSGPACK, OCTETS, "text/x"]), st.sampled_from([Any, Answer, list[int]]))
def test_any_bytes_raise_nothing_but_invalid_request(body: bytes, media: str, kind: Any) -> None:
    try:
        decode_any(body, media, kind)
    except InvalidRequest as error:
        str(error).encode()
