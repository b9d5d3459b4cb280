"""What a request's headers ask for: budget, identity, media types."""

from __future__ import annotations

import re
import secrets

from penstock.context import NO_BUDGET, Budget
from penstock.errors import InvalidRequest, NotAcceptable

SSE, NDJSON, JSON, MSGPACK = "text/event-stream", "application/x-ndjson", "application/json", "application/msgpack"

_ID = re.compile(rb"[!-~]{1,128}\Z")
_TRACE = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_NAMES = {
    b"text/event-stream": SSE,
    b"application/x-ndjson": NDJSON,
    b"application/jsonl": NDJSON,
    b"application/json": JSON,
    b"application/msgpack": MSGPACK,
    b"application/x-msgpack": MSGPACK,
    b"application/*": JSON,
    b"text/*": SSE,
    b"*/*": "",
}


def budget_of(headers: dict[bytes, bytes], arrived: float) -> Budget:
    """X-Penstock-Within (seconds from its arrival), X-Penstock-Priority (integer), X-Penstock-Tenant. Raises InvalidRequest."""
    within = headers.get(b"x-penstock-within")
    priority = headers.get(b"x-penstock-priority")
    tenant = headers.get(b"x-penstock-tenant")
    if within is None and priority is None and tenant is None:
        return NO_BUDGET
    deadline, level = None, 0
    if within is not None:
        try:
            seconds = float(within)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e7:
            raise InvalidRequest(f"X-Penstock-Within: a number of seconds greater than 0, not {_shown(within)}")
        deadline = arrived + seconds
    if priority is not None:
        try:
            level = int(priority)
        except ValueError:
            level = 1 << 31
        if abs(level) > 1000:
            raise InvalidRequest(f"X-Penstock-Priority: an integer from -1000 to 1000, not {_shown(priority)}")
    if tenant is not None and not _ID.match(tenant):
        raise InvalidRequest("X-Penstock-Tenant: 1 to 128 visible ASCII characters")
    return Budget(deadline, level, "" if tenant is None else tenant.decode("ascii"))


def request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's own id if it is sane, else none."""
    given = headers.get(b"x-request-id")
    return given.decode("ascii") if given is not None and _ID.match(given) else ""


def trace_line(headers: dict[bytes, bytes]) -> bytes:
    """A `traceparent` response header that continues the caller's trace (W3C Trace Context), or nothing."""
    given = headers.get(b"traceparent")
    if given is None:
        return b""
    match = _TRACE.match(given)
    if match is None or match[1] == b"ff" or not match[2].strip(b"0") or not match[3].strip(b"0"):
        return b""
    return b"traceparent: 00-%b-%b-%b\r\n" % (match[2], secrets.token_hex(8).encode(), match[4])


def accepted(headers: dict[bytes, bytes], offers: tuple[str, ...]) -> str:
    """The first of `offers` (best first) that the Accept header wants most. Raises NotAcceptable."""
    accept = headers.get(b"accept")
    if accept is None or accept == b"*/*":
        return offers[0]
    best, best_quality = "", 0.0
    for part in accept.split(b","):
        name, *parameters = (piece.strip().lower() for piece in part.split(b";"))
        quality = next((_quality(p[2:]) for p in parameters if p[:2] == b"q="), 1.0)
        kind = _NAMES.get(name)
        if kind is None:
            continue
        if kind == "" or (name.endswith(b"/*") and kind not in offers):
            kind = offers[0]
        if kind in offers and quality > best_quality:
            best, best_quality = kind, quality
    if not best:
        raise NotAcceptable(f"Accept: {_shown(accept)} names nothing that is offered here; offered: {', '.join(offers)}")
    return best


def _quality(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("latin-1"))
