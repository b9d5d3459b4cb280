"""Who may wait. What can never fit is refused for good; what does not fit now is refused with a time to come back."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from penstock.core.policy.declared import function, number, whole


@dataclass(frozen=True, slots=True)
class Queue:
    """The bounds of a service's queue: `items`, `size_bytes` of their inputs, and `max_wait`, the predicted wait in seconds.

    A call that would exceed the first two is refused with QueueFull (429), one whose predicted wait is longer than
    `max_wait` (default: the service's start time-out) with Overloaded (503). `patience=True` also refuses a call
    that would be answered only after callers are known to have left (see `core.patience`).
    """

    items: int = 10_000
    size_bytes: int = 64 << 20
    max_wait: float | None = None
    patience: bool = True

    def __post_init__(self) -> None:
        whole("Queue(items=...)", self.items)
        number("Queue(size_bytes=...)", self.size_bytes, least=1)
        number("Queue(max_wait=...)", self.max_wait, "seconds", least=0, optional=True)


@dataclass(frozen=True, slots=True)
class Latest:
    """Of the queued calls with the same key only the newest stays; the ones before it end with Superseded (409).

    `key` sees the call's own arguments; without it the tenant is the key. A call that has started is not touched. For
    control loops, where an old observation is worth nothing.
    """

    key: Callable[..., Hashable] | None = None

    def __post_init__(self) -> None:
        function("Latest(key=...)", self.key)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any], tenant: str) -> Hashable:
        return tenant if self.key is None else self.key(*args, **kwargs)


Admit = Queue | Latest
