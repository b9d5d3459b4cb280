"""A generation as an HTTP answer: whole, or streamed as server-sent events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from penstock.http.message import Out, Response
from penstock.http.openai import faults
from penstock.http.openai.forms import Shape
from penstock.http.openai.generation import Generation
from penstock.http.openai.route import Asked
from penstock.http.stream import SSE_HEAD, Writing

Made = tuple[Generation, Shape]
Make = Callable[[], Awaitable[Made]]
"""Makes tokens of the request and begins its calls. May raise what the request is refused with."""


async def whole(make: Make) -> bytes:
    """All answers, when they are complete."""
    generation, form = await make()
    return form.whole(generation, await generation.whole())


class ChunkStream(Writing):
    """Chunks as they come, then `[DONE]`. What fails after the start is an event with an error, and no `[DONE]`."""

    __slots__ = ("asked", "form", "generation", "make", "name")

    def __init__(self, asked: Asked, make: Make) -> None:
        super().__init__(asked.handler)
        self.asked = asked
        self.make = make
        self.name = asked.path
        self.generation: Generation | None = None
        self.form: Shape | None = None

    async def pull(self, out: Out) -> None:
        self.generation, self.form = generation, form = await self.make()
        chunks = form.chunks
        async with aclosing(generation.groups()) as groups:
            async for group in groups:
                data = chunks(group)
                waiting = self.send(data, out) if data else None
                if waiting is not None:
                    await waiting

    def head(self) -> bytes:
        return self.asked.head() + SSE_HEAD

    def end(self) -> bytes:
        assert self.form is not None and self.generation is not None
        return self.form.last(self.generation)

    def broken(self, error: BaseException) -> bytes:
        self.asked.failed(error)  # its log
        _, told = faults.body(error, self.asked.id, debug=self.asked.handler.app.debug)
        return b"data: %b\n\n" % msgspec.json.encode(told) if self.form is None else self.form.broken(told["error"])

    def refusal(self, error: BaseException) -> Response:
        return self.asked.failed(error)
