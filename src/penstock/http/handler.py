"""The one HTTP handler of an app: routes, operations and cross-origin rules. Knows nothing of sockets."""

from __future__ import annotations

import html
import re
from collections.abc import Coroutine
from difflib import get_close_matches
from typing import Any

import msgspec

from penstock.errors import NotFound, PenstockError
from penstock.http.access import access_log
from penstock.http.endpoint import Endpoint
from penstock.http.gate import Gate, challenge
from penstock.http.headers import request_id
from penstock.http.message import Answer, Request, Response
from penstock.http.metrics import Metrics
from penstock.http.openai import BENEATH, MODELS, routes
from penstock.http.openai.page import PAGE, page
from penstock.http.openai.route import Resource
from penstock.http.openapi import describe
from penstock.http.operate import PREFIX as REPLICAS
from penstock.http.operate import Operations
from penstock.http.pace import Pacer
from penstock.http.problems import Fault, problem_response
from penstock.http.status import status
from penstock.http.stream import Heartbeats
from penstock.http.traces import Traces
from penstock.runtime import App, Runtime

_JSON = b"content-type: application/json\r\n"
_TEXT = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_HTML = b"content-type: text/html; charset=utf-8\r\n"
_PREFLIGHT = b"access-control-allow-headers: %b\r\naccess-control-max-age: 600\r\n"
_ASKS = (
    b"authorization, content-type, accept, traceparent, x-request-id, x-penstock-within, x-penstock-priority, x-penstock-tenant"
)
_NAMES = re.compile(rb"[a-z0-9_-]+(?:, ?[a-z0-9_-]+)*", re.I)
_VARY = b"vary: origin\r\n"
_EXPOSE = b"access-control-expose-headers: x-request-id, server-timing, retry-after, traceparent, %b\r\n" % b", ".join(
    b"x-ratelimit-%b-%b" % (kind, what) for kind in (b"limit", b"remaining", b"reset") for what in (b"requests", b"tokens")
)


