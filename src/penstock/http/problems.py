"""Errors as RFC 9457 problems (application/problem+json).

`type` is "about:blank" for what plain HTTP says, else a urn with the error's class, so that a client can branch on it
without parsing prose. An exception of user code becomes a 500 that says nothing of it; the log has the traceback.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from penstock.errors import InvalidRequest, PenstockError, ServiceError
from penstock.http.message import Response
from penstock.http.wire import STATUS_LINES

PROBLEM_HEAD = b"content-type: application/problem+json\r\n"


class Fault(InvalidRequest):
    """What HTTP itself refuses: the status is the instance's, since each is raised in one place only."""

    def __init__(
        self, code: int, message: str, *, title: str = "", head: bytes = b"", retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code
        self.title_of = title or STATUS_LINES[code][13:-2].decode()
        self.head = head


def problem(error: BaseException, instance: str = "", *, debug: bool = False) -> dict[str, Any]:
    """The problem as a dict, in the order in which people read it."""
    found: dict[str, Any]
    if isinstance(error, SystemExit):
        error = ServiceError(f"the service called sys.exit({error.code!r}); a body ends by returning or raising an Exception")
    if isinstance(error, Fault):
        found = {"type": "about:blank", "title": error.title_of, "status": error.code, "detail": str(error)}
    elif isinstance(error, PenstockError):
        kind = f"urn:penstock:{type(error).__name__}"
        found = {"type": kind, "title": error.title, "status": error.status, "detail": str(error)}
    else:
        detail = "The service raised an error; the server's log has it under this request's id."
        if debug:
            detail = f"{type(error).__name__}: {error}"
        found = {"type": "urn:penstock:UserError", "title": "Service raised", "status": 500, "detail": detail}
    if instance:
        found["instance"] = instance
    retry_after = _retry_after(error)
    if retry_after is not None:
        found["retry_after"] = round(retry_after, 3)
    return found


def _retry_after(error: BaseException) -> float | None:
    """When to come back, if that can be said: a service's own error may have said anything."""
    seconds = error.retry_after if isinstance(error, PenstockError) else None
    return None if seconds is None or not math.isfinite(seconds) else max(0.0, seconds)


def problem_head(error: BaseException) -> bytes:
    """The header lines that belong to the error itself."""
    head = PROBLEM_HEAD
    retry_after = _retry_after(error)
    if retry_after is not None:
        head += b"retry-after: %d\r\n" % max(1, math.ceil(retry_after))
    if isinstance(error, Fault):
        head += error.head
    return head


def problem_response(error: BaseException, instance: str = "", *, head: bytes = b"", debug: bool = False) -> Response:
    found = problem(error, instance, debug=debug)
    return Response(found["status"], head + problem_head(error), msgspec.json.encode(found))
