"""Every error that penstock raises itself, one small tree ordered by fault.

An error says whose fault it is (`fault`), which HTTP status it maps to (`status`), and whether waiting helps
(`retry_after`, seconds). A message names what was asked, what the limit was, and what to do. Exceptions of user code
are never wrapped for callers in the same process.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Fault = Literal["caller", "overload", "service", "declaration"]


class PenstockError(Exception):
    """The root of the tree."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    fault: ClassVar[Fault] = "service"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


# The caller's fault: the same request will fail again.


class InvalidRequest(PenstockError):
    """The request cannot be understood."""

    status, title, fault = 400, "Invalid request", "caller"


class ValidationFailed(InvalidRequest):
    """The request is well formed, but a value has the wrong type, is missing or is unknown."""

    status, title = 422, "Validation failed"


class TooLarge(InvalidRequest):
    """The request can never fit: a body, a cost or a memory need above a limit."""

    status, title = 413, "Too large"


class Unauthorized(InvalidRequest):
    """The server wants a bearer token, and the request has none that it knows."""

    status, title = 401, "Unauthorized"


class Forbidden(InvalidRequest):
    """The token is known, but not for this."""

    status, title = 403, "Forbidden"


class NotFound(InvalidRequest):
    """No service has this name."""

    status, title = 404, "Not found"


class MethodNotAllowed(InvalidRequest):
    """The service exists, but not for this HTTP method."""

    status, title = 405, "Method not allowed"


class NotAcceptable(InvalidRequest):
    """None of the media types that the caller accepts can be produced."""

    status, title = 406, "Not acceptable"


class UnsupportedMedia(InvalidRequest):
    """The body's media type is not one that this service reads."""

    status, title = 415, "Unsupported media type"


# Overload: refused before any work was done, so safe to send again, here or elsewhere.


class Refused(PenstockError):
    """The request was never started. Sending it again is safe; `retry_after` says when it may help."""

    status, title, fault = 503, "Refused", "overload"


class QueueFull(Refused):
    """The service's queue is at its limit of items or bytes."""

    status, title = 429, "Queue full"


class RateLimited(Refused):
    """The rate of the service is used up, and waiting for it would take too long."""

    status, title = 429, "Rate limited"


class Overloaded(Refused):
    """The predicted wait is longer than the bound of the queue, or than callers are known to wait."""

    title = "Overloaded"


class DeadlineInfeasible(Refused):
    """The predicted finish is past the caller's deadline."""

    title = "Deadline infeasible"


class Superseded(Refused):
    """A newer request of the same key took this one's place in the queue."""

    status, title = 409, "Superseded"


class ShuttingDown(Refused):
    """The runtime is draining or has stopped."""

    title = "Shutting down"


class StartTimeout(Refused):
    """The request waited in the queue for as long as the service allows, and was not started."""

    title = "Start timed out"


# Time that ran out after work had begun.


class DeadlineExceeded(PenstockError, TimeoutError):
    """The caller's deadline passed before the answer was complete."""

    status, title = 504, "Deadline exceeded"
    fault: ClassVar[Fault] = "caller"


class ProgressTimeout(DeadlineExceeded):
    """The body made no progress (no answer, no next item) for as long as the service allows."""

    title = "No progress"
    fault: ClassVar[Fault] = "service"


# The service's fault.


class ServiceError(PenstockError):
    """The service failed through no fault of the caller."""


class ServiceFailed(ServiceError):
    """User code in another process raised something that cannot be carried over as it is; holds its traceback."""

    title = "Service failed"


class WorkerLost(ServiceError):
    """The process that ran the request died."""

    status, title = 503, "Worker lost"


class RemoteFailed(ServiceError):
    """A remote server could not be reached, broke off, failed, or answered with what cannot be used.

    `begun` is false if there was no connection to it, so that nothing was sent.
    """

    status, title = 502, "Remote failed"
    begun = True


class BadResult(ServiceError):
    """The body returned what cannot be used: a wrong number of results, or a value that cannot be encoded."""

    title = "Bad result"


class StreamOverflow(ServiceError):
    """A stream's reader was too slow for its buffer, and the service's policy is to drop it."""

    title = "Stream overflow"


# Wrong declarations, found when a service is declared, started or first called.


class ConfigError(PenstockError, TypeError):
    """A declaration contradicts itself or names something that does not exist."""

    title, fault = "Configuration error", "declaration"


class DeadlockRefused(ConfigError):
    """A nested call would wait for a pool that its own caller holds; the message has the chain."""

    title = "Deadlock refused"
