"""How a body is called, and what becomes of what it returns or raises; shared by every executor.

Invariant: whatever user code does, each request of a unit gets exactly one result, and a result that is an exception
instance is one that a future can hold and a loop can survive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from penstock.errors import BadResult, PenstockError, ServiceError, ServiceFailed, StreamOverflow
from penstock.executors.child import outcome

_KINDS: dict[str, type[PenstockError]] = {
    outcome.BAD: BadResult,
    outcome.OVERFLOW: StreamOverflow,
    outcome.SERVICE: ServiceError,
}


_UNBEGUN = frozenset((CoroutineType, GeneratorType, AsyncGeneratorType))


def own_error(kind: str, text: str) -> PenstockError:
    """The exception for a failure that is named by its kind."""
    return _KINDS.get(kind, ServiceFailed)(text)


def contain(name: str, error: BaseException, own: int = 1) -> BaseException:
    """The exception to report for what a body raised; drops the executor's own frames from its traceback.

    Without them an error keeps no reference to the work that it is a result of, hence no cycle.
    """
    for _ in range(own):
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next
    if isinstance(error, StopIteration | StopAsyncIteration):
        held: ServiceError = ServiceFailed(f"{name} raised {type(error).__name__}, which a future cannot hold")
    elif isinstance(error, Exception | asyncio.CancelledError):
        return error
    elif isinstance(error, SystemExit):
        held = ServiceError(f"{name} called sys.exit({error.code!r}); a body ends by returning or raising an Exception")
    else:
        held = ServiceError(f"{name} raised {type(error).__name__}; raise an Exception instead")
    held.__cause__ = error
    return held


def columns(requests: Sequence[Any]) -> list[list[Any]]:
    """One list per parameter, as a batched body is called."""
    return [list(column) for column in zip(*(request.item.args for request in requests), strict=True)]


def spread(name: str, returned: Any, expected: int) -> list[Any]:
    """One result per request from what a batched body returned."""
    try:
        return outcome.spread(name, returned, expected)
    except outcome.Verdict as wrong:
        return [own_error(wrong.kind, str(wrong)) for _ in range(expected)]


def call_batch(name: str, fn: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
    """Call a batched body once; what it raises fails every request."""
    try:
        return spread(name, fn(*columns(requests)), len(requests))
    except BaseException as error:
        return [contain(name, error)] * len(requests)


def call_each(name: str, fn: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
    """Call an unbatched body, each request in its own context."""
    return [_call(name, fn, request.item) for request in requests]


def _call(name: str, fn: Callable[..., Any], item: Any) -> Any:
    context = item.context
    try:
        answer = fn(*item.args, **item.kwargs) if context is None else context.run(_within, fn, item)
        return answer if type(answer) not in _UNBEGUN else unbegun(name, answer)
    except BaseException as error:
        return contain(name, error, 1 if context is None else 2)
    finally:
        del item  # an error keeps the body's frame, and with it the frames that called it


def unbegun(name: str, answer: Any) -> BadResult:
    """What to say of a body that only gave what would have to be run."""
    kind = type(answer).__name__.replace("_", " ")
    if isinstance(answer, CoroutineType):
        answer.close()
    return BadResult(
        f"{name} returned {'an' if kind[0] == 'a' else 'a'} {kind}, which nobody runs: where a decorator hides that the "
        "body is an `async def` or has a `yield`, make the decorator's own function one too"
    )


def _within(fn: Callable[..., Any], item: Any) -> Any:
    try:
        item.enter()
        return fn(*item.args, **item.kwargs)
    finally:
        del item  # for the same reason


def cancelled(requests: Sequence[Any]) -> list[Any]:
    """The results of a unit that a cancel stopped."""
    return [asyncio.CancelledError() for _ in requests]


def signal_tokens(requests: Sequence[Any]) -> None:
    """Tell a body that looks at its cancellation token; one that does not look runs to its end."""
    for request in requests:
        token = getattr(request.item, "token", None)
        if token is not None:
            token.set()
