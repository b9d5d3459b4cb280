"""What became of a unit of work, as it crosses to the parent: results, and beside them what failed.

A failure is (index, kind, text, pickled exception or None). Exceptions are pickled one by one, because the parent may
not be able to import the class of one of them.
"""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Mapping, Set
from typing import Any, Optional

RAISED, BAD, SERVICE, MEMORY, CANCELLED, OVERFLOW = "raised", "bad", "service", "memory", "cancelled", "overflow"
Failure = tuple[int, str, str, Optional[bytes]]  # noqa: UP045 - older interpreters run this
_MEMORY_NAMES = frozenset(("OutOfMemoryError", "XPUOutOfMemoryError"))


class Verdict(Exception):
    """A failure for which penstock has a class, which is not to be had here: its kind and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def spread(name: str, returned: Any, expected: int) -> list[Any]:
    """One result per request from what a batched body returned. Raises a verdict if it is something else."""
    if isinstance(returned, (str, bytes, bytearray, Mapping, Set)) or not hasattr(returned, "__len__"):
        got = f"a {type(returned).__name__}"
    else:
        results = list(returned)
        if len(results) == expected:
            return results
        got = f"{len(results)}"
    raise Verdict(BAD, f"{name} got a batch of {expected} and returned {got}: return a list of {expected}, in order")


def failure(index: int, error: BaseException, name: str) -> Failure:
    """The error as it can cross, with the traceback of this process."""
    if isinstance(error, Verdict):
        return index, error.kind, str(error), None
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    title = f"{name} raised {type(error).__name__}: {_said(error)}\n{text}"
    if isinstance(error, asyncio.CancelledError):
        return index, CANCELLED, "", None
    if isinstance(error, SystemExit):
        message = f"{name} called sys.exit({error.code!r}); a body ends by returning or raising an Exception"
        return index, SERVICE, message, None
    if isinstance(error, (StopIteration, StopAsyncIteration)) or not isinstance(error, Exception):
        return index, SERVICE, f"{name} raised {type(error).__name__}; raise an Exception instead\n{text}", None
    kind = RAISED
    if isinstance(error, MemoryError) or any(kind.__name__ in _MEMORY_NAMES for kind in type(error).__mro__):
        kind = MEMORY
    try:
        pickled = pickle.dumps(error)
        back = pickle.loads(pickled)  # noqa: S301 - what was pickled here a moment ago
        if type(back) is type(error) and str(back) == str(error):
            if hasattr(back, "add_note"):
                back.add_note(f"in the child process of {name}:\n{text}")
                pickled = pickle.dumps(back)
            return index, kind, title, pickled
    except Exception:
        pass
    return index, kind, title, None


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own `__str__`
        return "<its str() failed>"


def revive(failed: Failure) -> BaseException | None:
    """The exception itself, where its class is known."""
    if failed[1] == CANCELLED:
        return asyncio.CancelledError()
    try:
        error = None if failed[3] is None else pickle.loads(failed[3])  # noqa: S301 - of our own child or parent
    except Exception:
        return None
    return error if isinstance(error, Exception) else None


def unsendable(index: int, result: Any, error: BaseException, name: str) -> Failure:
    """The result cannot be pickled."""
    return index, BAD, f"{name} returned a {type(result).__name__} that cannot leave its process: {_said(error)}", None
