"""Tokens to text: whatever the borders of tokens, nothing is lost, doubled, taken back, or half a character."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.http.openai.choice import Choice, Piece
from penstock.models import Incremental


class Chunks:
    """A tokenizer whose tokens are any pieces of bytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    def decoder(self) -> Incremental:
        return Incremental(self.decode)


def cut(data: bytes, borders: Sequence[int]) -> list[bytes]:
    ends = sorted({b % (len(data) + 1) for b in borders} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


TEXT = st.text(alphabet="aab\u00e9\u732b\U0001f99c ", max_size=40)
BORDERS = st.lists(st.integers(0, 200), max_size=40)
STOPS = st.lists(st.text(alphabet="ab\u00e9\u732b ", min_size=1, max_size=4), max_size=4)


@given(st.binary(max_size=30) | TEXT.map(str.encode), BORDERS)
def test_pieces_are_the_whole_text(data: bytes, borders: list[int]) -> None:
    tokens = Chunks(cut(data, borders))
    decoder = tokens.decoder()
    given_out = [decoder.push(i) for i in range(len(tokens.pieces))]
    assert "".join(given_out) + decoder.flush() == data.decode("utf-8", "replace")


@given(TEXT, BORDERS)
def test_no_piece_has_half_a_character(text: str, borders: list[int]) -> None:
    tokens = Chunks(cut(text.encode(), borders))
    decoder = tokens.decoder()
    assert not any("\ufffd" in decoder.push(i) for i in range(len(tokens.pieces)))


def pieces(choice: Choice, count: int) -> list[Piece]:
    found = []
    for token in range(count):
        piece = choice.push(token)
        if piece is not None:
            found.append(piece)
        if choice.finish is not None:
            return found
    return [*found, choice.close()]


def first_end(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first, by looking at every beginning."""
    for end in range(len(text) + 1):
        here = [stop for stop in stops if text[:end].endswith(stop)]
        if here:
            return text[: end - max(map(len, here))]
    return text


@settings(max_examples=500)
@given(TEXT, BORDERS, STOPS)
def test_stop_strings_do_not_depend_on_the_borders_of_tokens(text: str, borders: list[int], stops: list[str]) -> None:
    tokens = Chunks(cut(text.encode(), borders))
    choice = Choice(tokens, 1000, stops)  # type: ignore[arg-type]
    found = pieces(choice, len(tokens.pieces))
    assert "".join(piece.text for piece in found) == first_end(text, stops)
    assert [piece.finish for piece in found if piece.finish] == ["stop"] and found[-1].finish == "stop"
    assert choice.matched == (first_end(text, stops) != text)


@given(TEXT, BORDERS, STOPS, st.integers(1, 20))
def test_length_ends_with_what_the_tokens_say(text: str, borders: list[int], stops: list[str], most: int) -> None:
    tokens = Chunks(cut(text.encode(), borders))
    choice = Choice(tokens, most, stops)  # type: ignore[arg-type]
    found = pieces(choice, len(tokens.pieces))
    read = tokens.decode(range(min(most, len(tokens.pieces))))
    assert "".join(piece.text for piece in found) == first_end(read, stops)
    assert choice.count <= most
    if len(tokens.pieces) >= most and first_end(read, stops) == read:
        assert found[-1].finish == "length"
