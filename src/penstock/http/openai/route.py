"""What the model endpoints have in common: who asks, what is read, how errors are told, and one line in the log a request."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine
from contextvars import copy_context
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from penstock.codec import JSON, decode_any, media_type
from penstock.context import Budget, Frame, frame_var
from penstock.core.request import Request as Group
from penstock.errors import InvalidRequest, MethodNotAllowed, PenstockError, RateLimited, UnsupportedMedia
from penstock.http.headers import budget_of, read_as_it_is, request_id, trace_line
from penstock.http.message import Answer, Request, Response
from penstock.http.openai import faults
from penstock.http.openai.catalogue import ALL, Catalogue
from penstock.http.stream import leaving

if TYPE_CHECKING:
    from penstock.http.handler import Handler
    from penstock.runtime.call import BoundCall
    from penstock.service import Service

T = TypeVar("T")
AWAY = 2_000  # characters: texts longer than that are made into tokens in a thread

logger = logging.getLogger("penstock")
JSON_HEAD = b"content-type: application/json\r\n"


class Asked:
    """One request of a model endpoint: its identity, its budget, and the calls that are made for it.

    The calls are roots: each is admitted, ordered and charged on its own. Where there are several, they have the request for a
    parent in the log, and it has the one line.
    """

    __slots__ = ("admitted", "arrived", "budget", "calls", "group", "handler", "id", "path", "size", "trace", "waited")

    def __init__(self, handler: Handler, request: Request) -> None:
        headers, runtime = request.headers, handler.runtime
        self.handler = handler
        self.path = request.path
        self.id = request_id(headers) or runtime.next_id()
        self.waited = request.waited
        self.arrived = runtime.clock() - request.waited
        self.budget = _budget(handler, headers, self.arrived)
        self.trace = trace_line(headers)
        self.size = len(request.body)
        self.group: Group | None = None
        self.calls: list[BoundCall] = []
        self.admitted = 0

    def admit(self, tokens: int) -> None:
        """Charge the tenant's tokens per minute with what is to be read, before any call. Raises RateLimited."""
        quota = self.handler.app.tokens
        if quota is not None:
            quota.admit(self.budget.tenant, tokens, self.handler.runtime.clock())
            self.admitted = tokens

    def used(self, tokens: int) -> None:
        """So many were read and written after all."""
        quota = self.handler.app.tokens
        if quota is not None:
            quota.use(self.budget.tenant, tokens - self.admitted, self.handler.runtime.clock())
            self.admitted = tokens

    def call(self, service: Service[..., Any], *args: Any, alone: bool = True) -> BoundCall:
        """A call for this request; not `alone`: one of several."""
        runtime = self.handler.runtime
        if alone:
            call = runtime.call(service, args, {}, self.budget, size=self.size, id=self.id)
        else:
            call = copy_context().run(self._part, service, args)
        if self.waited:
            call.request.waited = self.waited
        if self.trace:
            call.trace = self.trace
        self.calls.append(call)
        return call

    def _part(self, service: Service[..., Any], args: tuple[Any, ...]) -> BoundCall:
        if self.group is None:
            self.group = Group(self.id, self.budget.tenant, 0)
            self.group.arrival = self.arrived
        frame_var.set(Frame(self.budget, self.group, self.handler.runtime))
        return self.handler.runtime.call(service, args, {})

    def head(self) -> bytes:
        """Identity, accounting and what is left of the tenant's quotas, as response headers."""
        from penstock.http.endpoint import head_of

        more = self.trace + _quota(self.handler, self.budget.tenant)
        if self.group is None and len(self.calls) == 1:
            return head_of(self.calls[0], more)
        return b"x-request-id: %b\r\n%b" % (self.id.encode("ascii"), more)

    def ended(self, error: BaseException | None) -> None:
        """One line for what was several calls, or none because the answer was kept."""
        if self.group is None and self.calls:
            return
        released = "" if self.calls else "hit"
        runtime = self.handler.runtime
        outcome, kind = "ok", ""
        if error is not None:
            outcome, kind = "failed", type(error).__name__
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                outcome, kind = "cancelled", ""
        took, tenant = runtime.clock() - self.arrived, self.budget.tenant
        line = (
            self.id,
            self.path,
            tenant,
            outcome,
            kind,
            self.arrived,
            0.0,
            0.0,
            took,
            0.0,
            0,
            released,
            -1,
            len(self.calls),
            "",
        )
        runtime.log.append(line)

    def failed(self, error: BaseException) -> Response:
        """The answer to a request whose calls failed. What user code raised goes to the log, with its traceback."""
        if not isinstance(error, PenstockError):
            logger.error("%s failed in request %s", self.path, self.id, exc_info=error)
        return faults.response(error, self.id, self.head(), debug=self.handler.app.debug)


