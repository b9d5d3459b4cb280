"""Answering, step by step: what can be said in the first step needs no task, which costs as much as most refusals."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any


def begun(answering: Coroutine[Any, Any, Any]) -> Any:
    """What this returned in its first step, taken here and now; else the rest of it. For what does not ask for its task."""
    try:
        waits_for = answering.send(None)
    except StopIteration as end:
        return end.value
    return _rest(answering, waits_for)


async def _rest(answering: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    return await resumed(answering, waits_for)


@coroutine
def resumed(answering: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """What `yield from` does (PEP 380), begun in the middle: after the step in which this waited for that."""
    while True:
        try:
            try:
                got = yield waits_for
            except GeneratorExit:
                answering.close()
                raise
            except BaseException as error:
                waits_for = answering.throw(error)
            else:
                waits_for = answering.send(got)
        except StopIteration as end:
            return end.value
