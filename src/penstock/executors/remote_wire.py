"""What a call of a remote service looks like on the wire, and what its answer means here.

Errors come as RFC 9457 problems. One of penstock's own classes is that class again; what only says that *we* called the remote
in a wrong way (no such service, no token) is our fault and not our caller's, and so is RemoteFailed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

import penstock.errors as errors
from penstock.codec import JSON, MSGPACK, OCTETS, decode_any, encode_json, encode_msgpack, media_type
from penstock.codec.read import line
from penstock.errors import (
    BadResult,
    ConfigError,
    InvalidRequest,
    PenstockError,
    RateLimited,
    Refused,
    RemoteFailed,
    ServiceFailed,
    TooLarge,
    ValidationFailed,
)
from penstock.executors.base import Body
from penstock.executors.invoke import columns
from penstock.executors.remote_place import Remote

NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"
URN = "urn:penstock:"
_OURS = (errors.Unauthorized, errors.Forbidden, errors.NotFound, errors.MethodNotAllowed, errors.NotAcceptable)
_OCTETS = (bytes, bytearray, memoryview)
_CALLERS: dict[int, type[PenstockError]] = {400: InvalidRequest, 413: TooLarge, 422: ValidationFailed}


class Wire:
    """Requests of one service, and what its answers hold."""

    def __init__(self, body: Body, signature: inspect.Signature, options: Remote) -> None:
        self.name = name = body.name
        self.batched = batched = body.batched
        parameters = (inspect.signature(body.target) if batched else signature).parameters  # a batch has its lists' names
        variadic = [p.name for p in parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if variadic:
            raise ConfigError(f"{name}: a remote service names its parameters; *{variadic[0]} has no names on the wire")
        self.fields = tuple(parameters)
        self.octets = [field for field, p in parameters.items() if p.annotation in _OCTETS]
        self.encoding: Literal["json", "msgpack", "raw", "openai"] = options.encoding or (
            "raw" if len(self.fields) == len(self.octets) == 1 and not batched else "json"
        )
        if self.encoding == "raw" and (len(self.octets) != 1 or batched):
            raise ConfigError(f'{name}: encoding="raw" sends one bytes parameter as the body; there are {len(self.octets)}')
        returns = signature.return_annotation
        self.kind: Any = Any if returns is inspect.Signature.empty else returns
        if batched:
            self.kind = list[returns] if returns is not inspect.Signature.empty else list[Any]  # type: ignore[valid-type]
        sent, wanted = {"msgpack": MSGPACK, "raw": OCTETS}.get(self.encoding, JSON), JSON
        if self.encoding == "openai":
            wanted = f"{JSON}, {EVENTS}"
        elif body.streams:
            wanted = f"{NDJSON}, {EVENTS};q=0.9"
        elif self.encoding == "msgpack":
            wanted = f"{MSGPACK}, {JSON};q=0.9, */*;q=0.1"
        elif self.kind in (*_OCTETS, str):
            wanted = "*/*"
        head = {
            "content-type": sent,
            "accept": wanted,
            "user-agent": "penstock",
            **{k.lower(): v for k, v in options.headers.items()},
        }
        if options.token is not None:
            head["authorization"] = f"Bearer {options.token}"
        self.head = "".join(f"{key}: {value}\r\n" for key, value in head.items()).encode("ascii")

    def request(self, target: bytes, requests: Sequence[Any]) -> tuple[bytes, bytes]:
        """The request line of a call of `target`, and its body. Raises InvalidRequest for what has no wire form."""
        body, query = self.body(requests)
        if query:
            target += (b"&" if b"?" in target else b"?") + query.encode("ascii")
        return b"POST " + target, body

    def error(self, status: int, body: bytes, headers: Mapping[bytes, bytes], where: str) -> PenstockError:
        """The exception for an answer that is not a success."""
        return error_of(status, body, headers.get(b"retry-after"), where)

    def body(self, requests: Sequence[Any]) -> tuple[bytes, str]:
        """The body of a request, and its query. Raises InvalidRequest for what has no wire form."""
        given, query = self.given(requests), ""
        if self.encoding == "raw":
            whole = given.pop(self.octets[0], b"")
            if given:
                query = urlencode(
                    {k: v if isinstance(v, str) else self._encoded(encode_json, v).decode() for k, v in given.items()}
                )
            return bytes(whole), query
        return self._encoded(encode_json if self.encoding == "json" else encode_msgpack, given), query

    def given(self, requests: Sequence[Any]) -> dict[str, Any]:
        """What the service was called with, by name."""
        if self.batched:
            return dict(zip(self.fields, columns(requests), strict=True))
        item = requests[0].item
        if len(item.args) > len(self.fields):
            raise InvalidRequest(f"{self.name} takes {len(self.fields)} arguments, {len(item.args)} were given")
        return {**dict(zip(self.fields, item.args, strict=False)), **item.kwargs}

    def _encoded(self, encode: Any, value: Any) -> bytes:
        try:
            return bytes(encode(value))
        except BadResult as error:
            raise InvalidRequest(f"{self.name}: {str(error).replace('The result', 'What it is called with', 1)}") from error

    def answer(self, body: bytes, content_type: str, count: int) -> list[Any]:
        """One result a request. Raises RemoteFailed for what cannot be read."""
        kind = media_type(content_type) if content_type else JSON
        if self.kind in _OCTETS and kind not in (JSON, MSGPACK):
            return [self.kind(body)]
        try:
            found = decode_any(body, content_type or JSON, self.kind)
        except PenstockError as error:
            raise RemoteFailed(f"its answer cannot be read: {error}") from error
        if not self.batched:
            return [found]
        if len(found) != count:
            raise RemoteFailed(f"it was sent a batch of {count} and answered {len(found)} results")
        return list(found)

    def item(self, data: bytes) -> Any:
        """One item of a stream. Raises RemoteFailed."""
        try:
            return decode_any(data, JSON, self.kind)
        except PenstockError as error:
            raise RemoteFailed(f"an item of its stream cannot be read: {error}") from error


def forwarded(requests: Sequence[Any], ours: bool) -> bytes:
    """What is left of the budget: header lines. A batch has as long as its most patient caller.

    Who asks (the tenant) is told to `ours`, another penstock, and to no stranger.
    """
    first = requests[0]
    lines = b"x-request-id: %b\r\n" % _plain(first.id) if first.id else b""
    left = [request.item.remaining() for request in requests]
    if None not in left:
        lines += b"x-penstock-within: %.4f\r\n" % max(0.001, max(left))
    priority = min(request.priority for request in requests)
    if priority:
        lines += b"x-penstock-priority: %d\r\n" % priority
    if ours and first.tenant and len(requests) == 1:
        lines += b"x-penstock-tenant: %b\r\n" % _plain(first.tenant)
    return lines + trace_of(first.item)


def trace_of(item: Any) -> bytes:
    """The `traceparent` line of the request that this call is made for, if it has one."""
    while item is not None:
        if item.trace:
            return bytes(item.trace)
        frame = item.frame
        item = None if frame is None or frame.request is None else frame.request.item
    return b""


def _plain(text: str) -> bytes:
    """As a header's value: visible ASCII, so that nobody's name can add a header."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text[:128]).encode("ascii")


