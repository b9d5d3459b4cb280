"""How answers of chat models look on the wire: whole, and in chunks.

A chunk is put together from bytes that are the same for all chunks of an answer, and the text: at thousands of tokens a second
this is most of what the server does.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.http.openai.choice import Piece
from penstock.http.openai.generation import Generation, Run
from penstock.models import Token, Tokenizer

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
_LEAST = -9999.0  # for a probability of zero, whose logarithm JSON cannot say


class Shape(ABC):
    """How one answer looks: streamed (`chunks`, then `last` or `broken`), or whole."""

    @abstractmethod
    def chunks(self, group: Sequence[tuple[Run, Piece]]) -> bytes:
        """The events that say what has become certain."""

    @abstractmethod
    def last(self, generation: Generation) -> bytes:
        """What closes the stream."""

    @abstractmethod
    def whole(self, generation: Generation, answers: Sequence[tuple[Run, Piece]]) -> bytes:
        """The answer that is not streamed."""

    def broken(self, error: dict[str, Any]) -> bytes:
        """What closes a stream that failed; `error` as in `faults`."""
        return b"data: %b\n\n" % _encode({"error": error})

    @staticmethod
    def now() -> int:
        """Seconds since 1970."""
        return int(time.time())


class Form(Shape):
    """An answer of choices. `identity` is its id, `usage` asks for a last chunk with the counts."""

    kind: str
    chunk_kind: str

    def __init__(self, identity: str, model: str, tokenizer: Tokenizer, usage: bool, logprobs: bool) -> None:
        self.identity = identity
        self.model = model
        self.tokenizer = tokenizer
        self.usage = usage
        self.logprobs = logprobs
        self.created = self.now()
        self._told: set[int] = set()  # the choices that have begun
        head = {"id": identity, "object": self.chunk_kind, "created": self.created, "model": model}
        self._open = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._close = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    @abstractmethod
    def part(self, run: Run, piece: Piece, first: bool) -> bytes:
        """The choices of the chunks that say this piece, each a chunk's."""

    @abstractmethod
    def choice(self, run: Run, answer: Piece) -> dict[str, Any]:
        """A whole answer."""

    def chunks(self, group: Sequence[tuple[Run, Piece]]) -> bytes:
        out = b""
        for run, piece in group:
            first = run.index not in self._told
            if first:
                self._told.add(run.index)
            out += self.part(run, piece, first)
        return out

    def event(self, choice: bytes) -> bytes:
        """One chunk."""
        return self._open + choice + self._close

    def last(self, generation: Generation) -> bytes:
        if not self.usage:
            return DONE
        return self._open + b'],"usage":%b}\n\n' % _encode(generation.usage()) + DONE

    def whole(self, generation: Generation, answers: Sequence[tuple[Run, Piece]]) -> bytes:
        return _encode(
            {
                "id": self.identity,
                "object": self.kind,
                "created": self.created,
                "model": self.model,
                "choices": [self.choice(run, answer) for run, answer in answers],
                "usage": generation.usage(),
            }
        )

    def shown(self, token: int) -> str:
        """A token on its own; half a character as U+FFFD."""
        return self.tokenizer.piece(token).decode("utf-8", "replace")


class ChatForm(Form):
    """`/v1/chat/completions`."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def part(self, run: Run, piece: Piece, first: bool) -> bytes:
        index, out = run.index, b""
        if first:
            delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
            out = self.event(delta)
        if piece.text or piece.logprobs:
            logprobs = _encode(self._logprobs(piece.logprobs)) if self.logprobs else b"null"
            delta = b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}'
            out += self.event(delta % (index, _encode(piece.text), logprobs))
        if piece.finish is not None:
            delta = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}'
            out += self.event(delta % (index, piece.finish.encode()))
        return out

    def choice(self, run: Run, answer: Piece) -> dict[str, Any]:
        return {
            "index": run.index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.logprobs) if self.logprobs else None,
            "finish_reason": answer.finish,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            data = self.tokenizer.piece(token)
            return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, _LEAST), "bytes": list(data)}

        told = [{**one(t.id, t.logprob), "top_logprobs": [one(*pair) for pair in t.top]} for t in tokens]
        return {"content": told, "refusal": None}


class CompletionForm(Form):
    """`/v1/completions`. `echo` has the prompts, to be said before their answers."""

    kind, chunk_kind = "text_completion", "text_completion"

    def __init__(self, *given: Any, echo: Sequence[str] = ()) -> None:
        super().__init__(*given)
        self.echo = echo
        self._offsets: dict[int, int] = {}

    def part(self, run: Run, piece: Piece, first: bool) -> bytes:
        text = self.echo[run.prompt] + piece.text if first and self.echo else piece.text
        finish = b"null" if piece.finish is None else b'"%b"' % piece.finish.encode()
        logprobs = _encode(self._logprobs(run, piece)) if self.logprobs else b"null"
        delta = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
        return self.event(delta % (run.index, _encode(text), logprobs, finish))

    def choice(self, run: Run, answer: Piece) -> dict[str, Any]:
        text = self.echo[run.prompt] + answer.text if self.echo else answer.text
        logprobs = self._logprobs(run, answer) if self.logprobs else None
        return {"index": run.index, "text": text, "logprobs": logprobs, "finish_reason": answer.finish}

    def _logprobs(self, run: Run, piece: Piece) -> dict[str, Any]:
        offset, offsets = self._offsets.get(run.index, 0), []
        for token in piece.logprobs:
            offsets.append(offset)
            offset += len(self.shown(token.id))
        self._offsets[run.index] = offset
        return {
            "tokens": [self.shown(t.id) for t in piece.logprobs],
            "token_logprobs": [max(t.logprob, _LEAST) for t in piece.logprobs],
            "top_logprobs": [{self.shown(i): max(p, _LEAST) for i, p in t.top} for t in piece.logprobs],
            "text_offset": offsets,
        }
