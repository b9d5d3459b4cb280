"""Calls that come from the body of another call in a child process."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from penstock.context import NO_BUDGET, Frame, frame_var
from penstock.core.request import Request
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall
    from penstock.runtime.driver import Runtime


def start_nested(
    runtime: Runtime, request: Request | None, alone: bool, name: str, args: Any, kwargs: Any, within: float | None
) -> BoundCall:
    """Start a call as `request`'s own. A batch (not `alone`) lends its place in line, but not one item's budget."""
    service = runtime.services.get(name)
    if service is None:
        service = next((bound for bound in runtime.bindings if bound.name == name), None)
    if service is None:
        raise ConfigError(f"a child calls {name}, which is no service of its runtime; list it in Runtime(...)")
    if service.streams:
        raise ConfigError(f"{name} streams, and a stream cannot be read in a child process")
    budget = request.item.budget if request is not None and alone and request.item is not None else NO_BUDGET
    context = copy_context()
    context.run(frame_var.set, Frame(budget, request, runtime, within))
    call = context.run(runtime.call, service, args, kwargs)
    context.run(call.start)
    return call
