"""One service over HTTP: from a request to a call, and from its answer to bytes."""

from __future__ import annotations

import asyncio
import logging
import typing
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from penstock.codec import MSGPACK as MSGPACK_TYPE
from penstock.codec import OCTETS, Schema, encode_json, encode_msgpack, media_type
from penstock.context import NO_BUDGET
from penstock.errors import BadResult, InvalidRequest, MethodNotAllowed, NotAcceptable, PenstockError, UnsupportedMedia
from penstock.http.headers import JSON, MSGPACK, NDJSON, SSE, accepted, budget_of, read_as_it_is, request_id, trace_line
from penstock.http.message import Answer, Request, Response, pairs
from penstock.http.problems import problem_response
from penstock.http.steps import begun
from penstock.http.stream import EventStream, leaving

if TYPE_CHECKING:
    from penstock.http.handler import Handler
    from penstock.runtime.call import BoundCall
    from penstock.service import Service

PLAIN = frozenset(
    (b"x-request-id", b"x-penstock-within", b"x-penstock-priority", b"x-penstock-tenant", b"traceparent", b"content-encoding")
)
"""What a plain request has none of."""
UNARY = (JSON, MSGPACK, SSE, NDJSON)
STREAMING = (SSE, NDJSON)

logger = logging.getLogger("penstock")


def timing_of(call: BoundCall) -> bytes:
    """The parts of a call's time in ms, as Server-Timing has them."""
    queued, batched, ran, streamed = call.parts()
    if not (queued or batched or streamed):
        return b"queue;dur=0, batch;dur=0, run;dur=%.3f, stream;dur=0" % (ran * 1e3)
    return b"queue;dur=%.3f, batch;dur=%.3f, run;dur=%.3f, stream;dur=%.3f" % (
        queued * 1e3,
        batched * 1e3,
        ran * 1e3,
        streamed * 1e3,
    )


def head_of(call: BoundCall, extra: bytes) -> bytes:
    """Identity and accounting, as response headers."""
    return b"x-request-id: %b\r\nserver-timing: %b\r\n%b" % (call.id.encode("ascii"), timing_of(call), extra)


class Answered(Response):
    """What a call has answered; its head is made in the form that its adapter asks for."""

    __slots__ = ("call", "kind", "trace")

    def __init__(self, call: BoundCall, kind: bytes, trace: bytes, body: bytes) -> None:
        self.status = 200
        self.call = call
        self.kind = kind
        self.trace = trace
        self.body = body

    @property
    def head(self) -> bytes:
        return b"%bcontent-type: %b\r\n" % (head_of(self.call, self.trace), self.kind)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        call = self.call
        found = [
            (b"x-request-id", call.id.encode("ascii")),
            (b"server-timing", timing_of(call)),
            (b"content-type", self.kind),
        ]
        return found + pairs(self.trace) if self.trace else found


class Exchange:
    """A call that came over HTTP."""

    __slots__ = ("call", "debug", "endpoint", "trace")

    def __init__(self, endpoint: Endpoint, call: BoundCall, trace: bytes) -> None:
        self.endpoint = endpoint
        self.call = call
        self.trace = trace
        self.debug = endpoint.handler.app.debug

    def head(self) -> bytes:
        return head_of(self.call, self.trace)

    def report(self, error: BaseException) -> None:
        """The traceback of user code goes to the log; the caller gets the id under which it is there."""
        name, runtime = self.endpoint.service.name, self.endpoint.handler.runtime
        if isinstance(error, BadResult) and self.call.request.outcome in ("ok", "cancelled"):  # the body is not to know
            logger.error("service %s, call %s: %s", name, self.call.id, error)
            runtime.log.amend(self.call.id, "failed", type(error).__name__)
        if not self.call.request.outcome:  # its cost=, key= or size= failed, so it never became a call
            self.endpoint.handler.note(self.call.id, name, error)
        if not isinstance(error, PenstockError):
            logger.error("service %s failed in call %s", name, self.call.id, exc_info=error)


