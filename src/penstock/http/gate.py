"""The gate before an app that has tokens: who calls, as which tenant, and whether they may (RFC 6750)."""

from __future__ import annotations

import ipaddress
import re
import socket

from penstock.errors import Forbidden, PenstockError, RateLimited, Unauthorized
from penstock.http.message import Request
from penstock.runtime.tokens import Token, Tokens

_OPEN = ("/healthz", "/readyz")  # what probes ask, who have no token
_OPERATORS = ("/metrics", "/status")  # and /replicas/...
_UNCOUNTED = ("/", "/openapi.json")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)\Z")
_TENANT, _PRIORITY = b"x-penstock-tenant", b"x-penstock-priority"


class Gate:
    """Lets requests by, or says why not."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def refuse(self, request: Request, now: float) -> PenstockError | None:
        """What is wrong with this request, or None; then its tenant header is its token's."""
        path = request.path
        if path in _OPEN or path.startswith("/readyz/"):
            return None
        self.tokens.refresh(now)
        match = _BEARER.match(request.headers.get(b"authorization", b""))
        if match is None:
            return Unauthorized("this server wants a token: Authorization: Bearer ...")
        token = self.tokens.find(match[1].decode("latin-1"))
        if token is None:
            return Unauthorized("this token is not known here, or not any more")
        operates = path in _OPERATORS or path.startswith("/replicas/")
        if operates and not token.operator:
            return Forbidden(f"{path} is for operators; {token.name!r} is no operator's token")
        tenant, named = token.tenant.encode("ascii"), request.headers.get(_TENANT)
        if named is not None and named != tenant and not token.operator:
            return Forbidden(f"{token.name!r} is a token of tenant {token.tenant!r} and can act for no other")
        if not token.operator and (error := self._hurries(token, request)) is not None:
            return error
        if named is None:
            request.headers = {**request.headers, _TENANT: tenant}  # heads are shared by requests that repeat them
        if path not in _UNCOUNTED and not operates:
            try:
                self.tokens.charge(token.tenant, now)
            except RateLimited as limited:
                return limited
        return None

    def _hurries(self, token: Token, request: Request) -> PenstockError | None:
        """A request may be as urgent as its tenant's calls may be, and is no more urgent by default."""
        most, asked = self.tokens.tenant(token).priority, request.headers.get(_PRIORITY)
        try:
            level = 0 if asked is None else int(asked)
        except ValueError:
            return None  # the endpoint will say so
        if asked is None and most > 0:
            request.headers = {**request.headers, _PRIORITY: b"%d" % most}
        elif level < most:
            return Forbidden(f"tenant {token.tenant!r} may use priorities from {most} on, and asked for {level}")
        return None


def challenge(error: PenstockError) -> bytes:
    """The header line that a 401 must have."""
    return b'www-authenticate: Bearer realm="penstock"\r\n' if isinstance(error, Unauthorized) else b""


def public(host: str) -> bool:
    """Whether others than this machine can reach what is bound to `host`."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)
    except OSError:
        return False  # it cannot be bound either, and that error says why
    return not all(ipaddress.ip_address(str(info[4][0]).partition("%")[0]).is_loopback for info in found)
