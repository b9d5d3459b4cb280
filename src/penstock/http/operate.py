"""Replicas by hand: `GET` and `PUT /replicas/{service}`, `POST /replicas/{service}/roll`.

For operators where the app has tokens. Without tokens, changes are for those on this machine: the server has to be bound
to a loopback address, and a page in a browser there (which says so by its Origin) may not ask. A change goes on to its end
if the client leaves; `Prefer: respond-async` (RFC 7240) does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from penstock.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    NotFound,
    PenstockError,
    ServiceFailed,
    ShuttingDown,
    ValidationFailed,
)
from penstock.http.headers import read_as_it_is
from penstock.http.message import Request, Response
from penstock.http.problems import Fault

if TYPE_CHECKING:
    from penstock.http.handler import Handler
    from penstock.runtime.binding import Binding

PREFIX = "/replicas/"
_JSON = b"content-type: application/json\r\n"
_MOST = 256  # what a slip of the hand may ask for

logger = logging.getLogger("penstock")


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """How many replicas there should be."""

    count: Annotated[int, msgspec.Meta(ge=1, le=_MOST)]


_read = msgspec.json.Decoder(Wanted)


class Operations:
    """What operators may ask of a service. `local`: only this machine reaches the server."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.runtime = handler.runtime
        self.local = False

    def __call__(self, request: Request) -> Response | Coroutine[Any, Any, Response]:
        try:
            return self._answer(request)
        except PenstockError as error:
            return self.handler.refuse(error, request.headers)

    def _answer(self, request: Request) -> Response | Coroutine[Any, Any, Response]:
        name, slash, rest = request.path[len(PREFIX) :].partition("/")
        service = self.handler.app.services.get(name)
        if service is None or (slash and rest != "roll"):
            root = request.root
            raise NotFound(
                f"nothing is at {root}{request.path[:200]}; {root}/replicas/SERVICE and {root}/replicas/SERVICE/roll are"
            )
        binding, replicas = self.runtime.bind(service), self.runtime.replicas
        if not slash and request.method in ("GET", "HEAD"):
            return self._state(binding)
        changes, methods = ("POST", "POST") if slash else ("PUT", "GET, HEAD, PUT")
        if request.method != changes:
            raise Fault(405, f"{request.path} answers {methods}", head=b"allow: %b\r\n" % methods.encode())
        self._permit(request)
        count = None if slash else self._count(request)
        try:
            replicas.scalable(binding, count)
        except ConfigError as error:
            raise Fault(409, str(error)) from None
        work = replicas.roll(binding) if count is None else replicas.scale(binding, count)
        task = replicas.detached(work)
        if b"respond-async" in request.headers.get(b"prefer", b""):
            task.add_done_callback(lambda task: None if task.cancelled() else _told(binding, task.exception()))
            return self._state(binding, 202, b"preference-applied: respond-async\r\n")
        return self._wait(binding, task, request)

    def _permit(self, request: Request) -> None:
        if self.runtime.closing:
            raise ShuttingDown("the server is shutting down")
        if self.handler.gate is not None:
            return  # it has let an operator by
        if not self.local:
            raise Forbidden(
                "only operators change replicas: serve with --tokens (`penstock token add NAME --operator`), or on 127.0.0.1"
            )
        if b"origin" in request.headers:
            raise Forbidden("replicas are not changed by pages of a browser, unless the server has tokens")

    def _count(self, request: Request) -> int:
        read_as_it_is(request.headers)
        try:
            return _read.decode(request.body).count
        except msgspec.ValidationError as error:
            raise ValidationFailed(f'{error}; {{"count": 2}} is meant') from None
        except msgspec.DecodeError as error:
            raise InvalidRequest(f'the body is not JSON: {error}; {{"count": 2}} is meant') from None

    def _state(self, binding: Binding, status: int = 200, head: bytes = b"") -> Response:
        return Response(status, _JSON + head, msgspec.json.encode(self.runtime.replicas.state(binding)))

    async def _wait(self, binding: Binding, task: asyncio.Task[None], request: Request) -> Response:
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise  # the client has left
            return self.handler.refuse(ShuttingDown("the server is shutting down"), request.headers)
        except ShuttingDown as error:
            return self.handler.refuse(error, request.headers)
        except Exception as error:
            _told(binding, error)
            state = self.runtime.replicas.state(binding)
            failed = ServiceFailed(f"{binding.name}: {state.change_failed}; {state.ready} of {state.wanted} replicas serve on")
            return self.handler.refuse(failed, request.headers)
        return self._state(binding)


def _told(binding: Binding, error: BaseException | None) -> None:
    if error is not None:
        logger.error("the replicas of %s could not be changed", binding.name, exc_info=error)