class Endpoint:
    """`POST /{name}`, and `GET` if the service is safe."""

    def __init__(self, handler: Handler, service: Service[..., Any]) -> None:
        self.handler = handler
        self.service = service
        self.schema = Schema(service.signature, service.name)
        returns = service.signature.return_annotation
        self.raw_answer = returns in (bytes, bytearray, memoryview)
        self.methods = "GET, HEAD, POST, OPTIONS" if service.safe else "POST, OPTIONS"
        self.offers = STREAMING if service.streams else UNARY
        self.types = [returns if returns is not typing.Any else None]

    def __call__(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        runtime, headers = self.handler.runtime, request.headers
        plain = PLAIN.isdisjoint(headers)
        identity = "" if plain else request_id(headers)
        try:
            if not plain and request.method == "POST":
                read_as_it_is(headers)
            kwargs = self._arguments(request)
            kind = self._kind(headers) if b"accept" in headers else self.offers[0]
            budget = NO_BUDGET if plain else budget_of(headers, runtime.clock() - request.waited)
        except PenstockError as error:
            return self.refuse(error, request)
        except Exception as error:  # a validator of the user's has a bug
            logger.exception("service %s could not read a request", self.service.name)
            return self.refuse(error, request)
        call = runtime.call(self.service, (), kwargs, budget, size=len(request.body), id=identity)
        if request.waited:
            call.request.waited = request.waited
        trace = b"" if plain else trace_line(headers)
        if trace:
            call.trace = trace  # what calls of other servers, made for this one, go on with
        if trace and self.handler.traces is not None:
            self.handler.traces.add(call.id, headers[b"traceparent"], trace)
        if kind is SSE or kind is NDJSON:
            return EventStream(Exchange(self, call, trace), kind is SSE)
        answering = self._unary(call, kind, trace)
        return answering if call.binding.direct or call.binding.sharing is not None else begun(answering)

    def _kind(self, headers: dict[bytes, bytes]) -> str:
        try:
            return accepted(headers, self.offers)
        except NotAcceptable:
            if self.raw_answer:  # only its author knows whether the bytes are image/png
                return self.offers[0]
            raise

    def _arguments(self, request: Request) -> dict[str, Any]:
        if request.method == "POST":
            given = request.headers.get(b"content-type")
            if given is None or given == b"application/json":
                return self.schema.decode_json(request.body)
            kind = media_type(given.decode("latin-1"))
            if kind == MSGPACK_TYPE:
                return self.schema.decode_msgpack(request.body)
            if self.schema.raw and kind in (OCTETS, ""):
                return self.schema.bind_raw(request.body, OCTETS, _query(request.query))
            if kind == JSON or kind.endswith("+json"):
                return self.schema.decode_json(request.body)
            if self.schema.raw:
                return self.schema.bind_raw(request.body, kind, _query(request.query))
            if not request.body:
                return self.schema.decode_json(b"")
            # --json asks for application/json as well, which no stream is
            curl = "" if self.service.streams else "--json '...', or "
            raise UnsupportedMedia(
                f"{self.service.name} reads application/json and application/msgpack, not {kind}; "
                f"send the header content-type: application/json (curl: {curl}-H 'content-type: application/json')"
            )
        if request.method in ("GET", "HEAD") and self.service.safe:
            return self.schema.decode_query(_query(request.query))
        allow = f"{self.service.name} answers {self.methods}"
        raise MethodNotAllowed(allow + ("" if self.service.safe else "; declare it safe=True to allow GET"))

    def refuse(self, error: Exception, request: Request, head: bytes = b"") -> Response:
        """The answer to a request that never becomes a call."""
        if isinstance(error, MethodNotAllowed):
            head += b"allow: %b\r\n" % self.methods.encode()
        return self.handler.refuse(error, request.headers, self.service.name, head)

    async def _unary(self, call: BoundCall, kind: str, trace: bytes) -> Response:
        try:
            answer = await call.once()
            if self.raw_answer and isinstance(answer, (bytes, bytearray, memoryview)) and kind is not MSGPACK:
                return Answered(call, b"application/octet-stream", trace, bytes(answer))
            if kind is MSGPACK:
                return Answered(call, b"application/msgpack", trace, encode_msgpack(answer))
            return Answered(call, b"application/json", trace, encode_json(answer))
        except asyncio.CancelledError:
            if leaving():
                raise
            error = PenstockError(f"{self.service.name} cancelled its own call")
            return problem_response(error, call.id, head=head_of(call, trace))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # sys.exit() in a body ends that call, not the server
            Exchange(self, call, trace).report(error)
            return problem_response(error, call.id, head=head_of(call, trace), debug=self.handler.app.debug)


def _query(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=1000, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the query string cannot be read: {error}") from None