def error_of(status: int, body: bytes, retry_after: bytes | None, where: str) -> PenstockError:
    """The exception for an answer that is not a success."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        told = None
    if not isinstance(told, dict):
        told = {"detail": line(body[:200].decode("utf-8", "replace").strip())}
    detail = told.get("detail") or told.get("message") or told.get("error") or told.get("title") or ""
    later = _seconds(told.get("retry_after", retry_after))
    return problem_error(told, status, line(str(detail)), later, where)


def problem_error(told: dict[str, Any], status: int, detail: str, later: float | None, where: str) -> PenstockError:
    """The exception that a problem describes. Only what is the remote's fault names it: others are told to callers outside."""
    said = f"{where}: {detail}" if detail else f"{where} answered {status}"
    mild = detail or f"the remote answered {status}"
    kind = told.get("type", "")
    if isinstance(kind, str) and kind.startswith(URN):
        found = getattr(errors, kind[len(URN) :], None)
        if kind == f"{URN}UserError":
            return ServiceFailed(said, retry_after=later)
        if isinstance(found, type) and issubclass(found, PenstockError) and not issubclass(found, (*_OURS, ConfigError)):
            return found(mild if issubclass(found, InvalidRequest | Refused) else said, retry_after=later)
    if status in _CALLERS:
        return _CALLERS[status](mild, retry_after=later)
    if status == 429:
        return RateLimited(mild, retry_after=later)
    return RemoteFailed(f"{where} answered {status}{f': {detail}' if detail else ''}", retry_after=later)


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e7 else None


def blames(error: BaseException) -> bool:
    """Whether this error is the remote's own fault: not the caller's, not our reader's, and no refusal for overload."""
    if isinstance(error, errors.ShuttingDown | errors.ProgressTimeout):
        return True
    others = Refused | InvalidRequest | errors.DeadlineExceeded | errors.StreamOverflow
    return isinstance(error, PenstockError) and not isinstance(error, others)
