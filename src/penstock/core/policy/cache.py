"""Answers that need not be computed again: least recently used first out, by bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.core.policy.declared import function, number

_SAMPLED = 32  # elements of a long container whose size stands for all
_ENTRY = 250  # bytes of an entry beside its key and answer


@dataclass(frozen=True, slots=True)
class Cache:
    """Calls with equal arguments get one answer: of the last `ttl` seconds, or of the work that is in flight for another.

    `key(*arguments)` says which calls are equal (default: all arguments, by value and type); None for a call means
    that it is not cached. `size_bytes` bounds keys and answers, the least recently used go first; 0 keeps nothing and
    only shares what is in flight. Errors are never kept. An answer is handed to all its callers as it is, so they must
    not change it.

    Callers who share a work keep their own deadlines and may leave on their own; it stops when the last has left. Its
    cost is charged to the first one's tenant. A more urgent caller (`priority`) does not wait for it, but starts its own.
    """

    key: Callable[..., Hashable] | None = None
    size_bytes: int = 64 << 20
    ttl: float = math.inf

    def __post_init__(self) -> None:
        function("Cache(key=...)", self.key)
        number("Cache(size_bytes=...)", self.size_bytes, least=0)
        number("Cache(ttl=...)", self.ttl, "seconds", above=0)

    def state(self) -> CacheState:
        return CacheState(self)


class CacheState:
    """What is kept. `used` counts bytes, as `footprint` estimates them."""

    __slots__ = ("entries", "policy", "used")

    def __init__(self, policy: Cache) -> None:
        self.policy = policy
        self.entries: OrderedDict[Hashable, tuple[Any, float, int]] = OrderedDict()  # answer, when it is too old, bytes
        self.used = 0

    def get(self, key: Hashable, now: float) -> tuple[Any, float, int] | None:
        """The entry of this key, if it is not too old."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if now >= entry[1]:
            self._drop(key)
            return None
        self.entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, answer: Any, now: float) -> None:
        """Keep an answer, if it fits at all, in place of the least recently used."""
        if not self.policy.size_bytes:
            return
        size = footprint(answer) + footprint(key) + _ENTRY
        if key in self.entries:
            self._drop(key)
        if size > self.policy.size_bytes:
            return
        self.entries[key] = (answer, now + self.policy.ttl, size)
        self.used += size
        while self.used > self.policy.size_bytes:
            self._drop(next(iter(self.entries)))

    def _drop(self, key: Hashable) -> None:
        self.used -= self.entries.pop(key)[2]


def footprint(value: Any, depth: int = 6) -> int:
    """Bytes that a value holds, about: exact for flat data and arrays, by a sample for long containers."""
    data = getattr(value, "nbytes", None)
    if isinstance(data, int):
        return data + 100
    kind: Any = type(value)
    size: int = kind.__sizeof__(value)
    if isinstance(value, str | bytes | bytearray | int | float | None) or depth == 0:
        return size
    if isinstance(value, Mapping):
        return size + _sampled(list(value.items()), depth)
    if isinstance(value, list | tuple | set | frozenset):
        return size + _sampled(list(value), depth)
    fields = getattr(value, "__struct_fields__", None)
    if fields is not None:
        return size + sum(footprint(getattr(value, name, None), depth - 1) for name in fields)
    inside = getattr(value, "__dict__", None)
    return size + (footprint(inside, depth - 1) if isinstance(inside, dict) else 0)


def _sampled(items: list[Any], depth: int) -> int:
    step = max(1, len(items) // _SAMPLED)
    sample = items[::step]
    return sum(footprint(item, depth - 1) for item in sample) * len(items) // max(1, len(sample))
