"""What travels with a call: its budget, its place in line, and what its callers hold.

A `Frame` is the ambient state of one call (a context variable). Inner calls are made in their caller's frame and may
only tighten it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock.core.policy.declared import number, whole
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.core.request import Request


class Budget(msgspec.Struct, frozen=True, gc=False):
    """What a call may still spend.

    `deadline` is an absolute time of the runtime's monotonic clock or None; the smaller `priority` goes first;
    `tenant` is whose fair share pays.
    """

    deadline: float | None = None
    priority: int = 0
    tenant: str = ""


class HasClock(Protocol):
    def clock(self) -> float: ...


class Frame(msgspec.Struct, eq=False):
    """The ambient state of one call, or of a `with budget(...)` block (then `request` is its caller's)."""

    budget: Budget
    request: Request | None = None
    runtime: HasClock | None = None
    within: float | None = None  # seconds from the making of a call; where no clock was known when it was set


NO_BUDGET = Budget()
frame_var: ContextVar[Frame | None] = ContextVar("penstock_frame", default=None)


def current_budget() -> Budget:
    """The budget in force here."""
    frame = frame_var.get()
    return NO_BUDGET if frame is None else frame.budget


def tighten(frame: Frame | None, within: float | None, now: float) -> Budget:
    """The frame's budget with its deadline no later than `within` seconds from now."""
    budget = NO_BUDGET if frame is None else frame.budget
    if frame is not None and frame.within is not None:
        within = frame.within if within is None else min(within, frame.within)
    if within is None:
        return budget
    deadline = now + within
    if budget.deadline is not None and budget.deadline <= deadline:
        return budget
    return Budget(deadline, budget.priority, budget.tenant)


@contextmanager
def budget(
    within: float | None = None, priority: int | None = None, tenant: str | None = None, *, deadline: float | None = None
) -> Iterator[None]:
    """Calls made in this block get this budget.

    `within`: seconds from each call's making, `deadline`: an absolute time of the runtime's clock (`time.monotonic()`);
    both only ever tighten what is in force. Inside a service, `priority` and `tenant` belong to the root call and
    cannot be changed.
    """
    number("budget(within=...)", within, "seconds", above=0, optional=True)
    number("budget(deadline=...), a time of the runtime's clock", deadline, "seconds", optional=True)
    whole("budget(priority=...)", priority, None, optional=True)
    if not (tenant is None or isinstance(tenant, str)):
        raise ConfigError(f"budget(tenant=...): a string, not {tenant!r}")
    outer = frame_var.get()
    base = NO_BUDGET if outer is None else outer.budget
    inside = outer is not None and outer.request is not None
    if inside and (priority not in (None, base.priority) or tenant not in (None, base.tenant)):
        raise ConfigError("budget(): inside a service, priority and tenant are those of the root call; only within= can be set")
    if deadline is None or (base.deadline is not None and base.deadline <= deadline):
        deadline = base.deadline
    new = Budget(deadline, base.priority if priority is None else priority, base.tenant if tenant is None else tenant)
    if outer is not None and outer.within is not None:
        within = outer.within if within is None else min(within, outer.within)
    token = frame_var.set(
        Frame(new, outer.request if outer is not None else None, outer.runtime if outer is not None else None, within)
    )
    try:
        yield
    finally:
        try:
            frame_var.reset(token)
        except ValueError:
            pass  # a generator or coroutine that is thrown away ends in another context, where nothing was set
