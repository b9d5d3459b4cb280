"""Requests for a model on another server: passed on as they are, and answered as it answers, under its name here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec

from penstock.codec import JSON, decode_any
from penstock.errors import RemoteFailed
from penstock.http.message import Answer, Out, Request, Response
from penstock.http.openai import faults
from penstock.http.openai.catalogue import WRITES
from penstock.http.openai.forms import DONE
from penstock.http.openai.route import Asked, Route, answered
from penstock.http.openai.wire import Named
from penstock.http.stream import SSE_HEAD, Writing
from penstock.models import ChatModel, UpstreamModel

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class WritingRoute(Route[Any], Generic[T]):
    """An endpoint for models that write. What is for a model elsewhere is not looked into: that server knows its own fields."""

    streams = True

    def read(self, request: Request) -> tuple[ChatModel | UpstreamModel, Any]:
        data = self.checked(request)
        named: Named = decode_any(data, JSON, Named)
        model: ChatModel | UpstreamModel = self.model(named.model, WRITES)
        return model, decode_any(data, JSON, dict[str, Any] if isinstance(model, UpstreamModel) else self.shape)

    def answer(self, body: Any, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        model, given = body
        return relayed(asked, model, given) if isinstance(model, UpstreamModel) else self.write(model, given, asked)

    @abstractmethod
    def write(self, model: ChatModel, body: T, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        """Begin to answer with a model of ours."""


def relayed(asked: Asked, model: UpstreamModel, body: dict[str, Any]) -> Answer | Coroutine[Any, Any, Answer]:
    """The other server's answer to this body.

    Its tokens are counted there; a tenant's quota is charged with what that server says, and until then by length.
    """
    asked.admit(asked.size // 4)
    call = asked.call(model.relay, asked.path, {**body, "model": model.remote_name})
    return EventRelay(asked, call, model.name) if body.get("stream") else answered(asked, _whole(asked, call, model.name))


async def _whole(asked: Asked, call: Any, name: str) -> bytes:
    found: dict[str, Any] | None = None
    try:
        async with aclosing(call.__aiter__()) as items:
            async for item in items:
                found = item
    finally:
        asked.used(0 if found is None else _tokens(found) or asked.admitted)
    if found is None:
        raise RemoteFailed(f"the server of {name} answered nothing")
    return _encode(_renamed(found, name))


def _tokens(told: dict[str, Any]) -> int:
    """How many tokens were used, where this says so."""
    usage = told.get("usage") or (told.get("response") or {}).get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) else 0


def _renamed(told: dict[str, Any], name: str) -> dict[str, Any]:
    inner = told.get("response")  # of an event of the Responses API
    if isinstance(inner, dict):
        return {**told, "response": _renamed(inner, name)}
    return {**told, "model": name} if "model" in told else told


class EventRelay(Writing):
    """The other server's events. Responses have names for theirs, and end without `[DONE]`."""

    __slots__ = ("asked", "call", "model", "name", "named")

    def __init__(self, asked: Asked, call: Any, model: str) -> None:
        super().__init__(asked.handler)
        self.asked = asked
        self.call = call
        self.model = model
        self.name = asked.path
        self.named = asked.path == "/v1/responses"

    async def pull(self, out: Out) -> None:
        count = said = 0
        try:
            async with aclosing(self.call.__aiter__()) as items:
                async for item in items:
                    count += 1
                    said = _tokens(item) or said
                    kind = b"event: %b\n" % str(item.get("type", "")).encode() if self.named else b""
                    waiting = self.send(b"%bdata: %b\n\n" % (kind, _encode(_renamed(item, self.model))), out)
                    if waiting is not None:
                        await waiting
        finally:
            self.asked.used(said or (self.asked.admitted + count if count else 0))

    def head(self) -> bytes:
        return self.asked.head() + SSE_HEAD

    def end(self) -> bytes:
        return b"" if self.named else DONE

    def broken(self, error: BaseException) -> bytes:
        self.asked.failed(error)  # its log
        _, told = faults.body(error, self.asked.id, debug=self.asked.handler.app.debug)
        return b"data: %b\n\n" % _encode(told)

    def refusal(self, error: BaseException) -> Response:
        return self.asked.failed(error)
