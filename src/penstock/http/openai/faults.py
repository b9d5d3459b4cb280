"""Errors as OpenAI's clients read them: `{"error": {message, type, param, code}}`.

The clients choose their exception by the status and show the message; `code` is what programs branch on. A value that
is wrong is 400 here, as there, not 422.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from penstock.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PenstockError,
    QueueFull,
    RateLimited,
    Refused,
    Unauthorized,
    ValidationFailed,
)
from penstock.http.message import Response
from penstock.http.problems import problem, problem_head

_KINDS: tuple[tuple[type[PenstockError], str, str | None], ...] = (
    (Unauthorized, "authentication_error", "invalid_api_key"),
    (Forbidden, "permission_error", "forbidden"),
    (NotFound, "invalid_request_error", "not_found"),
    (InvalidRequest, "invalid_request_error", None),
    (RateLimited, "rate_limit_error", "rate_limit_exceeded"),
    (QueueFull, "rate_limit_error", "queue_full"),
    (Refused, "overloaded_error", "overloaded"),
)

_PLACE = re.compile(r" - at `\$\.([^`\[]*(?:\[\d+\][^`\[]*)*)")
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `([^`]+)`")


class Rejected(InvalidRequest):
    """A request that a model endpoint does not take; `param` is the field it is about."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NoModel(NotFound):
    """No model has this name, or not one for this endpoint."""

    param, code = "model", "model_not_found"


def body(error: BaseException, identity: str = "", *, debug: bool = False) -> tuple[int, dict[str, Any]]:
    """The status, and the error as a dict."""
    found = problem(error, identity, debug=debug)
    status = 400 if isinstance(error, ValidationFailed) else found["status"]
    kind, code = "server_error", None
    for each, name, default in _KINDS:
        if isinstance(error, each):
            kind, code = name, default
            break
    else:
        code = {503: "unavailable", 504: "timeout", 502: "upstream_failed"}.get(status)
    param = getattr(error, "param", None)
    if isinstance(error, ValidationFailed) and param is None:
        param = _param(str(error))
    given = getattr(error, "code", None)
    if isinstance(given, str):
        code = given
    return status, {"error": {"message": found["detail"], "type": kind, "param": param, "code": code}}


def _param(message: str) -> str | None:
    """The field that a message of msgspec's is about; indices are kept, what is in a mapping is not."""
    place, field = _PLACE.search(message), _FIELD.match(message)
    return ".".join(found[1] for found in (place, field) if found) or None


def response(error: BaseException, identity: str, head: bytes = b"", *, debug: bool = False) -> Response:
    """The whole answer. `head` has what else is to be said."""
    status, told = body(error, identity, debug=debug)
    lines = problem_head(error).replace(b"application/problem+json", b"application/json", 1)
    return Response(status, head + lines, msgspec.json.encode(told))
