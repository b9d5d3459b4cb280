"""How many bytes a call's inputs hold, for queues that are bounded in bytes.

Texts, buffers and arrays (anything with `nbytes`) count, also within lists, tuples, sets and dicts. It is asked of every
call, so it looks at 256 values at most in each container, and into 16, within those 4, within those 1: of more it looks
at every n-th, and takes those for the rest. Other structures count nothing; a service that minds declares `size=`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

LOOKS = 256
FEW = 16

_EMPTY = "".__sizeof__()  # a text's bytes are those beyond
_NOTHING = frozenset((int, float, bool, complex, type(None)))
_TEXT = frozenset((str,))
_BYTES = frozenset((bytes, bytearray))
_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))


def weigh(values: Iterable[Any], few: int = FEW) -> int:
    """Bytes of all these values; looks into `few` containers of each."""
    total = 0
    for value in values:
        kind = type(value)
        if kind in _NOTHING:
            continue
        if kind is str:
            total += value.__sizeof__() - _EMPTY
        elif kind in _BYTES:
            total += len(value)
        elif kind in _CONTAINERS:
            if value and few:
                total += _inside(value, few)
        else:
            total += getattr(value, "nbytes", 0)
    return total


def _inside(held: Any, few: int) -> int:
    """Bytes of what a container holds: of all of it, or of a part for the whole."""
    count, kind = len(held), type(held)
    if kind is list or kind is tuple:
        part = held if count <= LOOKS else held[:: -(-count // LOOKS)]
    else:
        part = list(islice(held.values() if kind is dict else held, LOOKS))
    kinds = set(map(type, part))
    if kinds <= _NOTHING:
        return 0
    if kinds == _TEXT:
        total = sum(map(str.__sizeof__, part)) - _EMPTY * len(part)
    else:
        if len(part) > few and not kinds.isdisjoint(_CONTAINERS):
            part = part[:: -(-len(part) // few)]
        total = weigh(part, few // 4)
    return total if len(part) == count else total * count // len(part)