class Handler:
    """Turns requests into answers for the services of one app, in one started runtime."""

    def __init__(self, app: App, runtime: Runtime) -> None:
        self.app = app
        self.runtime = runtime
        self.heartbeats = Heartbeats()
        self.pacer = Pacer()
        self.metrics = Metrics(runtime)
        runtime.log.subscribe(self.metrics.read)
        if app.log:
            runtime.log.subscribe(access_log())
        self.endpoints = {f"/{name}": Endpoint(self, app.services[name]) for name in app.public}
        self.gate = None if app.tokens is None else Gate(app.tokens)
        self.traces: Traces | None = None  # of requests that are under way, where spans are made of them
        self.replicas = Operations(self)
        self.models = routes(self)
        self.paths: dict[str, Endpoint | Resource] = {**self.endpoints, **self.models}
        self._openapi: dict[str, Any] = {}
        self.operations = {
            "/": self._index,
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/status": self._status,
            "/openapi.json": self._describe,
        }
        if app.chat_page:
            self.operations[PAGE] = lambda request: page()

    def __call__(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        endpoint = self.paths.get(request.path)
        if self.gate is not None and (refusal := self.bar(request)) is not None:
            origin = self._origin(request)
            return self._with_origin(refusal, origin) if origin else refusal
        if endpoint is not None and not self.app.cors:
            if request.method == "OPTIONS":
                return Response(204, b"allow: %b\r\n" % endpoint.methods.encode())
            return endpoint(request)
        origin = self._origin(request)
        if request.method == "OPTIONS":
            return self._preflight(request, origin)
        answer = self._operate(request) if endpoint is None else endpoint(request)
        return self._with_origin(answer, origin) if origin else answer

    def bar(self, request: Request) -> Response | None:
        """The refusal of a request without a token that is good for it; a preflight never has one."""
        if self.gate is None or request.method == "OPTIONS" or (request.path == PAGE and self.app.chat_page):
            return None  # the page asks for the token itself
        error = self.gate.refuse(request, self.runtime.clock())
        if error is None:
            return None
        endpoint = self.paths.get(request.path) or self._models_at(request.path)
        if endpoint is not None:
            return endpoint.refuse(error, request, challenge(error))
        return self.refuse(error, request.headers, "", challenge(error))

    def knows(self, path: str) -> bool:
        """Whether this path is ours before it is a mounted application's."""
        return path in self.paths or (path != "/" and path in self.operations)

    def stop(self) -> None:
        """No more heartbeats."""
        self.heartbeats.stop()

    def refuse(self, error: Exception, headers: dict[bytes, bytes], service: str = "", head: bytes = b"") -> Response:
        """The answer to a request that never becomes a call, with an id and a line in the log nevertheless."""
        identity = request_id(headers) or self.runtime.next_id()
        self.note(identity, service, error)
        return problem_response(error, identity, head=b"x-request-id: %b\r\n%b" % (identity.encode("ascii"), head))

    def note(self, identity: str, service: str, error: BaseException) -> None:
        """The line in the log of a request that never became a call."""
        now, kind = self.runtime.clock(), f"HTTP{error.code}" if isinstance(error, Fault) else type(error).__name__
        outcome = "invalid" if isinstance(error, PenstockError) else "failed"
        self.runtime.log.append((identity, service, "", outcome, kind, now, 0.0, 0.0, 0.0, 0.0, 0, "", -1, 0, ""))

    # Operations

    def _operate(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        operation = self.operations.get(request.path)
        if operation is None:
            if request.path.startswith(REPLICAS):
                return self.replicas(request)
            if (models := self._models_at(request.path)) is not None:
                return models(request)
            if request.path.startswith("/readyz/"):
                return self._ready_one(request)
            return self.refuse(self.unknown(request), request.headers)
        if request.method not in ("GET", "HEAD"):
            fault = Fault(405, f"{request.path} answers GET", head=b"allow: GET, HEAD\r\n")
            return self.refuse(fault, request.headers)
        return operation(request)

    def _models_at(self, path: str) -> Resource | None:
        """The models, for what is named in their list, and for what is not there where their clients look."""
        return self.models.get(MODELS) if path.startswith(BENEATH) else None

    def unknown(self, request: Request) -> NotFound:
        """What is said of a path where nothing is."""
        root, path = request.root, request.path[:200]
        if near := get_close_matches(path, self.paths, 1):
            return NotFound(f"nothing is at {root}{path}; did you mean {root}{near[0]}?")
        known = ", ".join(root + other for other in sorted(self.paths))
        return NotFound(f"nothing is at {root}{path}; there is {known or 'no service'}")

    def _health(self, request: Request) -> Response:
        """That this is answered shows that the loop turns; red only if the scheduler has stopped being driven."""
        overdue = self.runtime.clock() - self.runtime.scheduler.wake_at
        if overdue > 5.0:
            return Response(503, _JSON, msgspec.json.encode({"status": "stuck", "overdue_seconds": round(overdue, 1)}))
        return Response(200, _JSON, b'{"status":"ok"}')

    def _ready(self, request: Request) -> Response:
        states = {name: self.runtime.ready(name) for name in self.app.services}
        ready = all(states.values()) and not self.runtime.closing
        return Response(200 if ready else 503, _JSON, msgspec.json.encode({"ready": ready, "services": states}))

    def _ready_one(self, request: Request) -> Response:
        name = request.path[8:]
        if name not in self.app.services:
            return self.refuse(NotFound(f"no service is named {name[:200]!r}"), request.headers)
        ready = self.runtime.ready(name)
        return Response(200 if ready else 503, _JSON, msgspec.json.encode({"ready": ready}))

    def _metrics(self, request: Request) -> Response:
        self.runtime.log.flush()
        return Response(200, _TEXT, self.metrics.render())

    def _status(self, request: Request) -> Response:
        self.runtime.log.flush()
        return Response(200, _JSON, msgspec.json.encode(status(self.app, self.metrics)))

    def _describe(self, request: Request) -> Response:
        if not self._openapi:
            self._openapi = describe(self.app, self.endpoints, self.models)
        servers = {"servers": [{"url": request.root}]} if request.root else {}
        return Response(200, _JSON, msgspec.json.encode(self._openapi | servers))

    def _index(self, request: Request) -> Response:
        root = request.root
        services = {
            name: {"path": f"{root}/{name}", "streams": s.streams, "doc": s.doc.partition("\n")[0]}
            for name, s in ((name, self.app.services[name]) for name in self.app.public)
        }
        if b"text/html" not in request.headers.get(b"accept", b""):
            return Response(200, _JSON, msgspec.json.encode({"name": self.app.name, "services": services}))
        rows = "".join(
            f"<li><code>POST {html.escape(str(s['path']))}</code> {html.escape(str(s['doc']))}</li>" for s in services.values()
        )
        links = "".join(f'<li><a href="{root}{path}">{root}{path}</a></li>' for path in self.operations if path != "/")
        page = (
            f"<!doctype html><meta charset=utf-8><title>{html.escape(self.app.name)}</title>"
            f"<h1>{html.escape(self.app.name)}</h1><ul>{rows}</ul><ul>{links}</ul>"
        )
        return Response(200, _HTML, page.encode())

    # Cross-origin requests

    def _origin(self, request: Request) -> bytes:
        """What every answer says where other origins may read some: caches are to keep those to each origin apart."""
        if not self.app.cors:
            return b""
        origin = request.headers.get(b"origin", b"")
        if origin and ("*" in self.app.cors or origin.decode("latin-1") in self.app.cors):
            return b"access-control-allow-origin: %b\r\n%b%b" % (origin, _VARY, _EXPOSE)
        return _VARY

    def _preflight(self, request: Request, origin: bytes) -> Response:
        endpoint = self.paths.get(request.path)
        allow = endpoint.methods.encode() if endpoint is not None else b"GET, HEAD, OPTIONS"
        head = b"allow: %b\r\n%b" % (allow, origin)
        if len(origin) > len(_VARY):
            # official clients send headers of their own (x-stainless-...); an origin that may call may send any
            asked = request.headers.get(b"access-control-request-headers", b"")
            names = asked if _NAMES.fullmatch(asked) else _ASKS
            head += b"access-control-allow-methods: %b\r\n%b" % (allow, _PREFLIGHT % names)
        return Response(204, head)

    def _with_origin(self, answer: Answer | Coroutine[Any, Any, Answer], origin: bytes) -> Any:
        if isinstance(answer, Response):
            return Response(answer.status, origin + answer.head, answer.body)
        if isinstance(answer, Coroutine):
            return self._later(answer, origin)
        answer.exchange.trace += origin  # type: ignore[attr-defined]
        return answer

    async def _later(self, answer: Coroutine[Any, Any, Answer], origin: bytes) -> Any:
        return self._with_origin(await answer, origin)
