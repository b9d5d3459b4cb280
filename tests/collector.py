"""What only the cycle collector could free, and what is alive: objects of ours by type, so that a failure names them."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from served import SRC


def _name(found: object) -> str:
    """The type of an object of ours, or whose frame it is; empty for others."""
    if isinstance(found, FrameType):
        return f"frame of {found.f_code.co_name}" if found.f_code.co_filename.startswith(str(SRC)) else ""
    kind = type(found)
    return kind.__qualname__ if str(kind.__module__).startswith("penstock") else ""


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """With the collector off: afterwards the counter has what was made inside and left in cycles."""
    found: Counter[str] = Counter()
    gc.freeze()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(filter(None, map(_name, gc.garbage)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def alive() -> Counter[str]:
    """What lives now; inside `garbage`, what was made there."""
    return Counter(filter(None, map(_name, gc.get_objects())))
