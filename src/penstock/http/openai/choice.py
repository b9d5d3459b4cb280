"""One answer in the making: tokens in, text out. No I/O.

Text is given as soon as it is certain: not before a character is complete, and not while it could be the beginning of a stop
string. What is given never changes afterwards. The pieces, put together, are the text of all tokens up to the stop string
that is complete first, whatever the tokens' borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.models import Token, Tokenizer

Finish = Literal["stop", "length"]


@dataclass(slots=True)
class Piece:
    """What became certain: text, its tokens' log-probabilities, and how the answer ended, if it has."""

    text: str = ""
    logprobs: list[Token] = field(default_factory=list)
    finish: Finish | None = None


class Choice:
    """One answer, of at most `max_tokens`. `stop` are the strings that end it and are not part of it."""

    __slots__ = ("count", "decoder", "finish", "held", "logprobs", "longest", "matched", "max_tokens", "stop", "stops")

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, stop: Sequence[str] = (), stops: frozenset[int] = frozenset()
    ) -> None:
        self.decoder = tokenizer.decoder()
        self.stops = stops  # tokens that end it
        self.stop = tuple(stop)
        self.longest = max(map(len, self.stop), default=0)
        self.max_tokens = max_tokens
        self.count = 0
        self.held = ""  # text that could be the beginning of a stop string
        self.logprobs: list[Token] = []  # of tokens whose text was not given yet
        self.finish: Finish | None = None
        self.matched = False  # a stop string was met: the model does not know that this was the end

    def push(self, item: Any) -> Piece | None:
        """One token. None: nothing is certain yet. After a piece with `finish` nothing more is wanted."""
        token = item if type(item) is int else item[0]
        self.count += 1
        if token in self.stops:
            return self.close("stop")
        if type(item) is not int:
            self.logprobs.append(Token(*item))  # of another interpreter it may be a plain tuple
        text = self.decoder.push(token)
        if self.count >= self.max_tokens:
            return self._last(text + self.decoder.flush(), "length")
        if not text:
            return None
        if not self.stop:
            return self._give(text)
        return self._search(self.held + text)

    def close(self, finish: Finish = "stop") -> Piece:
        """The model has ended."""
        return self._last(self.decoder.flush(), finish)

    def _last(self, text: str, finish: Finish) -> Piece:
        text = self.held + text
        cut = self._cut(text)
        if cut >= 0:
            text, finish, self.matched = text[:cut], "stop", True
        self.held = ""
        piece = self._give(text)
        piece.finish = self.finish = finish
        return piece

    def _search(self, text: str) -> Piece | None:
        cut = self._cut(text)
        if cut >= 0:
            self.held, self.matched = "", True
            piece = self._give(text[:cut])
            piece.finish = self.finish = "stop"
            return piece
        keep = self._beginning(text)
        self.held = text[len(text) - keep :]
        return self._give(text[: len(text) - keep]) if keep < len(text) else None

    def _cut(self, text: str) -> int:
        """Where the stop string begins that is complete first (of several, the longest); -1 without one."""
        found = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else -1

    def _beginning(self, text: str) -> int:
        """How much of the end of `text` could be the beginning of a stop string."""
        for size in range(min(self.longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self.stop):
                return size
        return 0

    def _give(self, text: str) -> Piece:
        logprobs, self.logprobs = self.logprobs, []
        return Piece(text, logprobs)