def _quota(handler: Handler, tenant: str) -> bytes:
    """What is left of a tenant's quotas, as OpenAI's clients read it."""
    quota = handler.app.tokens
    if quota is None:
        return b""
    left = quota.allowance(tenant, handler.runtime.clock())
    lines = []
    for name, value in zip(left._fields, left, strict=True):
        if value is not None:
            kind, _, what = name.partition("_")
            lines.append(f"x-ratelimit-{kind}-{what}: {f'{value:.3f}s' if kind == 'reset' else value}\r\n")
    return "".join(lines).encode("ascii")


def _budget(handler: Handler, headers: dict[bytes, bytes], arrived: float) -> Budget:
    """The budget that the headers name. Without tokens, whoever sends an API key is a tenant of that key."""
    budget = budget_of(headers, arrived)
    key = headers.get(b"authorization")
    if handler.gate is None and key and not budget.tenant:
        tenant = f"key-{sha256(key).hexdigest()[:12]}"
        return Budget(budget.deadline, budget.priority, tenant)
    return budget


class Resource(ABC):
    """What is at one path. `shape` is what it reads, if it reads anything; `streams` says that it may answer with events."""

    methods = "POST, OPTIONS"
    shape: Any = None
    streams = False

    def __init__(self, handler: Handler, path: str, catalogue: Catalogue) -> None:
        self.handler = handler
        self.path = path
        self.catalogue = catalogue

    @abstractmethod
    def __call__(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        """Begin to answer."""

    def refuse(self, error: Exception, request: Request, head: bytes = b"") -> Response:
        """The answer to a request that never becomes a call."""
        if isinstance(error, MethodNotAllowed):
            head += b"allow: %b\r\n" % self.methods.encode()
        if isinstance(error, RateLimited):
            head += _quota(self.handler, request.headers.get(b"x-penstock-tenant", b"").decode("latin-1"))
        identity = request_id(request.headers) or self.handler.runtime.next_id()
        self.handler.note(identity, self.path, error)
        return faults.response(error, identity, b"x-request-id: %b\r\n%b" % (identity.encode("ascii"), head))


class Route(Resource, Generic[T]):
    """A resource that answers POST. `shape` is the type T."""

    @abstractmethod
    def answer(self, body: T, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        """Begin to answer. May raise what `refuse` tells."""

    def __call__(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        if request.method == "OPTIONS":
            return Response(204, b"allow: %b\r\n" % self.methods.encode())
        try:
            if request.method != "POST":
                raise MethodNotAllowed(f"{self.path} answers POST")
            body = self.read(request)
            return self.answer(body, Asked(self.handler, request))
        except PenstockError as error:
            return self.refuse(error, request)
        except Exception as error:
            logger.exception("%s could not read a request", self.path)
            return self.refuse(error, request)

    def read(self, request: Request) -> T:
        """The body. Raises InvalidRequest."""
        found: T = decode_any(self.checked(request), JSON, self.shape)
        return found

    def checked(self, request: Request) -> bytes:
        """The body, if it says that it is JSON. Raises InvalidRequest."""
        read_as_it_is(request.headers)
        given = request.headers.get(b"content-type")
        kind = JSON if given is None else media_type(given.decode("latin-1"))
        if kind != JSON:
            raise UnsupportedMedia(f"{self.path} reads application/json, not {kind[:100]} (curl: --json '...')")
        if not request.body:
            raise InvalidRequest("the body is empty; send a JSON object")
        return request.body

    def model(self, name: str | None, kinds: tuple[type[Any], ...]) -> Any:
        """The model that is asked for. Raises NoModel."""
        return self.catalogue.only(kinds) if name is None else self.catalogue.find(name, kinds)


async def answered(asked: Asked, body: Awaitable[bytes]) -> Response:
    """An answer of JSON, or the error that making it raised."""
    try:
        data = await body
        return Response(200, asked.head() + JSON_HEAD, data)
    except asyncio.CancelledError:
        if leaving():
            raise
        return asked.failed(PenstockError(f"{asked.path} cancelled its own call"))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        return asked.failed(error)


async def aside(size: int, work: Any, *args: Any) -> Any:
    """`work(*args)` on input of `size` characters: here if that is short, else in a thread."""
    return work(*args) if size <= AWAY else await asyncio.to_thread(work, *args)


class Models(Resource):
    """`GET /v1/models` and `/v1/models/{name}`."""

    methods = "GET, HEAD, OPTIONS"

    def __call__(self, request: Request) -> Answer:
        if request.method == "OPTIONS":
            return Response(204, b"allow: %b\r\n" % self.methods.encode())
        if not f"{request.path}/".startswith(f"{self.path}/"):
            return self.refuse(self.handler.unknown(request), request)
        if request.method not in ("GET", "HEAD"):
            return self.refuse(MethodNotAllowed(f"{self.path} answers GET"), request)
        name = request.path[len(self.path) + 1 :]
        if not name:
            entries = [self.catalogue.entry(model) for model in self.catalogue.models]
            return Response(200, JSON_HEAD, msgspec.json.encode({"object": "list", "data": entries}))
        try:
            found = self.catalogue.find(name, ALL)
        except faults.NoModel as error:
            return self.refuse(error, request)
        return Response(200, JSON_HEAD, msgspec.json.encode(self.catalogue.entry(found)))
