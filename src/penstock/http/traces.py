"""Which trace a request belongs to (W3C Trace Context), kept until the line of its call comes out of the log."""

from __future__ import annotations

from typing import NamedTuple

_MOST = 20_000  # more are not under way; the oldest were lost


class Place(NamedTuple):
    """Where a call stands in its caller's trace; `span` is what the answer's `traceparent` said."""

    trace: int
    parent: int
    span: int
    flags: int


class Traces:
    """The places of calls that are under way, by id."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}

    def add(self, identity: str, given: bytes, answered: bytes) -> None:
        """`given` is the request's header (it was found good), `answered` the line that answers it."""
        if len(self.places) >= _MOST:
            del self.places[next(iter(self.places))]
        _, trace, parent, flags = given.split(b"-")[:4]
        span = answered.split(b"-")[2]
        self.places[identity] = Place(int(trace, 16), int(parent, 16), int(span, 16), int(flags, 16))

    def take(self, identity: str) -> Place | None:
        return self.places.pop(identity, None)
