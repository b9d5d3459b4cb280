"""What a request's headers ask for: budget, identity, media types."""

from __future__ import annotations

import re
import secrets

from penstock.context import NO_BUDGET, Budget
from penstock.errors import InvalidRequest, NotAcceptable
from penstock.http.problems import Fault

SSE, NDJSON, JSON, MSGPACK = "text/event-stream", "application/x-ndjson", "application/json", "application/msgpack"

_ID = re.compile(rb"[!-~]{1,128}\Z")
_NUMBER = re.compile(rb"\d+(\.\d+)?(e[+-]?\d+)?", re.I)  # JSON's; float() reads more, such as 1_0 and +1
_INTEGER = re.compile(rb"-?\d{1,9}")
_QUALITY = re.compile(rb"\d+\.?\d*|\.\d+")  # .2 is no weight, but Java sends it
_RANGES = 100  # of an Accept header; those beyond are not looked at
_TRACE = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_NAMES = {
    b"text/event-stream": SSE,
    b"application/x-ndjson": NDJSON,
    b"application/jsonl": NDJSON,
    b"application/json": JSON,
    b"application/msgpack": MSGPACK,
    b"application/x-msgpack": MSGPACK,
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
        seconds = float(within) if _NUMBER.fullmatch(within) else -1.0
        if not 0 < seconds < 1e7:
            raise InvalidRequest(f"X-Penstock-Within: a number of seconds greater than 0, not {_shown(within)}")
        deadline = arrived + seconds
    if priority is not None:
        level = int(priority) if _INTEGER.fullmatch(priority) else 1 << 31
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
    """The first of `offers` (best first) that the Accept header wants most. Raises NotAcceptable.

    The most specific range that covers an offer has the last word on it (RFC 9110 12.5.1), so that `q=0` excludes what
    `*/*` would let in; of what is wanted equally, the range that is named first decides.
    """
    accept = headers.get(b"accept", b"*/*")
    if accept == b"*/*" or not accept.strip(b", \t"):
        return offers[0]
    if (kind := _NAMES.get(accept)) in offers:
        return kind
    ranges = _ranges(accept.lower(), offers)
    quality = dict.fromkeys(offers, 0.0)
    for _, wanted, covered in sorted(ranges, key=lambda found: (-found[0], found[1])):
        quality |= dict.fromkeys(covered, wanted)
    best = max(quality.values())
    if not best:
        raise NotAcceptable(f"Accept: {_shown(accept)} names nothing that is offered here; offered: {', '.join(offers)}")
    return next(offer for _, _, covered in ranges for offer in covered if quality[offer] == best)


def _ranges(accept: bytes, offers: tuple[str, ...]) -> list[tuple[int, float, list[str]]]:
    """Of each media range that is known: how many wildcards it has, how much it is wanted, and the offers that it covers."""
    found = []
    for part in accept.split(b",", _RANGES)[:_RANGES]:
        name, _, parameters = part.partition(b";")
        name = name.strip()
        if name in _NAMES:
            covered = [offer for offer in offers if offer == _NAMES[name]]
        elif name.endswith(b"/*"):
            beginning = "" if name == b"*/*" else name[:-1].decode("latin-1")
            covered = [offer for offer in offers if offer.startswith(beginning)]
        else:
            continue
        weights = (p[2:] for p in map(bytes.strip, parameters.split(b";")) if p[:2] == b"q=")
        weight = next(weights, b"1")
        wanted = min(1.0, float(weight)) if _QUALITY.fullmatch(weight) else 0.0
        found.append((name.count(b"*"), wanted, covered))
    return found


def read_as_it_is(headers: dict[bytes, bytes]) -> None:
    """Refuse a body that is compressed, since none is read here. Raises Fault."""
    coding = headers.get(b"content-encoding", b"")
    if coding and coding.lower() != b"identity":
        raise Fault(
            415,
            f"Content-Encoding: {_shown(coding)} is not read here; send the body as it is, without that header",
            head=b"accept-encoding: identity\r\n",
        )


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("latin-1"))
